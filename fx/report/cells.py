"""Cells of a comparison: one strategy at one number of training images, over all its seeds.

Here, and nowhere else, it is decided how the runs of a cell become one number and how a strategy
looks in every plot and table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours, safe for the colour-blind; grey stands for their black, which a dark
# page swallows, and their yellow is left out, which a white page swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dashdot", "longdash", "dot", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star", "cross")

# A strategy keeps its colour from one report to the next, whichever others are compared with it.
_PREFERRED = ("logreg", "svm", "finetune:1", "finetune:all", "scratch", "finetune:2", "knn")

_DESCRIPTIONS = {
    "logreg": "logistic regression on features of the frozen network",
    "svm": "support vector machine on features of the frozen network",
    "knn": "nearest neighbours on features of the frozen network",
    "centroid": "nearest class mean of features of the frozen network",
    "finetune:0": "only the classifier trained, by gradient descent",
    "finetune:1": "last block and classifier trained, starting from the logistic regression",
    "finetune:all": "whole network trained, starting from its pretrained weights",
    "scratch": "whole network trained, starting from random weights",
    "small_cnn": "four convolutions trained, starting from random weights",
}


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn: no two differ in colour alone."""

    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Cell:
    """The runs of one strategy at one number of training images, in the order of their seeds.

    The interval is the 95 % one of the accuracy, as `fx.comparison.verdict.estimates` gives it.
    """

    strategy: str
    n_train: int
    runs: tuple[dict[str, Any], ...]
    interval: tuple[float, float] | None = None

    def mean(self, name: str) -> float | None:
        """Mean over the runs that report `name` as a finite number; None where none does."""
        return _mean([run.get(name) for run in self.runs])

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of every run that has one."""
        values = [finite(run.get("accuracy")) for run in self.runs]
        return [value for value in values if value is not None]

    @property
    def best(self) -> dict[str, Any]:
        """The run with the highest accuracy, of equal ones the first."""
        return max(self.runs, key=lambda run: finite(run.get("accuracy")) or 0.0)


def finite(value: Any) -> float | None:
    """Return `value` as a float where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [number for number in map(finite, values) if number is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def cells_of(comparison: dict[str, Any]) -> dict[str, list[Cell]]:
    """Group the results of a comparison by strategy and number of training images.

    Parameters
    ----------
    comparison : the JSON object of `fx compare`

    Returns
    -------
    cells : strategy → its cells, smallest training set first; strategies in the order of their
        first result
    """
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for run in comparison.get("results") or []:
        runs.setdefault(str(run["strategy"]), {}).setdefault(int(run["n_train"]), []).append(run)
    intervals = {
        (one["strategy"], one["n_train"]): (one["interval"][0], one["interval"][1])
        for one in comparison.get("estimates") or []
    }
    return {
        strategy: [
            Cell(
                strategy,
                n_train,
                tuple(sorted(by_size[n_train], key=lambda r: r.get("seed") or 0)),
                intervals.get((strategy, n_train)),
            )
            for n_train in sorted(by_size)
        ]
        for strategy, by_size in runs.items()
    }


def sizes_of(cells: dict[str, list[Cell]]) -> list[int]:
    """Return every number of training images that any strategy has, smallest first."""
    return sorted({cell.n_train for row in cells.values() for cell in row})


def styles_of(strategies: Sequence[str]) -> dict[str, Style]:
    """Give every strategy a colour, a dash and a marker; the usual ones always get the same."""
    taken = {_PREFERRED.index(name) for name in strategies if name in _PREFERRED}
    free = (index for index in range(len(strategies) + len(taken)) if index not in taken)
    styles = {}
    for name in strategies:
        index = _PREFERRED.index(name) if name in _PREFERRED else next(free)
        styles[name] = Style(
            _COLOURS[index % len(_COLOURS)],
            _DASHES[index % len(_DASHES)],
            _SYMBOLS[index % len(_SYMBOLS)],
        )
    return styles


def describe(strategy: str) -> str:
    """Say in words what a strategy does; an empty string for one that is not known here."""
    strategy = strategy.split(" on ")[0]
    kind, _, depth = strategy.partition(":")
    if kind == "finetune" and depth.isdigit() and int(depth) > 1:
        return f"last {depth} blocks and classifier trained, starting from the logistic regression"
    return _DESCRIPTIONS.get(strategy, "")
