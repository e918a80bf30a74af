"""Networks for grey images: a first convolution of one channel, with the summed weights.

A grey image x, repeated in three channels, meets the weights w of the first convolution as
w1 x + w2 x + w3 x = (w1 + w2 + w3) x: one channel with the summed weights computes the same, and
is a third as much to compute and to train. The same, that is, where x is the same in the three
channels when it gets there: with one mean and one standard deviation for all colours
(efficientnet_lite0's). ImageNet's usual ones differ by colour, and GoogLeNet and Inception v3 move
the channels once more; the sum then sees their mean. On 200 grey photographs, mobilenet_v2's
features so keep a cosine of 0.994 (mean) and 0.977 (worst) with those of three channels.
Coloured images are seen as the mean of their channels.
"""

from itertools import takewhile

import torch
from torch import nn

from extract.backbones.compiler import without_compiler
from extract.errors import FxError

with without_compiler():
    from timm.layers import Conv2dSame, register_notrace_module  # type: ignore[attr-defined]


# so that tracing a network sees one layer here, as before
@register_notrace_module
class GreyConv2d(nn.Conv2d):
    """A convolution of one channel: the mean of the channels that come in."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float tensors (n, channels, h, w) to (n, out_channels, h', w')."""
        return super().forward(images.mean(dim=1, keepdim=True))


@register_notrace_module
class GreyConv2dSame(Conv2dSame):
    """The same with TensorFlow's padding, as in timm's ``tf_`` networks."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float tensors (n, channels, h, w) to (n, out_channels, h', w')."""
        maps: torch.Tensor = super().forward(images.mean(dim=1, keepdim=True))  # type: ignore[no-untyped-call]
        return maps


_GREY: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: GreyConv2d, Conv2dSame: GreyConv2dSame}


def make_grey(module: nn.Module) -> None:
    """Make a network's first convolution one of a single channel, in place.

    It still takes normalised images (n, 3, s, s), and its tensor keeps its name: a weight
    (out, 3, kh, kw) becomes (out, 1, kh, kw).

    Parameters
    ----------
    module : nn.Module, with the weights that are to be summed

    Raises
    ------
    FxError
        If what sees the images is no plain convolution of three channels.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    # several where a stem has branches (RepVGG's): all that come before any other convolution
    first = list(takewhile(lambda layer: layer.in_channels == 3, convolutions))
    if not first or any(type(layer) not in _GREY or layer.groups > 1 for layer in first):
        found = convolutions[0] if convolutions else "none"
        raise FxError(
            f"`channels=1` needs a plain first convolution of three channels; got {found} in "
            f"{type(module).__name__}; take `channels=3`, which repeats the grey"
        )
    for layer in first:
        # another class for the same object: all else that was set in it stays
        layer.__class__ = _GREY[type(layer)]  # type: ignore[assignment]
        layer.in_channels = 1
        layer.weight = nn.Parameter(layer.weight.detach().sum(dim=1, keepdim=True))
