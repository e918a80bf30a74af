"""History of a fine-tuning run on disk: one row an epoch, as a table and as a picture."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
)


def write_history(directory: Path, history: Sequence[Mapping[str, float | None]]) -> None:
    """Write `history.csv` and `history.png` into a folder, over what was there.

    Parameters
    ----------
    directory : made where there is none
    history : one record an epoch, with the keys of `COLUMNS`; None (epoch 0 has no training loss)
        is an empty field and a gap in the line

    Raises
    ------
    ValueError
        If a record has a key that is not in `COLUMNS`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "history.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(history)
    _draw(directory / "history.png", history)


def write_steps(directory: Path, steps: Sequence[Mapping[str, float | int]]) -> None:
    """Write `steps.csv`: the loss and the learning rate of every step."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "steps.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("step", "learning_rate", "loss"))
        writer.writeheader()
        writer.writerows(steps)


def _draw(path: Path, history: Sequence[Mapping[str, float | None]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for position, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, position)
        # two of Okabe and Ito's colours, and markers that differ too
        _plot(axes, history, "train", quantity, "#0072B2", "o-")
        _plot(axes, history, "validation", quantity, "#D55E00", "s--")
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#d5dbe1", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)


def _plot(
    axes: "Axes",
    history: Sequence[Mapping[str, float | None]],
    side: str,
    quantity: str,
    colour: str,
    line: str,
) -> None:
    values = [record.get(f"{side}_{quantity}") for record in history]
    axes.plot(
        [float(record["epoch"] or 0) for record in history],
        [float("nan") if value is None else value for value in values],
        line,
        color=colour,
        markersize=4,
        label="training" if side == "train" else side,
    )
