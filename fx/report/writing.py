"""Report of a comparison: one HTML file that opens without a network, and one image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extract.files import write_whole
from fx.records import Comparison, Point
from fx.report import figures as draw
from fx.report.images import Evidence
from fx.report.page import Figures, number, render
from fx.report.styles import DASHES, SYMBOLS, Style, styles_of
from heads.metrics import METRICS, Metric

_MAX_CLASSES_IN_TABLE = 20
_MAX_CLASSES_IN_PLOT = 200
_WORST = 10  # mistakes that are listed
_SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
_MAX_NAMED_TICKS = 8


@dataclass(frozen=True)
class _Confusion:
    """Confusion of one strategy: a table, a plot, or the worst mistakes, as the classes are many.

    ``plot`` is the id of its place, ``worst`` has rows of true class, predicted class and images,
    the first of as many as ``mistaken``.
    """

    heading: str
    matrix: list[list[int]]
    as_table: bool
    plot: str
    worst: list[tuple[str, str, str]]
    mistaken: int


@dataclass(frozen=True)
class _Trainings:
    """Runs of a strategy that trains: a name each, and the ids of the places of their plots."""

    strategy: str
    names: list[str]
    plots: list[str]


@dataclass(frozen=True)
class _Counts:
    """Images by class and split."""

    columns: list[str]
    rows: list[list[str]]


def write_report(
    path: Path, comparison: Comparison, *, title: str, evidence: Evidence | None = None
) -> Path:
    """Write the report of a comparison as one self-contained HTML file.

    Parameters
    ----------
    path : file to write; its folder is made where there is none
    comparison : what was measured; what is missing in it is left out of the page
    title : of the browser's tab, and above the headline
    evidence : images to show, as ``gather_evidence`` gave them

    Returns
    -------
    path : the file written
    """
    from plotly.offline import get_plotlyjs

    curves = comparison.curves()
    points = [point for row in curves.values() for point in row]
    figures = _main_figures(comparison, evidence)
    confusions, trainings = _confusions(comparison, figures), _trainings(comparison, figures)
    decides = METRICS[comparison.metric]
    named = [METRICS[name] for name in METRICS if name != decides.name]
    metrics = [one for one in named if any(p.mean(one.name) is not None for p in points)]
    headline, figures_of_it = _headline(comparison.recommendation)
    document = render(
        "comparison.html",
        title=title,
        figures=figures,
        plotly=get_plotlyjs(),
        comparison=comparison,
        evidence=evidence,
        headline=headline,
        figures_of_it=figures_of_it,
        facts=_facts(comparison),
        curves=curves,
        metric=decides,
        bands=_what_bands_cover(comparison),
        several_seeds=any(len(point.runs) > 1 for point in points),
        fine_tunes=any(one.fine_tunes for one in comparison.strategies.values()),
        descriptions=[
            (name, one.description)
            for name, one in comparison.strategies.items()
            if one.description
        ],
        points=sorted(points, key=lambda point: _place(point, decides)),
        metrics=metrics,
        confusions=confusions,
        classes=comparison.classes,
        upright=max(map(len, comparison.classes), default=0) > 3,
        trainings=trainings,
        counts=_counts(comparison),
        settings={"snapshot": comparison.snapshot} | comparison.settings,
    )
    # a file name need not be Unicode; what of it is not is shown as its escape
    write_whole(path, document)
    return path


def _place(point: Point, metric: Metric) -> tuple[int, float]:
    """Where a point stands in a table: of many images first, then the best."""
    value = point.mean(metric.name) or 0.0
    return -point.n_train, -value if metric.higher_is_better else value


def _main_figures(comparison: Comparison, evidence: Evidence | None) -> Figures:
    """Draw what is there once; a list is empty where there is nothing to draw."""
    curves, styles = comparison.curves(), _styles(comparison)
    metric = METRICS[comparison.metric]
    points = [point for row in curves.values() for point in row]
    bins = {name: found for name, row in curves.items() if (found := row[-1].best.reliability)}
    crossing = comparison.crossover.n_train if comparison.crossover else None
    timed = any(point.mean("seconds") for point in points)
    mapped = evidence.map if evidence else []
    return {
        "learning-curve": [draw.learning_curve(curves, styles, metric, crossing)] if curves else [],
        "cost-curve": [draw.cost(curves, styles, metric)] if timed else [],
        "reliability-curve": [draw.reliability(bins, styles)] if bins else [],
        "feature-map": [draw.feature_map(mapped)] if mapped else [],
    }


def _styles(comparison: Comparison) -> dict[str, Style]:
    known = comparison.strategies
    return styles_of(
        {name: known[name].style if name in known else None for name in comparison.curves()}
    )


def _headline(recommendation: str) -> tuple[str, str]:
    """Split the first sentence off; a point inside a number ends none."""
    first = re.match(r"(.+?[.!?])\s+(?=\S)", recommendation)
    return (first[1], recommendation[first.end() :]) if first else (recommendation, "")


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    size = comparison.size
    facts: list[tuple[str, str | int | None]] = [
        ("Images", comparison.images),
        ("Classes", len(comparison.classes)),
        ("Training images", comparison.n_train),
        ("Validation images", comparison.n_validation),
        ("Test images", comparison.n_test),
        ("Backbone", comparison.backbone),
        ("Image size", f"{size} \N{MULTIPLICATION SIGN} {size}" if size else None),
        ("Unreadable files", len(comparison.failed)),
    ]
    return [(name, f"{v:,}" if isinstance(v, int) else v) for name, v in facts if v]


def _what_bands_cover(comparison: Comparison) -> str:
    """What the intervals allow for; empty where there are none."""
    sizes: dict[str, set[int]] = {}
    for one in comparison.estimates:
        if one.interval is not None:
            sizes.setdefault(one.covers, set()).add(one.n_train)
    if len(sizes) <= 1:
        return "".join(f"for {covers}" for covers in sizes)
    return "; ".join(
        f"at {', '.join(f'{n:,}' for n in sorted(found))} images for {covers}"
        for covers, found in sorted(sizes.items(), key=lambda item: min(item[1]))
    )


def _confusions(comparison: Comparison, figures: Figures) -> list[_Confusion]:
    """Take every strategy's at its largest training set; add plots of those of many classes."""
    classes, found = comparison.classes, []
    for index, row in enumerate(comparison.curves().values()):
        run, plot = row[-1].best, f"confusion-{index}"
        if not run.confusion or len(run.confusion) != len(classes):
            continue
        heading = f"{run.strategy}, {run.n_train:,} training images"
        as_table = len(classes) <= _MAX_CLASSES_IN_TABLE
        drawn = not as_table and len(classes) <= _MAX_CLASSES_IN_PLOT
        figures[plot] = [draw.confusion(run.confusion, classes, heading)] if drawn else []
        worst = _worst(run.confusion, classes)
        shown = worst[:_WORST]
        found.append(_Confusion(heading, run.confusion, as_table, plot, shown, len(worst)))
    return found


def _worst(matrix: list[list[int]], classes: Sequence[str]) -> list[tuple[str, str, str]]:
    mistakes = [
        (count, classes[true], classes[predicted])
        for true, counts in enumerate(matrix)
        for predicted, count in enumerate(counts)
        if count and predicted != true
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    return [(true, predicted, f"{count:,}") for count, true, predicted in mistakes]


def _trainings(comparison: Comparison, figures: Figures) -> list[_Trainings]:
    """List the runs that have a history, those of the largest sizes first; add their plots."""
    found = []
    for index, (strategy, row) in enumerate(comparison.curves().items()):
        runs = [run for point in reversed(row) for run in point.runs if run.history]
        if not runs:
            continue
        names = [f"{run.n_train:,} training images, seed {run.seed}" for run in runs]
        places = {f"training-{index}-{quantity}": quantity for quantity in ("loss", "accuracy")}
        for plot, quantity in places.items():
            figures[plot] = [
                draw.training(run, quantity, f"{strategy}, {name}")
                for run, name in zip(runs, names, strict=True)
            ]
        found.append(_Trainings(strategy, names, list(places)))
    return found


def _counts(comparison: Comparison) -> _Counts:
    counts = comparison.class_counts
    splits = [name for name in dict.fromkeys([*_SPLITS, *counts]) if counts.get(name)]
    classes = dict.fromkeys([*comparison.classes, *(n for split in splits for n in counts[split])])
    rows = [[n, *(number(counts[split].get(n, 0), 0) for split in splits)] for n in classes]
    total = ["all classes", *(number(sum(counts[split].values()), 0) for split in splits)]
    columns = ["Class", *(_SPLITS.get(split, split) for split in splits)]
    return _Counts(columns, [*rows, total] if splits else [])


def learning_curve_png(path: Path, comparison: Comparison) -> Path:
    """Draw the metric by training images, with 95 % intervals, as a PNG of 1,200 by 720 pixels.

    Parameters
    ----------
    path : file to write; its folder is made where there is none
    comparison : what was measured

    Returns
    -------
    path : the file written
    """
    from heads.plots import new_figure, save_png

    curves, sizes = comparison.curves(), comparison.sizes
    metric = METRICS[comparison.metric]
    styles = _styles(comparison)
    figure = new_figure(path.parent, figsize=(7.5, 4.5), layout="constrained")
    from matplotlib.ticker import NullLocator

    axes = figure.add_subplot()
    for strategy, points in curves.items():
        style = styles[strategy]
        known = [(c.n_train, v) for c in points if (v := c.mean(metric.name)) is not None]
        bounds = [(c.n_train, *c.interval) for c in points if c.interval]
        line = {"color": style.colour, "linestyle": DASHES[style.dash]}
        axes.plot(
            [n for n, _ in known],
            [value for _, value in known],
            **line,
            marker=SYMBOLS[style.symbol],
            # matplotlib takes $…$ for mathematics
            label=strategy.replace("$", r"\$"),
        )
        lows, highs = [low for _, low, _ in bounds], [high for _, _, high in bounds]
        if len(bounds) > 1:
            axes.fill_between(
                [n for n, _, _ in bounds], lows, highs, color=style.colour, alpha=0.13, linewidth=0
            )
        else:
            axes.vlines([n for n, _, _ in bounds], lows, highs, color=style.colour)
    axes.set_xscale("log")
    if len(sizes) <= _MAX_NAMED_TICKS:
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training images")
    axes.set_ylabel(f"{metric.label} on the test images")
    axes.grid(color="#d5dbe1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(frameon=False)
    save_png(figure, path, dpi=160)
    return path
