"""The whole network trained, starting from random weights."""

from dataclasses import dataclass

from fx.comparison.strategies._training import ScratchStrategy


@dataclass(frozen=True)
class _Scratch(ScratchStrategy):
    headline = "Train the network from scratch"
    description = "Whole network trained, starting from random weights"
    style = 4


STRATEGY = _Scratch("scratch")
