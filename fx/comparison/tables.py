"""Results of a comparison for other programs: a table, JSON, and trackers of experiments."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extract.files import disk_full_as_fx_error, write_whole
from fx.output import to_json

_TOLD = ("results", "skipped", "estimates", "differences", "pairs", "crossover", "forecasts")


def write_results(directory: Path, record: Mapping[str, Any]) -> None:
    """Write ``results.csv``, a row a cell, and ``results.json``, with what was made of them.

    Parameters
    ----------
    directory : of the comparison
    record : the JSON object of ``fx compare``
    """
    rows = [
        {name: value for name, value in cell.items() if not isinstance(value, list | dict)}
        for cell in record["results"]
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    table = csv.DictWriter(file, columns, restval="")
    table.writeheader()
    table.writerows(rows)
    write_whole(directory / "results.csv", file.getvalue())
    told = {name: record[name] for name in _TOLD}
    write_whole(directory / "results.json", to_json(told) + "\n")


def log_results(directory: Path, record: Mapping[str, Any], tracker: str) -> None:
    """Log every cell's numbers, by strategy and seed, with the training images as steps.

    Parameters
    ----------
    directory : where the tracker writes
    record : the JSON object of ``fx compare``
    tracker : ``tensorboard`` or ``mlflow``

    Raises
    ------
    CannotWrite
        If it has no room, or cannot write there.
    FxError
        If the tracker is unknown or not installed.
    """
    from extract.engines import resolve_device
    from finetune.settings import FinetuneSettings
    from finetune.training import make_accelerator

    accelerator = make_accelerator(
        resolve_device("cpu"), FinetuneSettings(), log_to=tracker, directory=directory
    )
    with disk_full_as_fx_error(directory):
        for cell in sorted(record["results"], key=lambda cell: int(cell["n_train"])):
            name = f"{cell['strategy']}/seed {cell['seed']}".replace(":", "-")
            numbers = {
                f"{name}/{key}": cell[key]
                for key in ("accuracy", "macro_f1", "log_loss", "ece", "seconds", "peak_memory_mb")
                if cell.get(key) is not None
            }
            accelerator.log(numbers, step=int(cell["n_train"]))
        accelerator.end_training()
