"""Stage three: a network that starts as the fitted head and is trained only where that pays."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import nn

from extract.backbones import Backbone
from extract.errors import FxError
from extract.files import Place, disk_full_as_fx_error
from extract.images import ImageRow, unit_of
from finetune.data import Activations, pixels_of, set_validation_aside, write_contact_sheet
from finetune.disk_space import check_room_for_training
from finetune.flips import FlipTrial, try_flips
from finetune.network import Network, TrainedPart
from finetune.settings import AUTO, FinetuneSettings
from finetune.split import Resources, SplitNetwork, trunk_of
from finetune.starting_head import (
    Features,
    apply_temperature,
    by_path,
    fold_into_classifier,
    starting_head,
)
from finetune.training import (
    Auxiliaries,
    EpochRow,
    ModelRecord,
    Rows,
    Trainer,
    TrainingState,
    join_processes,
    make_accelerator,
    save_model,
    train,
    weights_of_classes,
    write_history,
    write_steps,
)
from heads.calibration import Calibration
from heads.evaluation import Evaluation, evaluate
from heads.fitting import BALANCED
from heads.head import OutOfFoldPredictions
from heads.limits import MAX_ROWS, Limits

CONTACT_SHEET_IMAGES = 8
# of a result, what the record of its network has by the same names
_IN_RECORD = (
    *("epochs", "best_epoch", "n_train", "n_validation", "n_fitted"),
    *("calibration", "trainable_parameters"),
)


@dataclass(frozen=True)
class TrainingData:
    """Images of one snapshot, by what they are for.

    Attributes
    ----------
    root : folder that the rows' paths are relative to
    train, validation, test : rows with labels; where validation is empty it is taken from train
    fingerprint : of the snapshot
    """

    root: Place
    train: Sequence[ImageRow]
    validation: Sequence[ImageRow]
    test: Sequence[ImageRow]
    fingerprint: str


@dataclass(frozen=True)
class FinetuneResult:
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
    history : a row an epoch
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
    history: list[EpochRow]
    notes: list[str]
    augment: str
    flips: FlipTrial | None
    n_train: int
    n_validation: int
    n_fitted: int
    images_per_second: float


@dataclass(frozen=True)
class _Images(TrainingData):
    """Images with their class numbers, validation rows among them.

    Attributes
    ----------
    set_aside : whether the validation rows were taken from the training rows, and so may train
    classes : labels, in the order of their numbers
    """

    set_aside: bool
    classes: tuple[str, ...]

    @classmethod
    def of(cls, data: TrainingData, seed: int) -> "_Images":
        """Set validation rows aside where none are given; raises FxError where rows are missing."""
        set_aside = not data.validation
        if set_aside:
            train, validation = set_validation_aside(data.train, seed)
            data = replace(data, train=train, validation=validation)
        classes = tuple(sorted({str(row.label) for row in data.train}))
        if not data.test:
            raise FxError("no test rows to measure on; give each class at least two images")
        unknown = {str(row.label) for row in [*data.validation, *data.test]} - set(classes)
        if unknown:
            raise FxError(
                f"no training images of class {min(unknown)!r}; add some, or remove the class"
            )
        return cls(**vars(data), set_aside=set_aside, classes=classes)

    @property
    def may_train(self) -> Sequence[ImageRow]:
        """The training rows, and the validation rows that were set aside from them."""
        return [*self.train, *self.validation] if self.set_aside else self.train

    def numbers(self, rows: Sequence[ImageRow]) -> NDArray[np.int64]:
        """Class numbers of some rows."""
        number = {label: index for index, label in enumerate(self.classes)}
        return np.array([number[str(row.label)] for row in rows], dtype=np.int64)

    def labelled(self, rows: Sequence[ImageRow], activations: Activations) -> Rows:
        """Where rows lie among the activations, and their class numbers."""
        return Rows(activations.positions(rows), self.numbers(rows))


@dataclass(frozen=True)
class _Delivered:
    """The network that is delivered: what its classifier was calibrated by, and its limits."""

    calibration: Calibration
    limits: Limits | None
    best_epoch: int
    n_fitted: int


def finetune(
    backbone: Backbone,
    data: TrainingData,
    features: Features | None,
    *,
    settings: FinetuneSettings,
    directory: Path,
    resources: Resources,
    with_extras: bool = True,
) -> FinetuneResult:
    """Train the last blocks of a backbone and a classifier, from the head fitted on its features.

    Parameters
    ----------
    backbone : its module is changed in place
    data : the images
    features : gives the stored features of keys, float32 array of shape (len(keys), dim);
        None where training is from scratch
    settings : how to train; what its ``augment`` leaves open is decided here
    directory : gets ``model.safetensors``, ``model.json``, ``history.csv`` and ``steps.csv``; an
        interrupted run is found there and goes on
    resources : where and with what
    with_extras : whether it gets what only one to be used needs, too: ``limits.npz``, by which
        predictions are rejected or become sets of labels, ``history.png`` and, where images are
        augmented, ``augmented.png``

    Raises
    ------
    CannotWrite
        If the disk has no room for what is going to be written, or cannot be written to.
    FxError
        If there are too few images, the network has fewer blocks, or training diverges.
    """
    images = _Images.of(data, settings.seed)
    accelerator = make_accelerator(
        resources.device, settings, log_to=resources.log_to, directory=directory
    )
    split = SplitNetwork.of(backbone, len(images.classes), settings)
    auxiliaries = None
    if settings.unfreeze == "all":
        auxiliaries = Auxiliaries.of(backbone.module, len(images.classes), seed=settings.seed)
    rows, kept = _kept(backbone, split.trunk, images, settings, resources)
    reserved = check_room_for_training(
        directory,
        split,
        rows,
        images.may_train,
        settings=settings,
        resources=resources,
        kept=kept,
        auxiliaries=auxiliaries,
    )
    trial = None
    if features is not None:
        trial = _start_as_head(split, features, images, settings, resources)
    if settings.augment == AUTO:
        settings = replace(settings, augment="none" if trial is None else trial.augment)
    with accelerator.main_process_first():
        activations, part, notes = split.load_inputs(
            rows, images.may_train, images.root, settings, resources, reserved, kept=kept
        )
    trainer = Trainer(
        part,
        activations,
        settings,
        accelerator,
        split.depth,
        auxiliaries,
        weights_of_classes(images.numbers(images.train)) if settings.class_weight else None,
    )
    trainer.notes += [*notes, *([] if trial is None else [trial.summary])]
    trainer.notes += [BALANCED] if settings.class_weight else []
    begun = time.perf_counter()
    state = train(
        trainer,
        images.labelled(images.train, activations),
        images.labelled(images.validation, activations),
        set_aside=images.set_aside,
        state_file=directory / "training.safetensors",
        progress=resources.progress("training"),
    )
    seconds = time.perf_counter() - begun
    if auxiliaries is not None:
        auxiliaries.close()
    if state.best_epoch == 0 and features is not None and images.set_aside:
        delivered = _deliver_head(part, features, images, settings, with_extras)
    else:
        delivered = _deliver_network(trainer, state, images, with_extras)
    probabilities, uncalibrated = _predict(trainer, images.test, delivered.calibration)
    numbers, groups = images.numbers(images.test), _groups(images.test)
    result = FinetuneResult(
        metrics=evaluate(
            probabilities, numbers, images.classes, uncalibrated=uncalibrated, groups=groups
        ),
        probabilities=probabilities,
        calibration=delivered.calibration,
        classes=images.classes,
        trainable_parameters=part.trainable_parameters,
        epochs=state.epoch,
        best_epoch=delivered.best_epoch,
        history=state.history,
        notes=state.notes,
        augment=settings.augment,
        flips=trial,
        n_train=len(images.train),
        n_validation=len(images.validation),
        n_fitted=delivered.n_fitted,
        images_per_second=state.epoch * len(images.train) / seconds,
    )
    if accelerator.is_main_process:
        write_steps(directory, state.steps)
        if delivered.limits is not None:
            delivered.limits.save(directory)
        _write(directory, backbone, images, trainer, result, with_extras, resources.max_image_mb)
    with disk_full_as_fx_error(directory):
        accelerator.end_training()
    return result


def _kept(
    backbone: Backbone,
    trunk: nn.Module | None,
    images: _Images,
    settings: FinetuneSettings,
    resources: Resources,
) -> tuple[Sequence[ImageRow], bool]:
    """Say which images have activations, and whether those of frozen blocks are kept."""
    rows = resources.activation_rows or [*images.train, *images.validation, *images.test]
    training = len(images.may_train)
    return rows, resources.keeps_activations(backbone, trunk, settings, len(rows), training)


def _write(
    directory: Path,
    backbone: Backbone,
    images: _Images,
    trainer: Trainer,
    result: FinetuneResult,
    with_extras: bool,
    max_image_mb: int,
) -> None:
    """Write the network with its record, the history, and some images as they were augmented."""
    settings = trainer.settings
    if with_extras and settings.augment != "none":
        some = _at_most(images.train, CONTACT_SHEET_IMAGES)
        found = pixels_of(some, images.root, backbone.preprocessing, max_image_mb)
        pixels = np.concatenate(list(found))
        write_contact_sheet(directory / "augmented.png", pixels, settings.augment, settings.seed)
    record = ModelRecord.of(
        backbone,
        result.classes,
        **{name: getattr(result, name) for name in _IN_RECORD},
        unfreeze=settings.unfreeze,
        settings=vars(settings),
        metrics=result.metrics.as_dict(),
        snapshot_fingerprint=images.fingerprint,
        versions={"torch": str(torch.__version__)},
    )
    save_model(directory, Network(backbone.module, trainer.part.classifier).cpu(), record)
    write_history(directory, result.history, picture=with_extras)


def identity_of(
    backbone: Backbone, data: TrainingData, settings: FinetuneSettings, resources: Resources
) -> dict[str, Any]:
    """All that decides what a fine-tuning gives, besides its images and their features.

    Parameters are those of ``finetune``.

    Returns
    -------
    JSON values: settings as they come to be

    Raises
    ------
    FxError
        If there are too few images, or the network has fewer blocks.
    """
    images = _Images.of(data, settings.seed)
    trunk = trunk_of(backbone, settings.unfreeze)
    _, kept = _kept(backbone, trunk, images, settings, resources)
    engine = None
    # it runs frozen blocks, and the network on mirrored images; it does not train
    if kept or (settings.augment == AUTO and not settings.from_scratch):
        engine = resources.engine_of(backbone.module, backbone.preprocessing, backbone.identity)
    return {
        **settings.identity(len(images.train), kept=kept),
        "backbone": backbone.identity,
        "preprocessing": backbone.preprocessing.to_dict(),
        "device": resources.device.type,
        # each draws dropout masks of its own
        "processes": join_processes(resources.device).num_processes,
        "activations": kept,
        "engine": engine and engine.numerics,
    }


def fill_activations(
    backbone: Backbone,
    rows: Sequence[ImageRow],
    training: Sequence[ImageRow],
    root: Place,
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
    kept = resources.keeps_activations(backbone, split.trunk, settings, len(rows), len(training))
    reserved = check_room_for_training(
        resources.cache, split, rows, training, settings=settings, resources=resources, kept=kept
    )
    split.load_inputs(rows, training, root, settings, resources, reserved, kept=kept)


def _start_as_head(
    split: SplitNetwork,
    features: Features,
    images: _Images,
    settings: FinetuneSettings,
    resources: Resources,
) -> FlipTrial | None:
    """Make the classifier the head of the training rows; try flips with it, if asked to."""
    head = starting_head(
        features,
        images.train,
        class_weight=settings.class_weight,
        seed=settings.seed,
        progress=resources.progress("fitting the head"),
    )
    fold_into_classifier(head, split.classifier)
    if settings.augment != AUTO:
        return None
    found = try_flips(
        head, split.backbone, features, images.train, images.validation, images.root, resources
    )
    # all processes go by the first one's trial
    return cast("FlipTrial", broadcast_object_list([found])[0])


def _deliver_head(
    part: TrainedPart,
    features: Features,
    images: _Images,
    settings: FinetuneSettings,
    with_extras: bool,
) -> _Delivered:
    """Deliver the head refitted on all training rows, since training did not better it."""
    rows = by_path(images.may_train)
    head = starting_head(features, rows, class_weight=settings.class_weight, seed=settings.seed)
    fold_into_classifier(head, part.classifier)
    limits = None
    if with_extras and head.held_out is not None:
        known = features([row.key for row in rows])
        limits = Limits.of(known, head.held_out, groups=_groups(rows))
    return _Delivered(head.calibration, limits, 0, len(rows))


def _deliver_network(
    trainer: Trainer, state: TrainingState, images: _Images, with_extras: bool
) -> _Delivered:
    """Calibrate the network that training gave."""
    limits = _limits_of(trainer, state, images) if with_extras else None
    apply_temperature(trainer.part.classifier, state.calibration.temperature)
    if state.on_all_rows:
        return _Delivered(state.calibration, limits, state.epoch, len(images.may_train))
    return _Delivered(state.calibration, limits, state.best_epoch, len(images.train))


def _limits_of(trainer: Trainer, state: TrainingState, images: _Images) -> Limits:
    """Learn limits from the validation rows, as the network that they judged saw them.

    New images are compared with the rows that the delivered network was fitted on.
    """
    part = trainer.part
    positions = trainer.activations.positions
    some, last = _at_most(images.train, MAX_ROWS), part.state_dict()
    last = {name: value.clone() for name, value in last.items()}
    part.load_state_dict(state.best)
    of_some = trainer.features(positions(some))
    of_rest = trainer.features(positions(images.validation))
    logits = trainer.classified(of_rest).double() / state.calibration.temperature
    part.load_state_dict(last)
    known = of_some
    if state.on_all_rows:
        known = trainer.features(positions(_at_most(images.may_train, MAX_ROWS)))
    fitted, rest = np.split(np.arange(len(of_some) + len(of_rest)), [len(of_some)])
    labels, probabilities = images.numbers(images.validation), torch.softmax(logits, dim=1).numpy()
    return Limits.of(
        torch.cat([of_some, of_rest]).numpy(),
        OutOfFoldPredictions([(fitted, rest)], rest, labels, probabilities),
        groups=_groups([*some, *images.validation]),
        known=known.numpy(),
    )


def _predict(
    trainer: Trainer, rows: Sequence[ImageRow], calibration: Calibration
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of some rows, calibrated as the network is, and without that."""
    logits = trainer.logits(trainer.activations.positions(rows)).double()
    if not torch.isfinite(logits).all():
        # of the last step no loss was computed
        raise FxError("training diverged: outputs are not finite; give a lower `learning_rate`")
    uncalibrated = torch.softmax(logits * calibration.temperature, dim=1)
    return torch.softmax(logits, dim=1).numpy(), uncalibrated.numpy()


def _groups(rows: Sequence[ImageRow]) -> NDArray[np.str_]:
    """What each row belongs to: a group, or itself."""
    return np.array([unit_of(row) for row in rows])


def _at_most(rows: Sequence[ImageRow], count: int) -> Sequence[ImageRow]:
    """Take no more than `count` rows, evenly spaced."""
    return rows[:: -(-len(rows) // count)]
