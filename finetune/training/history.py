"""History of a fine-tuning run: a row an epoch and a row a step, as tables and as an image."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec

from extract.files import write_whole
from heads.plots import new_figure, save_png


class EpochRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One epoch; epoch 0, before training, has no training loss, and the last ones no validation.

    Attributes
    ----------
    epoch : passes over the training rows so far
    train_loss, train_accuracy : means over the epoch's steps, as the network was at each of them
    validation_loss, validation_accuracy : of the network as it was judged after the epoch
    calibrated_loss, temperature : the validation log loss at the temperature that suits it best
    learning_rate : of the epoch's last step
    """

    epoch: int
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    calibrated_loss: float | None = None
    temperature: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float | None = None


class StepRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step, counted from 1: its learning rate, and the loss before it."""

    step: int
    learning_rate: float
    loss: float


def write_history(directory: Path, history: Sequence[EpochRow], *, picture: bool = True) -> None:
    """Write `history.csv` and, as a picture, `history.png` into a folder, over what was there.

    What is None is an empty field, and a gap in the line.

    Parameters
    ----------
    directory : is made where it is missing
    history : one row an epoch

    Raises
    ------
    CannotWrite
        If there is no room, or nothing can be written there.
    """
    _write_table(directory / "history.csv", EpochRow, history)
    if picture:
        _draw(directory / "history.png", history)


def write_steps(directory: Path, steps: Sequence[StepRow]) -> None:
    """Write `steps.csv`: the loss and the learning rate of every step."""
    _write_table(directory / "steps.csv", StepRow, steps)


def _write_table(file: Path, kind: type[msgspec.Struct], rows: Sequence[msgspec.Struct]) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(kind.__struct_fields__)
    writer.writerows(msgspec.structs.astuple(row) for row in rows)
    write_whole(file, table.getvalue())


def _draw(path: Path, history: Sequence[EpochRow]) -> None:
    figure = new_figure(path.parent, figsize=(9, 3.6), layout="constrained")
    from matplotlib.ticker import MaxNLocator

    epochs = [row.epoch for row in history]
    for position, quantity in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, position)
        # Okabe and Ito's colours, and markers that differ too
        lines = [
            (f"train_{quantity}", "training", "#0072B2", "o-"),
            (f"validation_{quantity}", "validation", "#D55E00", "s--"),
        ]
        if quantity == "loss":
            lines.append(("calibrated_loss", "validation, calibrated", "#009E73", "^-."))
        for column, label, colour, line in lines:
            found = [getattr(row, column) for row in history]
            values = [float("nan") if value is None else value for value in found]
            axes.plot(epochs, values, line, color=colour, markersize=4, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#d5dbe1", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save_png(figure, path, dpi=150)
