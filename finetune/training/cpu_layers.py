"""Convolutions that train quicker another way on a CPU in bf16: the same numbers, but for rounding.

What PyTorch's own way lacks there, and what the other way brings (``benchmarks/cpu_layers.py``):

- The backward pass of a depthwise convolution has no bf16 kernel for strides or for sides above 3,
  and takes 3 to 40 times as long as in fp32. These layers run in fp32: training mobilenet_v2 is 1.8
  times as quick, efficientnet_b0 2 times, efficientnet_lite0 1.4 times.
- Where a convolution has as many channels as there are pixels in all its maps, or more, the
  gradient of its weights takes longer than the matrix product that it is, with sides of 1, or of 3
  and strides above 1. These layers run as products: training the last block of resnet50 is 1.1
  times as quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


def quicker_forwards(module: nn.Module) -> dict[nn.Module, Forward]:
    """Give another ``forward`` for each layer of a network that has a quicker one."""
    found: dict[nn.Module, Forward] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if _is_slow_depthwise(layer):
                found[layer] = partial(_in_fp32, layer.forward)
            elif _is_product(layer):
                found[layer] = partial(_as_product, layer, layer.forward)
    return found


def _is_slow_depthwise(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels > 1
    return depthwise and (max(layer.stride) > 1 or max(layer.kernel_size) > 3)


def _is_product(layer: nn.Conv2d) -> bool:
    # a subclass may do other things besides
    plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1)
    small = max(layer.kernel_size) == 1 or (max(layer.kernel_size) == 3 and min(layer.stride) > 1)
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and small and zeros


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Run layers by other ``forward`` functions, for a while."""
    for layer, forward in forwards.items():
        layer.forward = forward
    try:
        yield
    finally:
        for layer in forwards:
            # the class's own is then found again
            del layer.forward


def _in_fp32(forward: Forward, maps: torch.Tensor) -> torch.Tensor:
    with torch.autocast(maps.device.type, enabled=False):
        return forward(maps.float())


def _as_product(convolution: nn.Conv2d, forward: Forward, maps: torch.Tensor) -> torch.Tensor:
    (down, right), (tall, wide) = convolution.stride, convolution.kernel_size
    above, left = cast("tuple[int, int]", convolution.padding)  # `_is_product` lets no words in
    height = (maps.shape[2] + 2 * above - tall) // down + 1
    width = (maps.shape[3] + 2 * left - wide) // right + 1
    if len(maps) * height * width > max(convolution.in_channels, convolution.out_channels):
        return forward(maps)
    pixels = maps.permute(0, 2, 3, 1)
    if above or left:
        pixels = nn.functional.pad(pixels, (0, 0, left, left, above, above))
    seen = [
        pixels[:, row : row + down * height : down, column : column + right * width : right]
        for row in range(tall)
        for column in range(wide)
    ]
    patches = torch.cat(seen, dim=-1) if len(seen) > 1 else seen[0]
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return nn.functional.linear(patches, weight, convolution.bias).permute(0, 3, 1, 2)
