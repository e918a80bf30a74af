"""A model as one graph, from pixels of any size to probabilities, and its file.

The graph holds what ``fx predict`` does after decoding: the shorter side is scaled, squares are cut
out, the networks run, the squares of an image are averaged, and the head follows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from extract.images import Preprocessing
from fx.export.heads import HeadModule
from fx.options import Options
from fx.stages.card import licence_of
from fx.stages.models import open_model
from heads.head import Head

MOST_PLACES = 4_096  # of a long strip, among which the largest weight is sought


class Squares(nn.Module):
    """What a network sees of images, as ``extract.images.prepare`` cuts it, normalised.

    Maps a uint8 tensor (n, height, width, 3) to float32 (n · crops, 3, size, size). Images are
    scaled by matrices, whose products are the whole numbers that PyTorch's own code for uint8 has:
    ONNX's operator rounds otherwise, in up to 2 % of the values, which a network amplifies.
    """

    def __init__(self, preprocessing: Preprocessing, crops: int) -> None:
        super().__init__()
        self.preprocessing, self.crops = preprocessing, crops
        self.mean = nn.Buffer(torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(preprocessing.std).view(3, 1, 1))
        self.places = nn.Buffer(torch.arange(preprocessing.size))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scale, cut and normalise."""
        size, resize = self.preprocessing.size, self.preprocessing.resize
        height, width = images.shape[1:3]
        # where the graph is traced, the sizes are symbols
        shorter: int = torch.sym_min(height, width)  # type: ignore[assignment]
        down, across = resize * height // shorter, resize * width // shorter
        bottom, right = down - size, across - size
        corners = [(_half(bottom), _half(right))]
        if self.crops > 1:
            corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        whole = images.permute(0, 3, 1, 2).float()
        squares = []
        for top, left in corners:
            # first across, then down, each rounded, as PyTorch does it
            part = self._scaled(whole, width, across, self.places + left)
            square = self._scaled(part.transpose(2, 3), height, down, self.places + top)
            squares.append(square.transpose(2, 3))
        if self.crops == 10:
            squares += [square.flip(3) for square in squares]
        cut = torch.stack(squares, dim=1).flatten(0, 1)
        return (cut / 255 - self.mean) / self.std

    def _scaled(
        self, images: torch.Tensor, length: int, scaled: int, places: torch.Tensor
    ) -> torch.Tensor:
        """Scale the last axis of (n, 3, m, length) to a length of which only places are wanted."""
        interpolation = self.preprocessing.interpolation
        some = torch.arange(torch.sym_min(scaled, MOST_PLACES), device=places.device)
        largest = _weights(some, length, scaled, interpolation).max()
        # as many bits as keep the largest weight within 16
        steps = 2.0 ** torch.arange(1, 23, dtype=torch.float64, device=places.device)
        bits = (torch.floor(0.5 + largest * steps) < 2**15).sum()
        unit = 2.0 ** bits.double()
        weights = _weights(places, length, scaled, interpolation) * unit
        rounded = torch.sign(weights) * torch.floor(weights.abs() + 0.5)
        # whole numbers below 2^24, which float32 has exactly
        sums = images @ rounded.float().T
        unit = unit.float()
        return torch.clamp(torch.floor((sums + unit / 2) / unit), 0, 255)


def _weights(places: torch.Tensor, length: int, scaled: int, interpolation: str) -> torch.Tensor:
    """Weights of an antialiased scaling, as Pillow and PyTorch define them.

    Parameters
    ----------
    places : int64 tensor of shape (m,), of the scaled pixels
    length, scaled : pixels before and after
    interpolation : ``bilinear`` or ``bicubic``

    Returns
    -------
    float64 tensor of shape (m, length), rows of which add up to 1
    """
    scale = torch.scalar_tensor(length, dtype=torch.float64) / scaled
    stretch = torch.clamp(scale, min=1)
    support = stretch * (1 if interpolation == "bilinear" else 2)
    centres = scale * (places.double() + 0.5)[:, None]
    pixels = torch.arange(length, dtype=torch.float64, device=places.device)
    distances = (pixels - centres + 0.5).abs() / stretch
    if interpolation == "bilinear":
        weights = torch.clamp(1 - distances, min=0)
    else:  # Keys's cubic with a = -1/2
        near = (1.5 * distances - 2.5) * distances**2 + 1
        far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
        weights = torch.where(distances < 1, near, torch.where(distances < 2, far, 0))
    first = torch.floor(torch.clamp(centres - support + 0.5, min=0))
    inside = (pixels >= first) & (pixels < torch.floor(centres + support + 0.5))
    weights = torch.where(inside, weights, 0)
    return weights / weights.sum(dim=1, keepdim=True)


def _half(length: int) -> int:
    """Half of a length, rounded as Python rounds: to the even one of two that are equally near."""
    return length // 2 + length % 2 * (length // 2 % 2)


class PixelsToProbabilities(nn.Module):
    """uint8 images (n, height, width, 3) to float32 probabilities (n, classes).

    Parameters
    ----------
    networks : how each sees images, and what gives its features, which stand side by side
    head : features to probabilities
    """

    def __init__(self, networks: Sequence[tuple[Squares, nn.Module]], head: nn.Module) -> None:
        super().__init__()
        self.squares = nn.ModuleList(squares for squares, _ in networks)
        self.networks = nn.ModuleList(network for _, network in networks)
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute probabilities."""
        features = []
        for squares, network in zip(self.squares, self.networks, strict=True):
            vectors = network(squares(images))
            features.append(vectors.unflatten(0, (-1, squares.crops)).mean(dim=1))
        probabilities: torch.Tensor = self.head(torch.cat(features, dim=1))
        return probabilities


@dataclass(frozen=True)
class Exportable:
    """A model opened as a graph.

    Attributes
    ----------
    graph : in inference mode, on the CPU
    classes : in the order of its probabilities
    properties : what its file is to say of itself: JSON, and of the licence a text
    """

    graph: PixelsToProbabilities
    classes: tuple[str, ...]
    properties: dict[str, str]


def open_as_graph(model: Path) -> Exportable:
    """Open a head or a fine-tuned network, with the networks below it.

    Raises
    ------
    FxError
        If it is none, or its features are in int8, or its head is of a kind that was added.
    """
    opened = open_model(model, Options(engine="torch", device="cpu", precision="fp32"))
    networks = [
        (Squares(engine.preprocessing, crops), engine.module) for engine, crops in opened.engines
    ]
    about: dict[str, Any]
    fitted = opened.opened
    if isinstance(fitted, Head):
        head: nn.Module = HeadModule(fitted)
        about = {"head": fitted.kind, "kernel": fitted.kernel, "features": fitted.spec}
        metrics = fitted.metrics and fitted.metrics.as_dict()
        sources = list(fitted.source.weights)
    else:
        head = nn.Sequential(fitted.network.classifier, nn.Softmax(dim=1))
        about = {"network": fitted.record.backbone}
        metrics, sources = fitted.record.metrics, [fitted.record.weights]
    about["preprocessing"] = [engine.preprocessing.to_dict() for engine, _ in opened.engines]
    graph = PixelsToProbabilities(networks, head).eval().requires_grad_(False)
    return Exportable(
        graph,
        opened.classes,
        {
            "fx.classes": json.dumps(opened.classes),
            "fx.spec": json.dumps(about),
            "fx.metrics": json.dumps(metrics),
            "fx.weights_licence": "; ".join(dict.fromkeys(map(licence_of, sources))),
        },
    )
