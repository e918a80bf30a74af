"""The three stages as the command runs them: options in, a record out, finished runs reused."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.options import Options, open_backbone, open_engine
from fx.rows import check_labelled
from fx.runs import finish, finished, run_directory

if TYPE_CHECKING:
    import numpy as np
    from accelerate import PartialState
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
    recipe: str = "default",
    cache_limit: int | None = None,
    log_to: str | None = None,
    begin: Begin,
    **chosen: Any,
) -> dict[str, Any]:
    """Fine-tune a backbone on a folder of images, from the head fitted on its features.

    Parameters
    ----------
    images : folder or table of labelled images
    options : backbone, store and the like
    recipe : a name of ``finetune.RECIPES``
    cache_limit : most bytes of activations on the disk
    log_to : ``tensorboard`` or ``mlflow``
    begin : given what is being done, returns a progress callback
    chosen : fields of ``finetune.FinetuneSettings`` in the place of the recipe's

    Raises
    ------
    FxError
        If a setting is out of range, too little is labelled, or training cannot go on.
    """
    from extract import FxError, resolve_device, training_precision
    from finetune import FinetuneSettings, Resources, TrainingData, finetune, joined

    device = resolve_device(options.device)
    try:
        settings = FinetuneSettings.of_recipe(
            recipe,
            precision=training_precision(options.precision, device),
            seed=options.seed,
            **chosen,
        )
    except ValueError as error:
        raise FxError(f"{error}; see fx finetune --help") from error
    scratch = settings.from_scratch
    if scratch:
        options = dataclasses.replace(options, weights="random")
    backbone = open_backbone(options, seed=options.seed if scratch else 0)
    processes = joined(device)
    snapshot, features = _prepared(images, backbone, options, scratch, processes, begin)
    check_labelled(snapshot)
    identity = {
        **dataclasses.asdict(settings),
        "backbone": backbone.name,
        "weights": backbone.weights_hash,
        "preprocessing": backbone.preprocessing.to_dict(),
        "snapshot": snapshot.fingerprint,
        "device": device.type,
    }
    name = "scratch" if scratch else f"finetune-{settings.unfreeze}"
    directory = run_directory(options.out, f"{name}-{backbone.name}", identity)
    cache = directory / "cache"
    before = finished(directory, fresh=options.fresh)
    if before is not None:
        # a run killed just after it had finished may have left them
        shutil.rmtree(cache, ignore_errors=True)
        return before
    begun = time.perf_counter()
    result = finetune(
        backbone,
        TrainingData(
            Path(snapshot.root),
            snapshot.split("train"),
            snapshot.split("val"),
            snapshot.split("test"),
            snapshot.fingerprint,
        ),
        features,
        settings=settings,
        directory=directory,
        resources=Resources(
            device=device,
            cache=cache,
            cache_limit=cache_limit,
            engine=options.engine,
            precision=options.precision,
            batch_size=options.batch_size,
            log_to=log_to,
            progress=begin,
        ),
    )
    record = {
        "path": directory,
        "backbone": backbone.name,
        "snapshot": snapshot.name,
        "unfreeze": settings.unfreeze,
        "from_scratch": scratch,
        "recipe": recipe,
        "classes": result.classes,
        "trainable_parameters": result.trainable_parameters,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "n_train": result.n_train,
        "n_validation": result.n_validation,
        **result.metrics.as_dict(),
        "notes": result.notes,
        "seconds": time.perf_counter() - begun,
        "images_per_second": result.images_per_second,
        "history": result.history,
    }
    if processes.is_main_process:
        record = finish(directory, record)
        shutil.rmtree(cache, ignore_errors=True)
        (directory / "training.safetensors").unlink(missing_ok=True)
    return record


def _prepared(
    images: Path,
    backbone: Backbone,
    options: Options,
    scratch: bool,
    processes: PartialState,
    begin: Begin,
) -> tuple[Snapshot, Features | None]:
    """Let the first process look at the images; give all the snapshot and the features' reader."""
    from accelerate.utils import broadcast_object_list

    from extract import FeatureStore, Snapshot, find_images, take_snapshot

    names = ["", ""]
    if processes.is_main_process:
        source = find_images(images)
        if scratch:
            # what trains from scratch needs no pretrained network
            taken = take_snapshot(
                source,
                preprocessing=backbone.preprocessing,
                store=FeatureStore.create(options.store),
                split_seed=options.split_seed,
                name=options.snapshot,
                progress=begin("looking at the images"),
            )
            names = [taken.name, ""]
        else:
            engine = open_engine(options, backbone)
            result = fill_store(source, backbone, engine, options, begin=begin)
            names = [result.snapshot, result.spec]
    broadcast_object_list(names)
    store = FeatureStore(options.store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot(names[0]))
    return snapshot, None if scratch else store.open_set(names[1]).features
