"""Four convolutions trained, starting from random weights."""

from dataclasses import dataclass

from fx.comparison.strategies._training import ScratchStrategy


@dataclass(frozen=True)
class _SmallCNN(ScratchStrategy):
    needs_backbone = False
    backbone = "small_cnn"
    headline = "Train a small network from scratch"
    description = "Four convolutions trained, starting from random weights"


STRATEGY = _SmallCNN("small_cnn")
