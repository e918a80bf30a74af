"""Stage three as the command runs it: a network fine-tuned, measured and kept."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from extract.backbones import Backbone
from extract.engines import resolve_device, training_precision
from extract.errors import FxError
from extract.extraction import take_snapshot
from extract.files import delete, kept_at, write_whole
from extract.images import Snapshot, find_images
from extract.store import FeatureSet, FeatureStore
from finetune.finetuning import finetune, identity_of
from finetune.settings import FinetuneSettings
from finetune.split import Resources
from finetune.training import join_processes
from fx.options import Options, open_backbone, open_engine
from fx.output import Begin
from fx.runs import Run
from fx.stages.card import CARD, data_used, model_card
from fx.stages.extract import fill_store, notes_on_images
from fx.stages.records import FinetunedModel, NetworkUsed
from fx.stages.rows import (
    check_labelled,
    near_copies_among,
    needs_folds,
    notes_on_untested,
    training_data,
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
) -> FinetunedModel:
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
    device = resolve_device(options.device)
    precision = training_precision(options.precision, device)
    try:
        settings = FinetuneSettings.of_recipe(
            recipe, precision=precision, seed=options.seed, **chosen
        )
    except ValueError as error:
        raise FxError(str(error)) from error
    scratch = settings.from_scratch
    if scratch:
        options = dataclasses.replace(options, weights="random")
    backbone = open_backbone(options, seed=options.seed if scratch else 0)
    processes = join_processes(device)
    snapshot, stored, notes = _prepared(images, backbone, options, scratch, processes, begin)
    check_labelled(snapshot)
    rows, notes = snapshot.split("train"), [*backbone.notes, *notes, *_few_tested(snapshot)]
    notes += notes_on_untested(snapshot.classes, snapshot.split("test"))
    if stored is not None:
        near_copies, said = near_copies_among(rows, stored, options.near_copies)
        rows, notes = near_copies.joined(rows), notes + said
    resources = Resources(
        device=device,
        cache=Path(),
        cache_limit=cache_limit,
        engine=options.engine,
        precision=options.precision,
        batch_size=options.batch_size,
        log_to=log_to,
        max_image_mb=options.max_image_mb,
        progress=begin,
    )
    data = training_data(snapshot, rows)
    name = "scratch" if scratch else f"finetune-{settings.unfreeze}"
    run = Run.of(
        options.out,
        f"{name}-{backbone.name}",
        snapshot,
        # of the head that it starts from
        [] if stored is None else [stored],
        near_copies=None if stored is None else options.near_copies,
        **identity_of(backbone, data, settings, resources),
    )
    if options.fresh:
        run.forget()
    if run.finished:
        # a run killed just after it had finished may have left it
        _drop_what_going_on_needs(run.directory)
        return run.result(FinetunedModel)
    begun = time.perf_counter()
    trained = finetune(
        backbone,
        data,
        None if stored is None else stored.features,
        settings=settings,
        directory=run.directory,
        resources=dataclasses.replace(resources, cache=run.directory / "cache"),
    )
    result = FinetunedModel(
        path=kept_at(run.directory),
        backbone=backbone.name,
        snapshot=snapshot.name,
        classes=trained.classes,
        n_train=trained.n_train,
        n_validation=trained.n_validation,
        evaluation=trained.metrics,
        notes=(*notes, *trained.notes),
        seconds=time.perf_counter() - begun,
        calibration=trained.calibration,
        networks=(NetworkUsed(backbone.name, backbone.weights, backbone.preprocessing.size),),
        data=data_used(snapshot),
        unfreeze=settings.unfreeze,
        from_scratch=scratch,
        recipe=recipe,
        trainable_parameters=trained.trainable_parameters,
        epochs=trained.epochs,
        best_epoch=trained.best_epoch,
        n_fitted=trained.n_fitted,
        images_per_second=trained.images_per_second,
        augment=trained.augment,
        flips=None if trained.flips is None else dataclasses.asdict(trained.flips),
        history=msgspec.to_builtins(trained.history),
    )
    if processes.is_main_process:
        write_whole(run.directory / CARD, model_card(result))
        run.finish(result)
        _drop_what_going_on_needs(run.directory)
    return result


def _few_tested(snapshot: Snapshot) -> list[str]:
    """Warn of a measurement on one split of few images, where heads are measured otherwise."""
    if not needs_folds(snapshot):
        return []
    tested = len(snapshot.split("test"))
    return [
        f"one split of {tested} test images says little; fx compare measures heads and networks "
        "alike, by outer folds of all images"
    ]


def _drop_what_going_on_needs(directory: Path) -> None:
    shutil.rmtree(directory / "cache", ignore_errors=True)
    delete(directory / "training.safetensors")


def _prepared(
    images: Path,
    backbone: Backbone,
    options: Options,
    scratch: bool,
    processes: PartialState,
    begin: Begin,
) -> tuple[Snapshot, FeatureSet | None, list[str]]:
    """Let the first process look at the images; give all the snapshot and the stored features.

    Also, to the first process, notes on images that are not used.
    """
    names = ["", ""]
    if processes.is_main_process:
        source = find_images(images, options.reading)
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
    notes = notes_on_images(source, snapshot) if processes.is_main_process else []
    return snapshot, None if scratch else store.open_set(names[1]), notes
