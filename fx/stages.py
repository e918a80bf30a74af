"""The three stages as the command runs them: options in, a record out, finished runs reused."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fx.options import Options, choose_features, open_backbone, open_engine, read_snapshot
from fx.runs import finish, finished, run_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import Backbone, Engine, ExtractResult, ImageRow, ImageSource, Snapshot

    Features = Callable[[Sequence[bytes]], NDArray[np.float32]]

Begin = Callable[[str], Callable[[int, int], None]]


def extract_images(
    images: Path,
    options: Options,
    *,
    strict: bool = False,
    rehash: bool = False,
    dtype: str | None = None,
    begin: Begin,
) -> ExtractResult:
    """Extract the features of a folder or table of images into the store.

    Parameters
    ----------
    images : folder, table, or one image
    options : ``snapshot`` names the one taken; ``layers`` may be several
    dtype : that features are kept in; None for what the store has
    strict : fail when an image cannot be read, after all others are done
    rehash : read files that look unchanged, too
    begin : given what is being done, returns a progress callback

    Raises
    ------
    FxError
        If there are no images, the backbone cannot be had, or with ``strict`` one is unreadable.
    """
    from extract import FeatureStore, FxError, find_images, quantised_network

    source = find_images(images)
    backbone = open_backbone(options).at_layers(options.layers or ("pool",))
    store = FeatureStore.create(options.store)
    quantised = None
    if options.precision == "int8":
        quantised = quantised_network(backbone, store, source, begin("quantising"))
    result = fill_store(
        source,
        backbone,
        open_engine(options, backbone, quantised),
        options,
        dtype=dtype,
        rehash=rehash,
        begin=begin,
    )
    if strict and result.failed:
        first = result.failed[0]
        raise FxError(
            f"{len(result.failed)} images cannot be read (--strict); the first is "
            f"{first['path']}: {first['reason']}; the others' features are stored"
        )
    return result


def fill_store(
    source: ImageSource,
    backbone: Backbone,
    engine: Engine,
    options: Options,
    *,
    dtype: str | None = None,
    rehash: bool = False,
    begin: Begin,
) -> ExtractResult:
    """Extract the features that the store lacks, as the options say."""
    from extract import FeatureStore, extract

    return extract(
        source,
        backbone=backbone,
        engine=engine,
        store=FeatureStore.create(options.store),
        crops=options.crops or 1,
        dtype=dtype,
        split_seed=options.split_seed,
        snapshot=options.snapshot,
        rehash=rehash,
        progress=begin("extracting"),
    )


def fit_head_on_store(
    kind: Literal["logreg", "svm"],
    options: Options,
    *,
    kernel: Literal["linear", "rbf"] = "rbf",
    c: float | None = None,
    folds: int = 5,
    begin: Begin,
) -> dict[str, Any]:
    """Fit a head on stored features and measure it once on the test rows.

    Raises
    ------
    FxError
        If there is no store, too little that is labelled, or features are missing.
    """
    from extract import FeatureStore, Quantised
    from heads import fit_head, save_head

    store = FeatureStore(options.store)
    feature_set = choose_features(store, options)
    snapshot = read_snapshot(store, options)
    check_labelled(snapshot)
    identity = {
        "kind": kind,
        "kernel": kernel if kind == "svm" else None,
        "c": c,
        "folds": folds,
        "seed": options.seed,
        "features": feature_set.name,
        "snapshot": snapshot.fingerprint,
    }
    backbone = str(feature_set.spec["backbone"])
    directory = run_directory(options.out, f"{kind}-{backbone}", identity)
    before = finished(directory, fresh=options.fresh)
    if before is not None:
        return before
    begun = time.perf_counter()
    train, validation, test = (snapshot.split(name) for name in ("train", "val", "test"))
    head = fit_head(
        feature_set.features(keys_of(train)),
        labels_of(train),
        kind=kind,
        kernel=kernel,
        c=c,
        folds=folds,
        groups=groups_of(train),
        validation=(feature_set.features(keys_of(validation)), labels_of(validation))
        if validation
        else None,
        spec=feature_set.spec,
        source={"weights": feature_set.weights_source},
        seed=options.seed,
        progress=begin(f"choosing C for {kind}"),
    ).tested(feature_set.features(keys_of(test)), labels_of(test))
    save_head(head, directory)
    if "network" in feature_set.spec:
        # predictions need the very network that made the features
        network = store.read_network(str(feature_set.spec["network"]))
        Quantised(*network).write(directory)
    return finish(
        directory,
        {
            "head": directory.name,
            "kind": kind,
            "path": directory,
            "backbone": backbone,
            "snapshot": snapshot.name,
            "classes": head.classes,
            "n_train": len(train),
            "n_validation": len(validation),
            **(head.metrics.as_dict() if head.metrics else {}),
            "c": head.c,
            "notes": head.notes,
            "seconds": time.perf_counter() - begun,
        },
    )


def finetune_images(
    images: Path,
    options: Options,
    *,
    unfreeze: int | Literal["all"] = 1,
    from_scratch: bool = False,
    epochs: int = 20,
    learning_rate: float | None = None,
    begin: Begin,
) -> dict[str, Any]:
    """Fine-tune a backbone on a folder of images, from the head fitted on its features.

    What is not named here stands in ``Options`` and ``finetune.FinetuneSettings``.

    Raises
    ------
    FxError
        If there is too little that is labelled, or training cannot go on.
    """
    from extract import training_precision
    from finetune import FinetuneSettings, TrainingData, finetune

    if from_scratch:
        options = dataclasses.replace(options, weights="random")
    backbone = open_backbone(options, seed=options.seed if from_scratch else 0)
    engine = open_engine(options, backbone)
    settings = FinetuneSettings(
        unfreeze=unfreeze,
        from_scratch=from_scratch,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=options.batch_size or 32,
        precision=training_precision(engine.precision),
        seed=options.seed,
    )
    if from_scratch:
        snapshot, features = _snapshot_alone(images, backbone, options, begin), None
    else:
        snapshot, features = _extracted(images, backbone, engine, options, begin)
    check_labelled(snapshot)
    identity = {
        **dataclasses.asdict(settings),
        "backbone": backbone.name,
        "weights": backbone.weights_hash,
        "preprocessing": backbone.preprocessing.to_dict(),
        "snapshot": snapshot.fingerprint,
        "device": engine.device.type,
    }
    name = "scratch" if from_scratch else f"finetune-{unfreeze}"
    directory = run_directory(options.out, f"{name}-{backbone.name}", identity)
    cache = directory / "cache"
    before = finished(directory, fresh=options.fresh)
    if before is not None:
        # a run killed just after it had finished may have left them
        shutil.rmtree(cache, ignore_errors=True)
        return before
    begun = time.perf_counter()
    data = TrainingData(
        Path(snapshot.root),
        snapshot.split("train"),
        snapshot.split("val"),
        snapshot.split("test"),
        snapshot.fingerprint,
    )
    result = finetune(
        backbone,
        data,
        features,
        settings=settings,
        device=engine.device,
        directory=directory,
        cache=cache,
        engine=options.engine,
        batch_size=options.batch_size,
        progress=begin,
    )
    record = finish(
        directory,
        {
            "path": directory,
            "backbone": backbone.name,
            "snapshot": snapshot.name,
            "unfreeze": unfreeze,
            "from_scratch": from_scratch,
            "classes": result.classes,
            "trainable_parameters": result.trainable_parameters,
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "n_train": result.n_train,
            "n_validation": result.n_validation,
            **result.metrics.as_dict(),
            "seconds": time.perf_counter() - begun,
            "images_per_second": result.images_per_second,
            "history": result.history,
        },
    )
    shutil.rmtree(cache, ignore_errors=True)
    (directory / "training.safetensors").unlink(missing_ok=True)
    return record


def _extracted(
    images: Path, backbone: Backbone, engine: Engine, options: Options, begin: Begin
) -> tuple[Snapshot, Features]:
    """Extract what is missing; return the snapshot and the features' reader."""
    from extract import FeatureStore, Snapshot, find_images

    result = fill_store(find_images(images), backbone, engine, options, begin=begin)
    store = FeatureStore(options.store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot(result.snapshot))
    return snapshot, store.open_set(result.spec).features


def _snapshot_alone(images: Path, backbone: Backbone, options: Options, begin: Begin) -> Snapshot:
    """Look at the images without a pretrained network: what trains from scratch needs none."""
    from extract import FeatureStore, find_images, take_snapshot

    return take_snapshot(
        find_images(images),
        preprocessing=backbone.preprocessing,
        store=FeatureStore.create(options.store),
        split_seed=options.split_seed,
        name=options.snapshot,
        progress=begin("looking at the images"),
    )


def check_labelled(snapshot: Snapshot) -> None:
    """Refuse a snapshot from which nothing can be learned or measured.

    Raises
    ------
    FxError
        If it has fewer than two classes, or no training or test rows.
    """
    from extract import FxError

    classes = snapshot.classes
    if not classes:
        raise FxError(
            f"no labelled images in snapshot {snapshot.name}; lay them out as one folder a class, "
            "then fx extract"
        )
    if len(classes) == 1:
        raise FxError(
            f"snapshot {snapshot.name} has one class, {classes[0]!r}; a classifier needs two"
        )
    for split in ("train", "test"):
        if not snapshot.split(split):
            raise FxError(
                f"snapshot {snapshot.name} has no {split} rows; "
                "give each class at least three images"
            )


def keys_of(rows: Sequence[ImageRow]) -> list[bytes]:
    """Keys of rows."""
    return [row.key for row in rows]


def labels_of(rows: Sequence[ImageRow]) -> list[str]:
    """Labels of rows that have one."""
    return [str(row.label) for row in rows]


def groups_of(rows: Sequence[ImageRow]) -> list[str] | None:
    """What must not be torn apart in cross-validation; None where no groups are given."""
    from extract import unit_of

    if all(row.group is None for row in rows):
        return None
    return [unit_of(row) for row in rows]
