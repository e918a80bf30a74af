"""Report of a comparison: one HTML file that opens without a network, and one image."""

from pathlib import Path
from typing import Any

from extract.files import write_whole
from fx.report.cells import cells_of, sizes_of, styles_of
from fx.report.page import page
from fx.report.sections import SECTIONS, head

_MAX_NAMED_TICKS = 8
_LINESTYLES: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "dot": ":",
    "longdashdot": (0, (8, 3, 1, 3)),
}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "triangle-down": "v",
    "star": "*",
    "cross": "P",
}


def write_report(
    path: Path, comparison: dict[str, Any], *, title: str, evidence: dict[str, Any] | None = None
) -> Path:
    """Write the report of a comparison as one self-contained HTML file.

    Parameters
    ----------
    path : file to write; its folder is made where there is none
    comparison : the JSON object of `fx compare`; what is missing in it is left out of the page
    title : of the browser's tab, and above the headline
    evidence : what ``fx.comparison.evidence`` gathered, images among it

    Returns
    -------
    path : the file written
    """
    from plotly.offline import get_plotlyjs

    shown = comparison | {"evidence": evidence}
    found = [section(shown) for section in SECTIONS]
    sections = [section for section in found if section is not None]
    document = page(title, head(comparison, title), sections, plotly=get_plotlyjs())
    # a file name need not be Unicode; what of it is not is shown as its escape
    write_whole(path, document)
    return path


def learning_curve_png(path: Path, comparison: dict[str, Any]) -> Path:
    """Draw accuracy against training images, with 95 % intervals, as a PNG of 1,200 by 720 pixels.

    Parameters
    ----------
    path : file to write; its folder is made where there is none
    comparison : the JSON object of `fx compare`

    Returns
    -------
    path : the file written
    """
    from heads.figures import new_figure, save_png

    cells = cells_of(comparison)
    styles = styles_of(list(cells))
    sizes = sizes_of(cells)
    figure = new_figure(path.parent, figsize=(7.5, 4.5), layout="constrained")
    from matplotlib.ticker import NullLocator

    axes = figure.add_subplot()
    for strategy, row in cells.items():
        style = styles[strategy]
        known = [(c.n_train, a) for c in row if (a := c.mean("accuracy")) is not None]
        bounds = [(c.n_train, *c.interval) for c in row if c.interval]
        line = {"color": style.colour, "linestyle": _LINESTYLES[style.dash]}
        axes.plot(
            [n for n, _ in known],
            [accuracy for _, accuracy in known],
            **line,
            marker=_MARKERS[style.symbol],
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
    axes.set_ylabel("accuracy on the test images")
    axes.grid(color="#d5dbe1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if cells:
        axes.legend(frameon=False)
    save_png(figure, path, dpi=160)
    return path
