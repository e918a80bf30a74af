"""How like images are to those that a network was trained on, by the network's own statistics.

Batch norm keeps the mean and the deviation that each channel had over the images that the network
was trained on. Other images move them. How far is a measure of how far the images are from those:
S. Schneider et al., "Improving robustness against common corruptions by covariate shift
adaptation" (2020) take the Wasserstein distance of the statistics, as is done here, and find that
the network's error grows with it.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extract.backbones import Backbone
from extract.engines import normalise


def domain_distance(backbone: Backbone, batches: Iterable[NDArray[np.uint8]]) -> float | None:
    """Measure how far images are from those that a network was trained on.

    For every channel before a batch norm, the Wasserstein distance of two normal distributions,
    sqrt((m - m')² + (s - s')²), that of the images and that which the network keeps, in the kept
    deviations s'; of a layer the median over its channels; of the network the mean over its layers.

    Parameters
    ----------
    backbone : with its trained weights, in inference mode
    batches : uint8 arrays of shape (n, size, size, 3), as ``load_images`` gives them, best of the
        size that the network was trained with

    Returns
    -------
    0 for images like those; None where the network has no batch norm, or saw no image
    """
    layers = [m for m in backbone.module.modules() if isinstance(m, nn.BatchNorm2d)]
    layers = [layer for layer in layers if layer.running_mean is not None]
    # of every channel: how many values were seen, their sum, and that of their squares
    sums = [torch.zeros(3, layer.num_features, dtype=torch.float64) for layer in layers]

    def seen(_: nn.Module, inputs: tuple[torch.Tensor], *, of: torch.Tensor) -> None:
        values = inputs[0].detach()
        count = values.numel() // values.shape[1]
        # of one batch in float32, which takes a third of the time that float64 takes
        means = [one.mean(dim=(0, 2, 3)) for one in (values, values.square())]
        of += count * torch.stack([torch.ones_like(means[0]), *means]).double().cpu()

    hooks = [
        layer.register_forward_pre_hook(partial(seen, of=one))
        for layer, one in zip(layers, sums, strict=True)
    ]
    try:
        with torch.inference_mode():
            for pixels in batches if layers else ():
                # an engine may have put the network on a GPU
                given = torch.from_numpy(pixels).to(next(backbone.module.buffers()).device)
                backbone.module(normalise(given, backbone.preprocessing))
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(layers, sums, strict=True)
    distances = [_distance(layer, *one) for layer, one in pairs if one[0].all()]
    return float(np.mean(distances)) if distances else None


def _distance(
    layer: nn.BatchNorm2d, count: torch.Tensor, values: torch.Tensor, squares: torch.Tensor
) -> float:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    kept = (layer.running_var.double().cpu() + layer.eps).sqrt()
    mean = values / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    distances = (mean - layer.running_mean.double().cpu()).square() + (deviation - kept).square()
    return float((distances.sqrt() / kept).median())
