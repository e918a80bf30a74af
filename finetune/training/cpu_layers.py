"""Depthwise convolutions that train quicker in fp32, on a CPU in bf16.

PyTorch has no bf16 kernel for the backward pass of a depthwise convolution with a stride or with a
side above 3: it takes 3 to 40 times as long as in fp32. Run in fp32, these layers make training
mobilenet_v2 1.8 times as quick, efficientnet_b0 2 times, efficientnet_lite0 1.4 times
(``benchmarks/cpu_layers.py``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


def quicker_forwards(module: nn.Module) -> dict[nn.Module, Forward]:
    """Give another ``forward`` for each layer of a network that has a quicker one."""
    return {
        layer: partial(_in_fp32, layer.forward)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and _is_slow_depthwise(layer)
    }


def _is_slow_depthwise(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels > 1
    return depthwise and (max(layer.stride) > 1 or max(layer.kernel_size) > 3)


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
