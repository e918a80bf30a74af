"""Stage one: images, frozen backbones, and the store of their features."""
