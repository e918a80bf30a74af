"""The comparison: every strategy on the same nested training subsets and the same test rows."""

from __future__ import annotations

import copy
import dataclasses
import platform
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.memory import peak_memory_mb, reset_peak_memory
from fx.options import Options, open_backbone, open_engine, read_snapshot
from fx.rows import check_labelled, groups_of, keys_of, labels_of
from fx.runs import finish, finished, run_directory
from fx.stages import fill_store
from fx.subsets import nested_subset, subset_sizes
from fx.verdict import crossover, paired_tests, recommend
from heads import KINDS

if TYPE_CHECKING:
    from extract import Backbone, Engine, FeatureSet, ImageRow, Snapshot
    from finetune import FinetuneSettings, Resources

Begin = Callable[[str], Callable[[int, int], None]]

DEFAULT_STRATEGIES = ("logreg", "svm", "finetune:1")


@dataclass(frozen=True)
class Plan:
    """What a comparison measures.

    Attributes
    ----------
    strategies : kinds of head, ``finetune:K``, ``finetune:all``, ``scratch``
    sizes : training images in all; empty: evenly in the logarithm up to all rows
    seeds : how many training subsets of each size are drawn
    epochs : most epochs of a fine-tuning
    """

    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    sizes: tuple[int, ...] = ()
    seeds: int = 1
    epochs: int = 8

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            kind, _, depth = strategy.partition(":")
            whole = strategy in (*KINDS, "scratch")
            deep = kind == "finetune" and (depth == "all" or depth.isdecimal())
            if not whole and not deep:
                raise ValueError(
                    f"unknown strategy {strategy!r}; choose from {', '.join(KINDS)}, finetune:K, "
                    "finetune:all, scratch"
                )
        if not self.strategies:
            raise ValueError("no strategies; choose from logreg, svm, finetune:K, scratch")
        if any(size < 2 for size in self.sizes):
            raise ValueError(f"a training set needs at least 2 images; got {min(self.sizes)}")
        if self.seeds < 1 or self.epochs < 1:
            raise ValueError("seeds and epochs must be at least 1")


@dataclass(frozen=True)
class _Bench:
    """What all cells of a comparison share."""

    options: Options
    plan: Plan
    backbone: Backbone
    engine: Engine
    features: FeatureSet
    snapshot: Snapshot
    directory: Path
    begin: Begin

    @property
    def cache(self) -> Path:
        """Folder of activations, which all cells share."""
        return self.directory / "cache"

    @property
    def used_rows(self) -> list[ImageRow]:
        """Rows that are in a split."""
        return [row for row in self.snapshot.rows if row.split]


def compare(images: Path, options: Options, plan: Plan, *, begin: Begin) -> dict[str, Any]:
    """Measure strategies over growing training sets and write the report.

    Every finished cell (strategy, size, seed) is kept, so that an interrupted comparison, or one
    that is asked for more, computes only what is new.

    Parameters
    ----------
    images : folder or table of labelled images
    options : backbone, store and the like
    plan : what is measured
    begin : given what is being done, returns a progress callback

    Returns
    -------
    the JSON object of ``fx compare``

    Raises
    ------
    FxError
        If the images do not suffice.
    """
    from extract import FeatureStore, FxError, find_images
    from fx.report import learning_curve_png, write_report

    backbone = open_backbone(options)
    engine = open_engine(options, backbone)
    extracted = fill_store(find_images(images), backbone, engine, options, begin=begin)
    store = FeatureStore(options.store)
    snapshot = read_snapshot(store, dataclasses.replace(options, snapshot=extracted.snapshot))
    check_labelled(snapshot)
    features = store.open_set(extracted.spec)
    _check_depths(plan, backbone)
    identity = {
        "features": features.name,
        "snapshot": snapshot.fingerprint,
        "epochs": plan.epochs,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "device": engine.device.type,
    }
    directory = run_directory(options.out, f"compare-{backbone.name}", identity)
    bench = _Bench(
        options,
        plan,
        backbone,
        engine,
        features,
        snapshot,
        directory,
        begin,
    )
    sizes = subset_sizes(plan.sizes, len(snapshot.split("train")), len(snapshot.classes))
    cells, skipped = [], []
    for seed in range(options.seed, options.seed + plan.seeds):
        for size in sizes:
            for strategy in plan.strategies:
                try:
                    cells.append(_cell(bench, strategy, size, seed))
                except FxError as error:
                    # what one strategy cannot do at one size shall not cost the others
                    skipped.append(
                        {"strategy": strategy, "n_train": size, "seed": seed, "reason": str(error)}
                    )
    if not cells:
        raise FxError(skipped[0]["reason"])
    shutil.rmtree(bench.cache, ignore_errors=True)
    results = [{k: v for k, v in cell.items() if k != "predicted"} for cell in cells]
    pairs = paired_tests(cells)
    record = {
        "images": str(images),
        "backbone": backbone.name,
        "weights": backbone.weights,
        "size": backbone.preprocessing.size,
        "snapshot": snapshot.name,
        "classes": snapshot.classes,
        "n_train": len(snapshot.split("train")),
        "n_validation": len(snapshot.split("val")),
        "n_test": len(snapshot.split("test")),
        "results": results,
        "skipped": skipped,
        "pairs": pairs,
        "recommendation": recommend(results, pairs),
        "crossover": crossover(results),
        # what it cost when it was done; features that were there cost nothing worth telling
        "extraction_seconds": extracted.seconds
        if extracted.new
        else (finished(directory) or {}).get("extraction_seconds"),
        "failed": extracted.failed,
        "conflicts": extracted.conflicts,
        "leaks": extracted.leaks,
        "class_counts": snapshot.counts(),
        "settings": {
            **{k: str(v) for k, v in dataclasses.asdict(options).items()},
            **{k: str(v) for k, v in dataclasses.asdict(plan).items()},
        },
        "versions": _versions(),
        "commands": [_command(images, options, plan, sizes)],
        "report": str(directory / "report.html"),
    }
    finish(directory, record)
    write_report(directory / "report.html", record, title=f"fx compare: {images}")
    learning_curve_png(directory / "learning_curve.png", record)
    return record


def _cell(bench: _Bench, strategy: str, size: int, seed: int) -> dict[str, Any]:
    name = f"{strategy}-{size}-{seed}".replace(":", "-")
    directory = bench.directory / "cells" / name
    before = finished(directory, fresh=bench.options.fresh)
    if before is not None:
        return before
    rows = nested_subset(bench.snapshot.split("train"), size, seed)
    measure, shared = _head_cell, 0.0
    if strategy not in KINDS:
        measure, shared = _network_cell, _fill_activations(bench, strategy)
    bench.begin(f"{strategy}, {len(rows)} training images")
    reset_peak_memory()
    begun = time.perf_counter()
    measured = measure(bench, strategy, rows, seed, directory)
    record = {
        "strategy": strategy,
        "n_train": len(rows),
        "seed": seed,
        **measured,
        "seconds": time.perf_counter() - begun,
        # of the frozen blocks over all images, once for all cells at this depth, as extraction is
        "shared_seconds": shared,
        "peak_memory_mb": peak_memory_mb(),
    }
    return finish(directory, record)


def _head_cell(
    bench: _Bench, strategy: str, rows: list[ImageRow], seed: int, directory: Path
) -> dict[str, Any]:
    import numpy as np

    from heads import evaluate, fit_head

    validation, test = bench.snapshot.split("val"), bench.snapshot.split("test")
    read = bench.features.features
    head = fit_head(
        read(keys_of(rows)),
        labels_of(rows),
        kind=strategy,
        groups=groups_of(rows, bench.features.hashes(keys_of(rows))),
        validation=(read(keys_of(validation)), labels_of(validation)) if validation else None,
        seed=seed,
    )
    probabilities = head.predict_proba(read(keys_of(test)))
    numbers = np.array([head.classes.index(label) for label in labels_of(test)])
    metrics = evaluate(probabilities, numbers, head.classes)
    return {
        **metrics.as_dict(),
        "c": head.c,
        "trainable_parameters": head.parameters,
        "predicted": probabilities.argmax(axis=1).tolist(),
        "truth": numbers.tolist(),
    }


def _network_settings(bench: _Bench, strategy: str, seed: int) -> FinetuneSettings:
    from extract import training_precision
    from finetune import FinetuneSettings

    scratch = strategy == "scratch"
    depth = "all" if scratch else strategy.partition(":")[2]
    return FinetuneSettings(
        unfreeze="all" if depth == "all" else int(depth),
        from_scratch=scratch,
        epochs=bench.plan.epochs,
        batch_size=bench.options.batch_size or 32,
        precision=training_precision(bench.options.precision, bench.engine.device),
        seed=seed,
    )


def _resources(bench: _Bench) -> Resources:
    from finetune import Resources

    return Resources(
        device=bench.engine.device,
        cache=bench.cache,
        activation_rows=bench.used_rows,
        engine=bench.options.engine,
        precision=bench.options.precision,
        batch_size=bench.options.batch_size,
        progress=bench.begin,
    )


def _network_copy(bench: _Bench, strategy: str, seed: int) -> Backbone:
    """Copy the network: training changes it in place, and the next cell needs it as it was."""
    from extract import load_backbone

    backbone = bench.backbone
    if strategy == "scratch":
        size = backbone.preprocessing.size
        return load_backbone(
            backbone.name, weights="random", size=size, seed=seed, channels=backbone.channels
        )
    return dataclasses.replace(backbone, module=copy.deepcopy(backbone.module))


def _fill_activations(bench: _Bench, strategy: str) -> float:
    """Run the frozen blocks over all images once for all cells; return the seconds."""
    from finetune import fill_activations

    begun = time.perf_counter()
    fill_activations(
        _network_copy(bench, strategy, 0),
        bench.used_rows,
        bench.snapshot.split("train"),
        Path(bench.snapshot.root),
        settings=_network_settings(bench, strategy, 0),
        resources=_resources(bench),
    )
    return time.perf_counter() - begun


def _network_cell(
    bench: _Bench, strategy: str, rows: list[ImageRow], seed: int, directory: Path
) -> dict[str, Any]:
    from finetune import TrainingData, finetune

    snapshot = bench.snapshot
    result = finetune(
        _network_copy(bench, strategy, seed),
        TrainingData(
            Path(snapshot.root),
            rows,
            snapshot.split("val"),
            snapshot.split("test"),
            snapshot.fingerprint,
        ),
        None if strategy == "scratch" else bench.features.features,
        settings=_network_settings(bench, strategy, seed),
        directory=directory,
        resources=_resources(bench),
    )
    leftovers = ["training.safetensors"]
    if len(rows) < len(snapshot.split("train")):
        # a network of half the images is measured, not used: it would only fill the disk
        leftovers += ["model.safetensors", "model.json"]
    for name in leftovers:
        (directory / name).unlink(missing_ok=True)
    return {
        **result.metrics.as_dict(),
        "trainable_parameters": result.trainable_parameters,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "history": result.history,
        "predicted": result.probabilities.argmax(axis=1).tolist(),
        "truth": [result.classes.index(label) for label in labels_of(snapshot.split("test"))],
    }


def _versions() -> dict[str, str]:
    packages = ("fx-images", "torch", "torchvision", "timm", "scikit-learn", "numpy", "zarr")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _check_depths(plan: Plan, backbone: Backbone) -> None:
    """Refuse a depth that the network has not, before anything is measured."""
    from extract import FxError
    from finetune import find_blocks

    depths = [strategy.partition(":")[2] for strategy in plan.strategies]
    deepest = max((int(depth) for depth in depths if depth.isdecimal()), default=0)
    if deepest and deepest > (count := len(find_blocks(backbone.module, backbone.trained_size))):
        raise FxError(
            f"{backbone.name} has {count} blocks; got finetune:{deepest}; "
            f"see them with: fx backbones {backbone.name}"
        )


def _command(images: Path, options: Options, plan: Plan, sizes: list[int]) -> str:
    """Spell the command that measures this again, defaults left out."""
    chosen = dataclasses.asdict(options) | dataclasses.asdict(plan)
    usual = dataclasses.asdict(Options()) | dataclasses.asdict(Plan())
    chosen |= {"sizes": sizes, "fresh": usual["fresh"]}
    words = ["fx", "compare", str(images)]
    for name, value in chosen.items():
        if value != usual[name]:
            several = isinstance(value, list | tuple)
            text = ",".join(map(str, value)) if several else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)
