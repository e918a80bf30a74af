"""Heat maps of a network with its head: which parts of an image speak for a class.

HiResCAM (R. L. Draelos and L. Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks", 2020) on the last feature map before pooling that tells places
apart, as the library ``grad-cam`` computes it. What is explained are the log-odds of the class:
probabilities near 0 or 1 have gradients near 0. Their gradient is the mean of those on the way from
features of 0 to the image's (integrated gradients, M. Sundararajan, A. Taly and Q. Yan, 2017):
those of a curved head, such as an SVM with a kernel, say little where it is flat.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from extract.engines import Engine, normalise
from extract.errors import FxError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING = "heat maps take grad-cam, which is not installed: pip install 'fx-images[explain]'"
# of a map that tells places apart: on cifar4's halves at 64 pixels, 2 × 2 parts lie on the right
# one in 40 %, and the 4 × 4 of an earlier layer in 80 to 87 %; at 96 pixels, 3 × 3 in
# 80 %, and 6 × 6 in 88 %
LEAST_SIDE = 4
STEPS = 8  # of the way; with 16, maps of cifar4's images were the same


class HeatMaps:
    """Draws heat maps.

    The network is copied: what is hooked to its layers would see predictions, too, that run at the
    same time.

    Parameters
    ----------
    engine : with the network; heat maps are of it in fp32, whatever its precision is
    head : module, features (n, d) to scores (n, classes), whose softmax are probabilities

    Attributes
    ----------
    side : parts of an image that the feature map has, across and down: maps are no finer

    Raises
    ------
    FxError
        If grad-cam is not installed, or the network has no feature maps.
    """

    def __init__(self, engine: Engine, head: nn.Module) -> None:
        try:
            from pytorch_grad_cam import HiResCAM
        except ImportError as error:
            raise FxError(MISSING) from error
        self.preprocessing, self.device = engine.preprocessing, engine.device
        network = copy.deepcopy(engine.module).requires_grad_(False).eval()
        layer, self.side = last_map(network, self.preprocessing.size)
        scores = _Scores(network, copy.deepcopy(head).to(self.device)).requires_grad_(False)
        self.method = HiResCAM(scores.eval(), [layer])
        self._lock = Lock()  # the method keeps what it has seen

    def draw(self, pixels: NDArray[np.uint8], number: int) -> NDArray[np.float32]:
        """Draw the heat map of a class.

        Parameters
        ----------
        pixels : uint8 array of shape (crops, size, size, 3), squares of one image
        number : of the class

        Returns
        -------
        float32 array of shape (size, size), of the first square, from 0 to 1, or all 0: where it is
        0, nothing speaks for the class; 1 is what speaks for it most in this image
        """
        with self._lock, torch.inference_mode(False), torch.enable_grad():
            given = torch.from_numpy(pixels.copy()).to(self.device)
            images = normalise(given, self.preprocessing).requires_grad_()
            maps: NDArray[np.float32] = self.method(images, [_LogOdds(number)])
        return np.asarray(np.clip(maps[0], 0, 1), np.float32)


class _Scores(nn.Module):
    """Squares (n, 3, size, size) of one image to scores (1, steps, classes) on the way to it."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        features = self.network(squares).mean(dim=0, keepdim=True)
        scores: torch.Tensor = self.head(_shares(features) * features)
        return scores[None]


def _shares(like: torch.Tensor) -> torch.Tensor:
    """Midpoints of equal parts of the way, from 0 to 1, of shape (steps, 1)."""
    return (torch.arange(STEPS, device=like.device)[:, None] + 0.5) / STEPS


@dataclass(frozen=True)
class _LogOdds:
    """Log-odds of a class, log p / (1 - p), whose gradient is the mean of those of all steps.

    d f(s x) / dx is s f'(s x) at the step s; the scores are of shape (steps, classes).
    """

    number: int

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        others = torch.cat([scores[:, : self.number], scores[:, self.number + 1 :]], dim=1)
        log_odds = scores[:, self.number] - torch.logsumexp(others, dim=1)
        return (log_odds / _shares(scores)[:, 0]).mean()


def last_map(network: nn.Module, size: int) -> tuple[nn.Module, int]:
    """Find the layer that gives the last feature map before pooling, and the map's side.

    It is the last to give maps (n, channels, side, side), of a side of at least ``LEAST_SIDE``, on
    which the features depend; no network is known by its name.

    Raises
    ------
    FxError
        If there is none, or tokens or maps of another order come later, as transformers have them.
    """
    last: dict[int, tuple[nn.Module, tuple[int, ...]]] = {}  # by the order of their calls
    calls = 0

    def watch(layer: nn.Module, _: object, made: object) -> None:
        nonlocal calls
        calls += 1
        if isinstance(layer, nn.AdaptiveAvgPool2d) or not isinstance(made, torch.Tensor):
            return
        if made.requires_grad and _has_places(made.shape):
            made.register_hook(partial(note, calls, layer))  # type: ignore[no-untyped-call]

    def note(call: int, layer: nn.Module, gradient: torch.Tensor) -> None:
        if gradient.any():
            last[call] = layer, tuple(gradient.shape)

    hooks = [layer.register_forward_hook(watch) for layer in network.modules()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            random = torch.Generator().manual_seed(0)
            image = torch.randn(1, 3, size, size, generator=random)
            like = next(network.parameters(), image)
            features = network(image.to(like).requires_grad_())
            # any weights but equal ones, whose sum a normalisation would make constant
            weights = torch.randn(features.shape, generator=random)
            (features * weights.to(features)).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise FxError(
            f"no heat map: the network has no feature map of {LEAST_SIDE} × {LEAST_SIDE} parts or "
            "more"
        )
    layer, shape = last[max(last)]
    if not _is_map(shape):
        raise FxError(
            "no heat map: the network's last layers give tokens, as transformers do, "
            "not maps (channels, height, width)"
        )
    return layer, shape[2]


def _is_map(shape: tuple[int, ...]) -> bool:
    # images are squares, and so are their maps
    return len(shape) == 4 and shape[2] == shape[3] >= LEAST_SIDE


def _has_places(shape: tuple[int, ...]) -> bool:
    """Whether values of a shape may be of places: maps, maps with channels last, or tokens."""
    last = len(shape) == 4 and shape[1] == shape[2] >= LEAST_SIDE
    return _is_map(shape) or last or len(shape) == 3
