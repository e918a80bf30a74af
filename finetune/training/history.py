"""History of a fine-tuning run on disk: one row an epoch, as a table and as an image."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.files import write_whole
from heads.figures import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "calibrated_loss",
    "temperature",
    "validation_accuracy",
    "learning_rate",
)


def write_history(directory: Path, history: Sequence[Mapping[str, float | None]]) -> None:
    """Write `history.csv` and `history.png` into a folder, over what was there.

    Parameters
    ----------
    directory : is made where it is missing
    history : one record an epoch, with the keys of `COLUMNS`; None (epoch 0 has no training loss)
        is an empty field and a gap in the line

    Raises
    ------
    ValueError
        If a record has a key that is not in `COLUMNS`.
    CannotWrite
        If there is no room, or nothing can be written there.
    """
    _write_table(directory / "history.csv", COLUMNS, history)
    _draw(directory / "history.png", history)


def write_steps(directory: Path, steps: Sequence[Mapping[str, float | int]]) -> None:
    """Write `steps.csv`: the loss and the learning rate of every step."""
    _write_table(directory / "steps.csv", ("step", "learning_rate", "loss"), steps)


def _write_table(
    file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, float | None]]
) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, table.getvalue())


def _draw(path: Path, history: Sequence[Mapping[str, float | None]]) -> None:
    figure = new_figure(path.parent, figsize=(9, 3.6), layout="constrained")
    from matplotlib.ticker import MaxNLocator

    for position, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, position)
        # Okabe and Ito's colours, and markers that differ too
        _plot(axes, history, f"train_{quantity}", "training", "#0072B2", "o-")
        _plot(axes, history, f"validation_{quantity}", "validation", "#D55E00", "s--")
        if quantity == "loss":
            name = "validation, calibrated"
            _plot(axes, history, "calibrated_loss", name, "#009E73", "^-.")
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#d5dbe1", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save_png(figure, path, dpi=150)


def _plot(
    axes: "Axes",
    history: Sequence[Mapping[str, float | None]],
    column: str,
    label: str,
    colour: str,
    line: str,
) -> None:
    values = [record.get(column) for record in history]
    axes.plot(
        [float(record["epoch"] or 0) for record in history],
        [float("nan") if value is None else value for value in values],
        line,
        color=colour,
        markersize=4,
        label=label,
    )
