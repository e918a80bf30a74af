"""A model behind HTTP: images in, labels and probabilities out."""
