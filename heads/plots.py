"""Images of a head: the search it was chosen by, and how far its probabilities can be trusted."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from heads.figures import new_figure, save_png
from heads.head import Head
from heads.search import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# legible beside each other also to the colour-blind (Okabe and Ito)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SEARCH, RELIABILITY = "search.png", "reliability.png"
INCHES, DPI = (6.4, 4.0), 150


def write_plots(head: Head, directory: Path) -> None:
    """Draw ``search.png`` where anything was searched, and ``reliability.png`` of tested heads."""
    if len(head.search) > 1:
        save_png(_draw_search(head, directory), directory / SEARCH, dpi=DPI)
    if head.metrics:
        save_png(_draw_reliability(head, directory), directory / RELIABILITY, dpi=DPI)


def _draw_search(head: Head, directory: Path) -> Figure:
    """What C was chosen by on held-out rows, one curve a normalisation and kernel."""

    def variant(one: Candidate) -> tuple[str | None, str]:
        return one.kernel, one.normalize

    figure, axes = _figure(directory)
    chosen = (head.kernel, head.normalize)
    for colour, (name, curve) in zip(COLOURS, groupby(head.search, variant), strict=False):
        points = list(curve)
        axes.errorbar(
            [one.c for one in points],
            [one.accuracy if head.protocol else one.log_loss for one in points],
            yerr=None if head.protocol else [one.log_loss_std for one in points],
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.5 if name == chosen else 1,
            elinewidth=0.6,
            capsize=2,
            label=", ".join(part for part in name if part),
        )
    axes.axvline(head.c, color="#666666", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("neighbours" if head.kind == "knn" else "C (less penalty to the right)")
    axes.set_ylabel(f"{'accuracy' if head.protocol else 'log loss'} of held-out rows")
    by = f"{head.folds} folds (bars: deviation over them)" if head.folds else "the validation rows"
    axes.set_title(f"{head.kind}: {head.c:.3g} chosen by {by}")
    axes.legend(frameon=False)
    return figure


def _draw_reliability(head: Head, directory: Path) -> Figure:
    """Accuracy against confidence in bins of equally many test rows, before and after."""
    assert head.metrics is not None
    figure, axes = _figure(directory)
    axes.plot([0, 1], [0, 1], color="#666666", linestyle=":", linewidth=1)
    drawn = (
        ("before calibration", head.metrics.reliability_uncalibrated, "s--", COLOURS[1]),
        ("after", head.metrics.reliability, "o-", COLOURS[0]),
    )
    for label, bins, style, colour in drawn:
        if bins:
            confidence, accuracy, _ = zip(*bins, strict=True)
            axes.plot(
                confidence, accuracy, style, color=colour, markersize=4, linewidth=1, label=label
            )
    lowest = min(value for _, bins, _, _ in drawn for one in bins for value in one[:2])
    axes.set_xlim(max(0, lowest - 0.05), 1.01)
    axes.set_ylim(max(0, lowest - 0.05), 1.01)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    measured = f"{head.metrics.n_test:,} images, {head.metrics.measured_by}"
    axes.set_title(f"{head.kind}: calibration error {head.metrics['ece']:.3f} ({measured})")
    axes.legend(frameon=False)
    return figure


def _figure(directory: Path) -> tuple[Figure, Axes]:
    figure = new_figure(directory, figsize=INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.title.set_fontsize(10)
    return figure, axes
