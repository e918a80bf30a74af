"""How series are drawn: colour, dash and marker, in every plot the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours, safe for the colour-blind; grey stands for their black, which a dark
# page swallows, and their yellow is left out, which a white page swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F", "#E69F00", "#56B4E9")
# by plotly's names, in matplotlib's terms
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "dot": ":",
    "longdashdot": (0, (8, 3, 1, 3)),
}
SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "triangle-down": "v",
    "star": "*",
    "cross": "P",
}


@dataclass(frozen=True)
class Style:
    """How a series is drawn: no two differ in colour alone."""

    colour: str
    dash: str
    symbol: str

    @classmethod
    def number(cls, index: int) -> "Style":
        """One of the styles, which begin anew after a while."""
        kinds = (_COLOURS, tuple(DASHES), tuple(SYMBOLS))
        return cls(*(kind[index % len(kind)] for kind in kinds))


def palette(count: int) -> list[Style]:
    """So many styles."""
    return [Style.number(index) for index in range(count)]


def styles_of(wanted: Mapping[str, int | None]) -> dict[str, Style]:
    """Give each series the number of its style, or one that nobody wants.

    Parameters
    ----------
    wanted : name of the series → number of its style, if it has one; the first to want it gets it
    """
    owners = {number: name for name, number in reversed(list(wanted.items())) if number is not None}
    free = (number for number in range(len(wanted) + len(owners)) if number not in owners)
    return {
        name: Style.number(number if number is not None and owners[number] == name else next(free))
        for name, number in wanted.items()
    }
