"""torchvision's classification CNNs, with its own weights.

Not its transformers: fx takes CNNs.
"""

from functools import cache
from typing import Any

from torch import nn

from extract.backbones.compiler import without_compiler
from extract.backbones.families._family import Architecture, Family
from extract.backbones.weight_files import cached_url, fetch_url
from extract.errors import UnknownBackbone
from extract.images import Preprocessing

with without_compiler():
    from torchvision import models

TRANSFORMERS = ("vit_", "swin_", "maxvit_")


class Torchvision(Family):
    """Networks by torchvision's names."""

    @cache  # noqa: B019 (there is one family)
    def names(self) -> tuple[str, ...]:
        """Names of all CNNs."""
        known = models.list_models(module=models)
        return tuple(name for name in known if not name.startswith(TRANSFORMERS))

    def has(self, name: str) -> bool:
        """Whether torchvision has it, transformers included, which `build` refuses."""
        return name in models.list_models(module=models)

    def build(self, name: str) -> Architecture:
        """Make a network without its classifier."""
        if name.startswith(TRANSFORMERS):
            raise UnknownBackbone(f"{name} is a transformer; fx takes CNNs")
        # what their builders set for pretrained weights; the others take none of these
        special = {"init_weights": True, "aux_logits": False, "transform_input": True}
        options = special if name in ("googlenet", "inception_v3") else {}
        module = models.get_model(name, weights=None, **options)
        classifier, dim = _without_classifier(module)
        preset = _default(name).transforms()
        preprocessing = Preprocessing(
            size=preset.crop_size[0],
            resize=preset.resize_size[0],
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
        return Architecture(module, dim, (classifier,), preprocessing)

    def at_hand(self, name: str) -> bool:
        """Whether torch.hub's cache holds the weights."""
        return cached_url(_default(name).url).exists()

    def load_default(self, name: str, architecture: Architecture) -> None:
        """Load torchvision's default weights, downloaded where they are not in its cache."""
        choice = _default(name)
        size = round(choice.meta.get("_file_size", 0) * 2**20)
        architecture.load(fetch_url(choice.url, backbone=name, size=size))


def _default(name: str) -> Any:
    return models.get_model_weights(name).DEFAULT


def _without_classifier(module: nn.Module) -> tuple[str, int]:
    """Replace the last layer that has weights, and a dropout just before it, by nothing.

    True of every torchvision CNN: that layer is the classifier (SqueezeNet's is a convolution,
    and its features are what is pooled then). Returns its path and its inputs.
    """
    layers = [(path, layer) for path, layer in module.named_modules() if path]
    weighted = [i for i, (_, layer) in enumerate(layers) if list(layer.parameters(recurse=False))]
    path, last = layers[weighted[-1]]
    for between, layer in layers[weighted[-2] + 1 : weighted[-1]]:
        if isinstance(layer, nn.Dropout):
            module.set_submodule(between, nn.Identity())
    module.set_submodule(path, nn.Identity())
    return path, last.in_channels if isinstance(last, nn.Conv2d) else last.in_features


FAMILY = Torchvision()
