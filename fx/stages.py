"""The three stages as the command runs them: options in, a record out, finished runs reused."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fx.options import Options, open_backbone, open_engine
from fx.rows import check_labelled
from fx.runs import finish, finished, run_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import Backbone, Engine, ExtractResult, ImageSource, Snapshot

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
