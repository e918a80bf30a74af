"""Sections of the report that show images and how far probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fx.report import figures as draw
from fx.report.cells import cells_of, styles_of
from fx.report.page import Section, figure, folded, paragraph, place, text

_FOLDED_FROM = 3  # strategies whose mistakes are shown


def reliability(comparison: dict[str, Any]) -> Section | None:
    """Accuracy against confidence, of every strategy at its largest training set."""
    cells = cells_of(comparison)
    bins = {
        strategy: row[-1].best["reliability"]
        for strategy, row in cells.items()
        if row[-1].best.get("reliability")
    }
    if not bins:
        return None
    curve = draw.reliability(bins, styles_of(list(cells)))
    note = (
        "Test images in groups of equal size, by the probability of the class that was said: on "
        "the dotted line it is right as often as it claims."
    )
    body = figure(place("reliability-curve", curve), note)
    return Section(
        "reliability",
        "Can the probabilities be trusted?",
        body,
        plots={"reliability-curve": [curve]},
    )


def feature_map(comparison: dict[str, Any]) -> Section | None:
    """Map of the features, in which a point shows its image."""
    points = (comparison.get("evidence") or {}).get("map")
    if not points:
        return None
    curve = draw.feature_map(points)
    note = (
        f"{len(points):,} images by their features, laid out so that like ones are near (t-SNE): "
        "neighbours mean something, distances and sizes of clusters do not. Hover over a point, or "
        "tap it, to see its image."
    )
    body = figure(place("feature-map", curve), note)
    return Section("map", "A map of the images", body, plots={"feature-map": [curve]})


def mistakes(comparison: dict[str, Any]) -> Section | None:
    """The mistakes that each strategy was most sure of."""
    evidence = comparison.get("evidence") or {}
    found = {name: shown for name, shown in (evidence.get("mistakes") or {}).items() if shown}
    if not found:
        return None
    parts = []
    for name, images in found.items():
        content = _gallery(images)
        heading = f"{name}, {evidence['n_train']:,} training images"
        parts.append(
            folded(heading, content)
            if len(found) >= _FOLDED_FROM
            else f"<h3>{text(heading)}</h3>\n{content}"
        )
    note = "The wrong answers that were given with the highest probability, the highest first."
    return Section("mistakes", "The surest mistakes", paragraph(note) + "".join(parts))


def disputed(comparison: dict[str, Any]) -> Section | None:
    """Images on which strategies disagree."""
    images = (comparison.get("evidence") or {}).get("disputed")
    if not images:
        return None
    note = "Test images that strategies call differently, those first that they are surest of."
    body = paragraph(note) + folded(f"{len(images)} images", _gallery(images))
    return Section("disputed", "Where strategies disagree", body)


def _gallery(images: Sequence[dict[str, Any]]) -> str:
    items = "".join(
        f'<figure><img loading="lazy" src="{text(one["image"])}" alt="{text(one["path"])}">'
        f"<figcaption><b>{text(one['label'])}</b>, called {text(one['said'])}<br>"
        f"{text(one['path'])}</figcaption></figure>\n"
        for one in images
    )
    return f'<div class="images">\n{items}</div>\n'
