"""Cells of a comparison: one strategy, fitted on one training subset and measured on the test rows.

Each is measured in a process of its own, alone, so that its memory and its time are its own.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.files import disk_full_as_fx_error, write_whole
from fx.comparison.plan import FROM_SCRATCH, Cell
from fx.comparison.subsets import nested_subset
from fx.memory import peak_memory_mb, reset_peak_memory
from fx.options import Options, open_backbone, read_snapshot
from fx.output import Begin
from fx.runs import finish
from fx.stages.predict import milliseconds_per_image
from fx.stages.rows import groups_of, keys_of, labels_of, training_data, used_rows
from heads.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract.backbones import Backbone
    from extract.images import ImageRow, Snapshot
    from extract.store import FeatureSet
    from finetune.settings import FinetuneSettings
    from finetune.split import Resources

# test images whose prediction is timed
TIMED = 64
# images a step
BATCH_SIZE = 32
# training rows that a head is fitted on which decides on flips
DECIDING = 4_000
# folder, in that of a comparison, of what was decided on flips
FLIPS = "flips"
_HEAD_FILES = ("head.skops", "head.json")
_NETWORK_FILES = ("model.safetensors", "model.json")


@dataclass(frozen=True)
class ComparisonContext:
    """What all cells of a comparison share; it can be sent to another process.

    Attributes
    ----------
    options : of the network and the store, each of them said
    epochs : most epochs of a fine-tuning, None for the usual
    class_weight : ``balanced`` or None
    features : name of the feature set
    snapshot : name of the snapshot
    directory : of the comparison
    augment : of fine-tunings, once it has been decided
    """

    options: Options
    epochs: int | None
    class_weight: str | None
    features: str
    snapshot: str
    directory: Path
    augment: str = "auto"

    @property
    def cache(self) -> Path:
        """Folder of activations, which all cells share."""
        return self.directory / "cache"

    def cell_directory(self, cell: Cell) -> Path:
        """Folder of a cell."""
        name = f"{cell.strategy}-{cell.n_train}-{cell.seed}".replace(":", "-")
        return self.directory / "cells" / name


@dataclass(frozen=True)
class _Opened:
    """A context with its files open."""

    context: ComparisonContext
    features: FeatureSet
    snapshot: Snapshot
    begin: Begin


def _open(context: ComparisonContext, begin: Begin) -> _Opened:
    from extract.store import FeatureStore

    store = FeatureStore(context.options.store)
    snapshot = read_snapshot(store, dataclasses.replace(context.options, snapshot=context.snapshot))
    return _Opened(context, store.open_set(context.features), snapshot, begin)


def measure_cell(
    context: ComparisonContext, cell: Cell, shared_seconds: float, *, begin: Begin
) -> dict[str, Any]:
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
    with disk_full_as_fx_error(context.cell_directory(cell)):
        return _measure_cell(context, cell, shared_seconds, begin)


def _measure_cell(
    context: ComparisonContext, cell: Cell, shared_seconds: float, begin: Begin
) -> dict[str, Any]:
    opened = _open(context, begin)
    directory = context.cell_directory(cell)
    rows = nested_subset(opened.snapshot.split("train"), cell.n_train, cell.seed)
    begin(f"{cell.strategy}, {len(rows)} training images")
    reset_peak_memory()
    begun = time.perf_counter()
    measure = _measure_head if cell.strategy in KINDS else _measure_network
    measured, searched, probabilities = measure(opened, cell.strategy, rows, cell.seed, directory)
    _keep_probabilities(directory, probabilities)
    record = {
        "strategy": cell.strategy,
        "n_train": len(rows),
        "seed": cell.seed,
        **measured,
        **_answers(probabilities, _numbers(opened.snapshot.split("test"), measured["classes"])),
        "settings_tried": searched,
        "seconds": time.perf_counter() - begun,
        # of the frozen blocks over all images, once for all cells at this depth, as extraction is
        "shared_seconds": shared_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "deployed_mb": _deployed_bytes(opened, cell.strategy, directory) / 1e6,
        "predict_ms": _predict_ms(opened, directory),
    }
    _drop_what_is_not_used(directory, len(rows) < len(opened.snapshot.split("train")))
    return finish(directory, record)


def fill_shared(context: ComparisonContext, strategy: str, *, begin: Begin) -> float:
    """Run the frozen blocks over all images once for all cells; return the seconds."""
    from finetune.finetuning import fill_activations

    opened = _open(context, begin)
    begun = time.perf_counter()
    fill_activations(
        network_of(context, strategy, 0),
        used_rows(opened.snapshot),
        opened.snapshot.split("train"),
        Path(opened.snapshot.root),
        settings=settings_of(context, strategy, 0),
        resources=_resources(opened),
    )
    return time.perf_counter() - begun


def decide_flips(context: ComparisonContext, *, begin: Begin) -> dict[str, Any]:
    """Decide for all fine-tunings whether images are flipped, and keep the record.

    On some of the training rows, set aside as a fine-tuning does where there are no validation
    rows; ``augment`` is what follows, ``said`` says why.
    """
    from finetune.data import set_validation_aside
    from finetune.flips import try_flips
    from finetune.starting_head import starting_head

    begun = time.perf_counter()
    opened = _open(context, begin)
    seed, rows = context.options.seed, opened.snapshot.split("train")
    rows = nested_subset(rows, min(len(rows), DECIDING), seed)
    validation = opened.snapshot.split("val")
    if not validation:
        rows, validation = set_validation_aside(rows, seed)
    features = opened.features.features
    begin("deciding on flips")
    trial = try_flips(
        starting_head(features, rows, class_weight=context.class_weight, seed=seed),
        open_backbone(context.options),
        features,
        rows,
        validation,
        Path(opened.snapshot.root),
        _resources(opened),
    )
    record = {**trial.as_dict(), "augment": trial.augment, "said": trial.said}
    return finish(context.directory / FLIPS, record | {"seconds": time.perf_counter() - begun})


def _measure_head(
    opened: _Opened, strategy: str, rows: list[ImageRow], seed: int, directory: Path
) -> tuple[dict[str, Any], int, NDArray[np.float64]]:
    from heads.files import save_head
    from heads.fitting import fit_head
    from heads.evaluation import evaluate

    validation, test = opened.snapshot.split("val"), opened.snapshot.split("test")
    features, read = opened.features, opened.features.features
    head = fit_head(
        read(keys_of(rows)),
        labels_of(rows),
        kind=strategy,
        class_weight=opened.context.class_weight,
        groups=groups_of(rows, features.hashes(keys_of(rows))),
        validation=(read(keys_of(validation)), labels_of(validation)) if validation else None,
        spec=features.spec,
        source={"weights": features.weights_source},
        seed=seed,
    )
    save_head(head, directory)
    probabilities = head.predict_proba(read(keys_of(test)))
    metrics = evaluate(probabilities, _numbers(test, head.classes), head.classes)
    measured = {
        **metrics.as_dict(),
        "classes": head.classes,
        "n_fitted": head.n_train,
        "c": head.c,
        "calibration": head.calibration.as_dict(),
        "trainable_parameters": head.parameters,
    }
    return measured, len(head.search), probabilities


def _measure_network(
    opened: _Opened, strategy: str, rows: list[ImageRow], seed: int, directory: Path
) -> tuple[dict[str, Any], int, NDArray[np.float64]]:
    from finetune.finetuning import finetune

    result = finetune(
        network_of(opened.context, strategy, seed),
        training_data(opened.snapshot, rows),
        None if strategy in FROM_SCRATCH else opened.features.features,
        settings=settings_of(opened.context, strategy, seed),
        directory=directory,
        resources=_resources(opened),
        with_limits=False,
    )
    measured = {
        **result.metrics.as_dict(),
        "classes": result.classes,
        "trainable_parameters": result.trainable_parameters,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "n_fitted": result.n_fitted,
        "augment": result.augment,
        "calibration": result.calibration.as_dict(),
        "history": result.history,
    }
    # one recipe, of which an epoch is chosen
    return measured, 1 + result.epochs, result.probabilities


def _keep_probabilities(directory: Path, probabilities: NDArray[np.float64]) -> None:
    """Write ``probabilities.npy``: float32 of shape (test images, classes)."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, probabilities.astype(np.float32))
    write_whole(directory / "probabilities.npy", file.getvalue())


def _answers(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> dict[str, Any]:
    """Say of every test image which class was predicted, how surely, and which it is."""
    return {
        "predicted": probabilities.argmax(axis=1).tolist(),
        "confidence": [round(float(sure), 4) for sure in probabilities.max(axis=1)],
        "truth": truth.tolist(),
    }


def settings_of(context: ComparisonContext, strategy: str, seed: int) -> FinetuneSettings:
    """Decide how a strategy that trains a network trains it."""
    from extract.engines import resolve_device, training_precision
    from finetune.settings import FinetuneSettings

    scratch = strategy in FROM_SCRATCH
    depth = "all" if scratch else strategy.partition(":")[2]
    device = resolve_device(context.options.device)
    return FinetuneSettings(
        unfreeze="all" if depth == "all" else int(depth),
        from_scratch=scratch,
        epochs=context.epochs,
        batch_size=context.options.batch_size or BATCH_SIZE,
        class_weight=context.class_weight,
        augment="none" if scratch else context.augment,
        precision=training_precision(context.options.precision, device),
        seed=seed,
    )


def _resources(opened: _Opened) -> Resources:
    from extract.engines import resolve_device
    from finetune.split import Resources

    options = opened.context.options
    return Resources(
        device=resolve_device(options.device),
        cache=opened.context.cache,
        activation_rows=used_rows(opened.snapshot),
        augmented_rows=opened.snapshot.split("train"),
        engine=options.engine,
        precision=options.precision,
        batch_size=options.batch_size,
        max_image_mb=options.max_image_mb,
        progress=opened.begin,
    )


def network_of(context: ComparisonContext, strategy: str, seed: int) -> Backbone:
    """Load the network that a strategy trains."""
    options = context.options
    if strategy in FROM_SCRATCH:
        name = options.backbone if strategy == "scratch" else strategy
        options = dataclasses.replace(options, backbone=name, weights="random")
    return open_backbone(options, seed=seed)


def _numbers(rows: Sequence[ImageRow], classes: Sequence[str]) -> NDArray[np.int64]:
    import numpy as np

    return np.array([classes.index(label) for label in labels_of(rows)])


def _deployed_bytes(opened: _Opened, strategy: str, directory: Path) -> int:
    """Bytes of what predictions need: a head and the network below it, or the network alone."""
    is_head = strategy in KINDS
    names = _HEAD_FILES if is_head else _NETWORK_FILES
    total = sum((directory / name).stat().st_size for name in names)
    if is_head:
        module = open_backbone(opened.context.options).module
        total += sum(t.numel() * t.element_size() for t in module.state_dict().values())
    return total


def _predict_ms(opened: _Opened, directory: Path) -> float:
    root = Path(opened.snapshot.root)
    files = [root / row.path for row in opened.snapshot.split("test")[:TIMED]]
    return milliseconds_per_image(directory, files, opened.context.options)


def _drop_what_is_not_used(directory: Path, partial: bool) -> None:
    """A model of some of the images is measured, not used: it would only fill the disk."""
    names = ["training.safetensors"]
    if partial:
        names += [*_HEAD_FILES, *_NETWORK_FILES]
    for name in names:
        (directory / name).unlink(missing_ok=True)


def drop_shared(context: ComparisonContext) -> None:
    """Delete what ``fill_shared`` kept."""
    shutil.rmtree(context.cache, ignore_errors=True)
