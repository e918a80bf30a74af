"""Figures, drawn without a screen: the search that chose a head, and its calibration.

That no cache of matplotlib's can be written costs seconds, and is neither told nor an error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from extract.files import UNFINISHED, Place, disk_full_as_fx_error, write_whole
from heads.head import Head
from heads.learner import Candidate

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
            [one.log_loss for one in points],
            yerr=[one.log_loss_std for one in points],
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
    axes.xaxis.set_major_formatter("{x:g}")  # powers of ten would be set as mathematics, slowly
    axes.minorticks_off()
    axes.set_xlabel(head.learner.grid_label)
    axes.set_ylabel("log loss of held-out rows")
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
    figure = new_figure(directory, figsize=INCHES)
    # not laid out by what is drawn, which would draw it twice
    axes = figure.add_axes((0.1, 0.13, 0.87, 0.78))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.title.set_fontsize(10)
    return figure, axes


def new_figure(beside: Place, **options: Any) -> Figure:
    """Make a figure to draw on; matplotlib is imported here, so that predictions do without it.

    Parameters
    ----------
    beside : folder that it is going to be written to
    options : of ``matplotlib.figure.Figure``

    Raises
    ------
    CannotWrite
        If there is no folder at all that matplotlib could use for a moment.
    """
    # it would tell of fonts, and of caches that it cannot write
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib.figure
    except OSError:
        if not isinstance(beside, Path):
            raise
        # neither its own folder nor a temporary one can be made; of what is half imported, the
        # rest cannot be had
        for name in [one for one in sys.modules if one.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        with disk_full_as_fx_error(beside):
            beside.mkdir(parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(suffix=UNFINISHED, dir=beside) as folder,
                patch.dict(os.environ, MPLCONFIGDIR=folder),
            ):
                import matplotlib.figure

    return matplotlib.figure.Figure(**options)


def save_png(figure: Figure, file: Place, *, dpi: int) -> None:
    """Draw a figure into a PNG file; raises as ``extract.files.durable.write_whole`` does."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    write_whole(file, drawn.getvalue())
