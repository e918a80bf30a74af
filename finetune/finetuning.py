"""Stage three: a network that starts as the fitted head and is trained only where that pays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.errors import FxError
from extract.files import disk_full_as_fx_error
from extract.images import ImageRow
from finetune.data import Activations, pixels_of, set_validation_aside, write_contact_sheet
from finetune.flips import FlipTrial, try_flips
from finetune.network import Network, TrainedPart
from finetune.room import check_room_for_training
from finetune.settings import AUTO, FinetuneSettings
from finetune.split import Resources, SplitNetwork
from finetune.starting_head import Features, by_path, cool, fold, starting_head
from finetune.training import (
    Auxiliaries,
    Rows,
    Trainer,
    TrainingState,
    make_accelerator,
    save_model,
    train,
    weights_of_classes,
    write_history,
    write_steps,
)
from heads.calibration import Calibration
from heads.fitting import BALANCED
from heads.limits import MOST, Limits
from heads.evaluation import Evaluation, evaluate

SHOWN = 8  # images on the contact sheet


@dataclass(frozen=True)
class TrainingData:
    """Images of one snapshot, by what they are for.

    Attributes
    ----------
    root : folder that the rows' paths are relative to
    train, validation, test : rows with labels; where validation is empty it is taken from train
    fingerprint : of the snapshot
    """

    root: Path
    train: Sequence[ImageRow]
    validation: Sequence[ImageRow]
    test: Sequence[ImageRow]
    fingerprint: str


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning gave.

    Attributes
    ----------
    metrics : on the test rows, which chose nothing
    probabilities : float64 array of shape (n_test, classes), of the test rows
    calibration : of the delivered network on the validation rows; of a head on its own held-out
        rows. Its temperature is in the network's last layer
    classes : in the order of the probabilities' columns
    trainable_parameters : how many numbers trained
    epochs, best_epoch : passes made, and the one delivered; 0 is the head
    history : a record an epoch
    notes : what was not as asked for, and what was found by trial
    augment : of the images that trained: what was asked for, or decided
    flips : the trial by which they were decided on, if it was left open
    n_train, n_validation : rows that trained, and that judged the epochs
    n_fitted : rows that the delivered weights were fitted on: validation rows that were set aside
        from the training rows train in the last epochs, and so is the head fitted on them
    images_per_second : of training
    """

    metrics: Evaluation
    probabilities: NDArray[np.float64]
    calibration: Calibration
    classes: tuple[str, ...]
    trainable_parameters: int
    epochs: int
    best_epoch: int
    history: list[dict[str, float | int | None]]
    notes: list[str]
    augment: str
    flips: FlipTrial | None
    n_train: int
    n_validation: int
    n_fitted: int
    images_per_second: float


def finetune(
    backbone: Backbone,
    data: TrainingData,
    features: Features | None,
    *,
    settings: FinetuneSettings,
    directory: Path,
    resources: Resources,
    with_limits: bool = True,
) -> Finetuned:
    """Train the last blocks of a backbone and a classifier, from the head fitted on its features.

    Parameters
    ----------
    backbone : its module is changed in place
    data : the images
    features : gives the stored features of keys, float32 array of shape (len(keys), dim);
        None where training is from scratch
    settings : how to train; what its ``augment`` leaves open is decided here
    directory : gets ``model.safetensors``, ``model.json``, ``history.csv``, ``history.png``,
        ``steps.csv`` and, where images are augmented, ``augmented.png``; an interrupted run is
        found there and goes on
    resources : where and with what
    with_limits : whether ``limits.npz`` is written, too, which ``fx predict --reject`` and
        ``--conformal`` go by

    Raises
    ------
    CannotWrite
        If the disk has no room for what is going to be written, or cannot be written to.
    FxError
        If there are too few images, the network has fewer blocks, or training diverges.
    """
    report = resources.progress
    if data.validation:
        training, validation = list(data.train), list(data.validation)
        drawn = training
    else:
        training, validation = set_validation_aside(data.train, settings.seed)
        drawn = [*training, *validation]
    classes = tuple(sorted({str(row.label) for row in training}))
    _check_labels(classes, validation, data.test)
    accelerator = make_accelerator(
        resources.device, settings, log_to=resources.log_to, directory=directory
    )
    split = SplitNetwork.of(backbone, len(classes), settings)
    auxiliaries = None
    if settings.unfreeze == "all":
        auxiliaries = Auxiliaries.of(backbone.module, len(classes), seed=settings.seed)
    rows = resources.activation_rows or [*training, *validation, *data.test]
    besides = check_room_for_training(
        directory,
        split,
        rows,
        drawn,
        settings=settings,
        resources=resources,
        auxiliaries=auxiliaries,
    )
    trial = None
    if features is not None:
        head = starting_head(
            features,
            training,
            class_weight=settings.class_weight,
            seed=settings.seed,
            progress=report("fitting the head"),
        )
        fold(head, split.classifier)
        if settings.augment == AUTO:
            trial = try_flips(head, backbone, features, training, validation, data.root, resources)
            (trial,) = broadcast_object_list([trial])
    if settings.augment == AUTO:
        settings = replace(settings, augment="none" if trial is None else trial.augment)
    with accelerator.main_process_first():
        activations, part, notes = split.prepared(
            rows, drawn, data.root, settings, resources, besides
        )
    begun = time.perf_counter()
    numbers = _numbers(training, classes)
    trainer = Trainer(
        part,
        activations,
        settings,
        accelerator,
        split.depth,
        auxiliaries,
        class_weights=weights_of_classes(numbers) if settings.class_weight else None,
    )
    trainer.notes += [*notes, *([] if trial is None else [trial.said])]
    trainer.notes += [BALANCED] if settings.class_weight else []
    state = train(
        trainer,
        Rows(activations.positions(training), numbers),
        Rows(activations.positions(validation), _numbers(validation, classes)),
        set_aside=not data.validation,
        state_file=directory / "training.safetensors",
        progress=report("training"),
    )
    seconds = time.perf_counter() - begun
    if auxiliaries is not None:
        auxiliaries.close()
    calibration, limits = state.calibration, None
    head_is_kept = False
    if state.best_epoch == 0 and features is not None and not data.validation:
        head_is_kept = True
        calibration, limits = _head_of_all(part, features, drawn, settings, with_limits)
    else:
        if with_limits:
            limits = _limits_of(trainer, state, activations, training, validation, classes)
        cool(part.classifier, calibration.temperature)
    logits = trainer.logits(activations.positions(data.test)).double()
    probabilities = torch.softmax(logits, dim=1).numpy()
    uncalibrated = torch.softmax(logits * calibration.temperature, dim=1).numpy()
    truth = _numbers(data.test, classes)
    result = Finetuned(
        metrics=evaluate(probabilities, truth, classes, uncalibrated=uncalibrated),
        probabilities=probabilities,
        calibration=calibration,
        classes=classes,
        trainable_parameters=sum(p.numel() for p in part.parameters() if p.requires_grad),
        epochs=state.epoch,
        best_epoch=state.epoch if state.on_all_rows else state.best_epoch,
        history=state.history,
        notes=state.notes,
        augment=settings.augment,
        flips=trial,
        n_train=len(training),
        n_validation=len(validation),
        n_fitted=len(training) + (head_is_kept or state.on_all_rows) * len(validation),
        images_per_second=state.epoch * len(training) / seconds,
    )
    if accelerator.is_main_process:
        if settings.augment != "none":
            _write_contact_sheet(
                directory, training, data.root, backbone, settings, resources.max_image_mb
            )
        write_steps(directory, state.steps)
        if limits is not None:
            limits.save(directory)
        _deliver(directory, backbone, part, result, trainer.settings, data)
    with disk_full_as_fx_error(directory):
        accelerator.end_training()
    return result


def fill_activations(
    backbone: Backbone,
    rows: Sequence[ImageRow],
    training: Sequence[ImageRow],
    root: Path,
    *,
    settings: FinetuneSettings,
    resources: Resources,
) -> None:
    """Compute the activations that several fine-tunings at one depth will share.

    Parameters are those of ``finetune``; ``rows`` are its ``activation_rows``, of which those in
    ``training`` have augmented views. The disk is to have room for one of the fine-tunings, too.

    Raises
    ------
    CannotWrite
        If it has not, or cannot be written to.
    FxError
        If an image changed since the snapshot.
    """
    split = SplitNetwork.of(backbone, len({row.label for row in training}), settings)
    besides = check_room_for_training(
        resources.cache, split, rows, training, settings=settings, resources=resources
    )
    split.prepared(rows, training, root, settings, resources, besides)


def _head_of_all(
    part: TrainedPart,
    features: Features,
    rows: Sequence[ImageRow],
    settings: FinetuneSettings,
    with_limits: bool,
) -> tuple[Calibration, Limits | None]:
    """Put the head that all training rows give in the place of what training did not better."""
    rows = by_path(rows)
    head = starting_head(features, rows, class_weight=settings.class_weight, seed=settings.seed)
    fold(head, part.classifier)
    held_out = head.held_out
    if not with_limits or held_out is None:
        return head.calibration, None
    known = features([row.key for row in rows])
    limits = Limits.of(known, held_out.splits, held_out.probabilities, held_out.labels)
    return head.calibration, limits


def _limits_of(
    trainer: Trainer,
    state: TrainingState,
    activations: Activations,
    training: Sequence[ImageRow],
    validation: Sequence[ImageRow],
    classes: tuple[str, ...],
) -> Limits:
    """Learn limits from the validation rows, as the network that they judged saw them.

    New images are compared with the rows that the delivered network was fitted on.
    """
    some, last = _some(training), trainer.part.state_dict()
    last = {name: value.clone() for name, value in last.items()}
    trainer.part.load_state_dict(state.best)
    of_some = trainer.features(activations.positions(some))
    of_rest = trainer.features(activations.positions(validation))
    logits = trainer.classified(of_rest).double() / state.calibration.temperature
    trainer.part.load_state_dict(last)
    known = None
    if state.on_all_rows:
        known = trainer.features(activations.positions(_some([*training, *validation]))).numpy()
    rows = np.arange(len(of_some) + len(of_rest))
    return Limits.of(
        torch.cat([of_some, of_rest]).numpy(),
        [(rows[: len(of_some)], rows[len(of_some) :])],
        torch.softmax(logits, dim=1).numpy(),
        _numbers(validation, classes),
        known=of_some.numpy() if known is None else known,
    )


def _some(rows: Sequence[ImageRow]) -> Sequence[ImageRow]:
    return rows[:: -(-len(rows) // MOST)]


def _check_labels(
    classes: tuple[str, ...], validation: Sequence[ImageRow], test: Sequence[ImageRow]
) -> None:
    if not test:
        raise FxError("no test rows to measure on; give each class at least two images")
    unknown = sorted({str(row.label) for row in [*validation, *test]} - set(classes))
    if unknown:
        raise FxError(f"no training images of class {unknown[0]!r}; add some, or remove the class")


def _numbers(rows: Sequence[ImageRow], classes: tuple[str, ...]) -> NDArray[np.int64]:
    number = {label: index for index, label in enumerate(classes)}
    return np.array([number[str(row.label)] for row in rows], dtype=np.int64)


def _write_contact_sheet(
    directory: Path,
    training: Sequence[ImageRow],
    root: Path,
    backbone: Backbone,
    settings: FinetuneSettings,
    max_image_mb: int,
) -> None:
    some = training[:: -(-len(training) // SHOWN)]
    pixels = np.concatenate(list(pixels_of(some, root, backbone.preprocessing, max_image_mb)))
    write_contact_sheet(directory / "augmented.png", pixels, settings.augment, settings.seed)


def _deliver(
    directory: Path,
    backbone: Backbone,
    part: TrainedPart,
    result: Finetuned,
    settings: FinetuneSettings,
    data: TrainingData,
) -> None:
    record: dict[str, Any] = {
        "classes": list(result.classes),
        "unfreeze": settings.unfreeze,
        "settings": vars(settings),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "n_train": result.n_train,
        "n_validation": result.n_validation,
        "n_fitted": result.n_fitted,
        "calibration": result.calibration.as_dict(),
        "trainable_parameters": result.trainable_parameters,
        "metrics": result.metrics.as_dict(),
        "snapshot_fingerprint": data.fingerprint,
        "versions": {"torch": torch.__version__},
    }
    network = Network(backbone.module, part.classifier).cpu()
    save_model(directory, network, backbone, record)
    write_history(directory, result.history)
