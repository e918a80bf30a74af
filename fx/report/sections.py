"""Sections of the report, in the order of reading.

Each is a function of the comparison alone; it returns None where there is nothing to show.
"""

import re
from collections.abc import Callable
from typing import Any

from fx.report.confusion import confusion
from fx.report.differences import differences
from fx.report.evidence import disputed, feature_map, mistakes, reliability
from fx.report.measured import cost, curve, forecasts, results
from fx.report.page import Section, pairs, paragraph, text
from fx.report.setup import images, repeat, training

SECTIONS: tuple[Callable[[dict[str, Any]], Section | None], ...] = (
    curve,
    forecasts,
    cost,
    results,
    differences,
    confusion,
    reliability,
    mistakes,
    disputed,
    feature_map,
    training,
    images,
    repeat,
)


def head(comparison: dict[str, Any], title: str) -> str:
    """Return the HTML above the first section: the recommendation, and what was compared."""
    recommendation = str(comparison.get("recommendation") or "").strip()
    headline, _, rest = recommendation.partition("\n")
    if not rest:
        # The first sentence is the headline; a point inside a number ends none.
        first = re.match(r"(.+?[.!?])\s+(?=\S)", recommendation)
        headline, rest = (
            (first[1], recommendation[first.end() :]) if first else (recommendation, "")
        )
    parts = [
        paragraph(title, kind="eyebrow") if headline else "",
        f"<h1>{text(headline or title)}</h1>\n",
        paragraph(rest.strip(), kind="lead") if rest else "",
        paragraph(quadrant) if (quadrant := (comparison.get("quadrant") or {}).get("said")) else "",
        pairs(_facts(comparison), kind="facts"),
    ]
    return "".join(parts)


def _facts(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    size = comparison.get("size")
    facts = [
        ("Images", comparison.get("images")),
        ("Classes", len(comparison.get("classes") or []) or None),
        ("Training images", comparison.get("n_train")),
        ("Validation images", comparison.get("n_validation") or None),
        ("Test images", comparison.get("n_test")),
        ("Backbone", comparison.get("backbone")),
        ("Image size", f"{size} \N{MULTIPLICATION SIGN} {size}" if size else None),
        ("Unreadable files", len(comparison.get("failed") or []) or None),
    ]
    return [
        (name, f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in facts
        if value is not None
    ]
