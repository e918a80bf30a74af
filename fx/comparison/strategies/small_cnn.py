"""Four convolutions trained, starting from random weights."""

from __future__ import annotations

from dataclasses import dataclass

from fx.comparison.context import ComparisonContext
from fx.comparison.strategies._training import ScratchStrategy


@dataclass(frozen=True)
class _SmallCNN(ScratchStrategy):
    needs_backbone = False

    @property
    def headline(self) -> str:
        return "Train a small network from scratch"

    @property
    def description(self) -> str:
        return "Four convolutions trained, starting from random weights"

    def backbone(self, context: ComparisonContext) -> str | None:
        return "small_cnn"


STRATEGY = _SmallCNN("small_cnn")
