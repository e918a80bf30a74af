"""The whole network trained, starting from random weights."""

from __future__ import annotations

from dataclasses import dataclass

from fx.comparison.strategies._training import ScratchStrategy


@dataclass(frozen=True)
class _Scratch(ScratchStrategy):
    @property
    def headline(self) -> str:
        return "Train the network from scratch"

    @property
    def description(self) -> str:
        return "Whole network trained, starting from random weights"

    @property
    def style(self) -> int | None:
        return 4


STRATEGY = _Scratch("scratch")
