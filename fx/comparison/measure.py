"""Measuring the cells of a comparison: one strategy, on one training subset, on the test rows.

Each is measured in a process of its own, alone, so that its memory and its time are its own.
"""

import dataclasses
import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from extract.backbones import FAMILIES
from extract.errors import CannotWrite, FxError
from extract.files import check_room, delete, disk_full_as_fx_error, write_whole
from extract.images import ImageRow, group_numbers, image_place
from extract.registry import Registry
from fx.comparison.context import (
    TIMED,
    ComparisonContext,
    NetworkCost,
    OpenContext,
    Subset,
    nested_subset,
    open_context,
)
from fx.comparison.own_process import in_own_process
from fx.comparison.plan import Cell
from fx.comparison.strategies import STRATEGIES, Fitted, strategy_of
from fx.options import open_backbone, open_engine
from fx.output import Begin
from fx.records import Measurement, Skipped
from fx.runs import Run
from fx.stages.memory import peak_memory_mb, reset_peak_memory
from fx.stages.predict import milliseconds_per_image, seconds_per_image, source_of
from fx.stages.rows import labels_of
from heads.evaluation import evaluate
from heads.kinds import HEADS
from heads.metrics import METRICS

PROBABILITIES = "probabilities.npy"
_REGISTRIES: tuple[Registry[Any], ...] = (FAMILIES, HEADS, METRICS, STRATEGIES)


def measure(
    context: ComparisonContext, cells: Sequence[Cell], *, begin: Begin
) -> tuple[list[tuple[Measurement, Path]], list[Skipped]]:
    """Measure the cells that are not finished, or whose files are damaged.

    Returns
    -------
    measured : records of all, each with the folder that has its ``probabilities.npy``
    skipped : those that could not be measured

    Raises
    ------
    CannotWrite
        If a disk is full, or cannot be written to: that would befall the other cells, too.
    """
    check_room(context.directory, 0)
    added = [registry.added for registry in _REGISTRIES]
    run: Callable[..., Any] = partial(in_own_process, _with_added, added, begin=begin)
    for spelled in dict.fromkeys(cell.strategy for cell in cells):
        context = strategy_of(spelled).decide(context, run)
    measured: list[tuple[Measurement, Path]] = []
    skipped: list[Skipped] = []
    prepared: set[str] = set()
    for cell in cells:
        try:
            kept = run_of(context, cell)
            if context.options.fresh:
                kept.forget()
            if (record := _record_of(kept)) is not None:
                measured.append((record, kept.directory))
                continue
            strategy, seconds = strategy_of(cell.strategy), 0.0
            if context.network is None and (strategy.on_features or strategy.fine_tunes):
                known = None if context.options.fresh else _cost_in(context).kept(NetworkCost)
                cost = known or run(measure_network, context)
                context = dataclasses.replace(context, network=cost)
            if strategy.prepares and cell.strategy not in prepared:
                seconds = run(prepare_cells, context, cell.strategy)
                prepared.add(cell.strategy)
            measured.append((run(measure_cell, context, cell, seconds), kept.directory))
        except CannotWrite:
            raise
        except FxError as error:
            # what one strategy cannot do at one size shall not cost the others
            skipped.append(Skipped(*cell, str(error)))
    shutil.rmtree(context.cache, ignore_errors=True)
    return measured, skipped


def _with_added(
    added: Sequence[Mapping[str, tuple[Any, str]]],
    work: Callable[..., Any],
    *arguments: object,
    begin: Begin,
) -> Any:
    """Call a function in a process that knows nothing of what was added to the registries."""
    for registry, items in zip(_REGISTRIES, added, strict=True):
        for name, (item, help_) in items.items():
            registry.add(name, item, help_)
    return work(*arguments, begin=begin)


def measure_network(context: ComparisonContext, *, begin: Begin) -> NetworkCost:
    """Time the pretrained network on some of the test images, and keep that.

    Below a head, and fine-tuned, it takes the same.
    """
    opened = open_context(context, begin)
    begin("timing the network")
    root = opened.snapshot.root
    files = [image_place(root, row.path) for row in opened.tested_rows[:TIMED]]
    source = source_of(files, context.options.max_image_mb)
    backbone = open_backbone(context.options)
    seconds, _ = seconds_per_image(open_engine(context.options, backbone), source, 1)
    tensors = backbone.module.state_dict().values()
    cost = NetworkCost(1000 * seconds, sum(t.numel() * t.element_size() for t in tensors))
    with disk_full_as_fx_error(context.directory):
        _cost_in(context).finish(cost)
    return cost


def _cost_in(context: ComparisonContext) -> Run:
    return Run(context.directory / "network")


def run_of(context: ComparisonContext, cell: Cell) -> Run:
    """Find the folder of a cell."""
    name = f"{cell.strategy}-{cell.n_train}-{cell.seed}".replace(":", "-")
    return Run(context.directory / "cells" / name)


def _record_of(run: Run) -> Measurement | None:
    """Read the record of a cell; None where it is not finished, or what is kept is damaged."""
    if (found := run.kept(Measurement)) is None:
        return None
    try:
        probabilities = np.load(run.directory / PROBABILITIES, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    shape = (len(found.truth or ()), len(found.classes or ()))
    return found if probabilities.shape == shape else None


def prepare_cells(context: ComparisonContext, strategy: str, *, begin: Begin) -> float:
    """Compute what all cells of a strategy share; return the seconds."""
    opened = open_context(context, begin)
    begun = time.perf_counter()
    strategy_of(strategy).prepare(opened)
    return time.perf_counter() - begun


def measure_cell(
    context: ComparisonContext, cell: Cell, shared_seconds: float, *, begin: Begin
) -> Measurement:
    """Fit one strategy on one training subset, measure it, and keep the record.

    Parameters
    ----------
    context : what it shares with others
    cell : which one
    shared_seconds : of work that was done for it and others, kept in the record

    Raises
    ------
    CannotWrite
        If there is no room for what is kept, or nothing can be written.
    FxError
        If the strategy cannot be fitted on so many images.
    """
    run = run_of(context, cell)
    with disk_full_as_fx_error(run.directory):
        run.finish(_measured(context, cell, run.directory, shared_seconds, begin))
    # as it is read the next time: JSON has no numbers that are not finite
    return run.result(Measurement)


def _measured(
    context: ComparisonContext, cell: Cell, directory: Path, shared_seconds: float, begin: Begin
) -> Measurement:
    opened, strategy = open_context(context, begin), strategy_of(cell.strategy)
    parts = opened.of_folds(cell.seed) if context.folds > 1 else [opened]
    begin(f"{cell.strategy}, {cell.n_train} training images")
    reset_peak_memory()
    begun = time.perf_counter()
    fits: list[tuple[Subset, Fitted]] = []
    for number, part in enumerate(parts):
        rows = nested_subset(part.training_rows, cell.n_train, cell.seed)
        folder = directory / f"fold-{number}" if len(parts) > 1 else directory
        subset = Subset(rows, cell.seed, folder)
        fits.append((subset, strategy.fit(part, subset)))
    subset, fitted = fits[0]
    tested = opened.tested_rows
    classes, probabilities, fold = _joined(tested, parts, [one for _, one in fits])
    truth = [classes.index(label) for label in labels_of(tested)]
    evaluation = fitted.evaluation if len(fits) == 1 else None
    if evaluation is None:
        evaluation = evaluate(probabilities, np.array(truth), classes, groups=group_numbers(tested))
    if len(fits) > 1:
        evaluation = replace(evaluation, measured_by=f"{len(fits)} outer folds")
    file = io.BytesIO()
    np.save(file, probabilities.astype(np.float32))
    write_whole(directory / PROBABILITIES, file.getvalue())
    record = {
        "strategy": cell.strategy,
        "n_train": max(len(subset.rows) for subset, _ in fits),
        "seed": cell.seed,
        **evaluation.as_dict(),
        "classes": classes,
        **fitted.details,
        "predicted": probabilities.argmax(axis=1).tolist(),
        "confidence": [round(float(sure), 4) for sure in probabilities.max(axis=1)],
        "truth": truth,
        "fold": fold.tolist() if len(fits) > 1 else None,
        "settings_tried": fitted.settings_tried,
        "seconds": (time.perf_counter() - begun) / len(fits),
        "shared_seconds": shared_seconds,
        "peak_memory_mb": peak_memory_mb(),
    }
    used = sum((subset.directory / name).stat().st_size for name in fitted.files)
    if fitted.milliseconds is not None and (network := context.network) is not None:
        below = network.bytes if strategy.on_features else 0
        record["deployed_mb"] = (used + below) / 1e6
        record["predict_ms"] = fitted.milliseconds + network.milliseconds
    elif fitted.milliseconds is None and fitted.files:
        root, timed = opened.snapshot.root, parts[0].snapshot.split("test")[:TIMED]
        files = [image_place(root, row.path) for row in timed]
        record["deployed_mb"] = used / 1e6
        record["predict_ms"] = milliseconds_per_image(subset.directory, files, context.options)
    # what is measured on some of the images is not used: it would only fill the disk
    whole = len(fits) == 1 and len(subset.rows) == len(opened.trainable_rows)
    for name in ("training.safetensors", *(() if whole else fitted.files)):
        delete(directory / name)
    for folder in (one.directory for one, _ in fits if one.directory != directory):
        with suppress(OSError):
            delete(folder)
    return Measurement.from_json(record)


def _joined(
    tested: Sequence[ImageRow], parts: Sequence[OpenContext], fits: Sequence[Fitted]
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.intp]]:
    """Put the probabilities of all folds in the order of the rows; say each row's fold, too."""
    classes = fits[0].classes
    place = {row.path: number for number, row in enumerate(tested)}
    probabilities = np.zeros((len(tested), len(classes)))
    fold = np.zeros(len(tested), np.intp)
    for number, (part, fitted) in enumerate(zip(parts, fits, strict=True)):
        rows = [place[row.path] for row in part.snapshot.split("test")]
        columns = [classes.index(name) for name in fitted.classes]
        probabilities[np.ix_(rows, columns)] = fitted.probabilities
        fold[rows] = number
    return classes, probabilities, fold
