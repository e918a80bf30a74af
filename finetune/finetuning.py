"""Stage three: a network that starts as the fitted head and is trained only where that pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extract import Backbone, Engine, FxError, ImageRow, make_engine, unit_of
from finetune.activations import Activations, load_activations
from finetune.blocks import cut
from finetune.checkpoint import save_model
from finetune.history import write_history
from finetune.network import Network, TrainedPart
from finetune.settings import FinetuneSettings
from finetune.training import predict_logits, train
from finetune.validation import set_validation_aside
from heads import Head, Metrics, evaluate, fit_head

Progress = Callable[[str], Callable[[int, int], None] | None]
Features = Callable[[Sequence[bytes]], NDArray[np.float32]]


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
    classes : in the order of the probabilities' columns
    trainable_parameters : how many numbers trained
    epochs, best_epoch : passes made, and the one delivered; 0 is the head, refitted on all rows
    history : a record an epoch
    n_train, n_validation : rows that trained, and that chose the epoch
    images_per_second : of training
    """

    metrics: Metrics
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    trainable_parameters: int
    epochs: int
    best_epoch: int
    history: list[dict[str, float | int | None]]
    n_train: int
    n_validation: int
    images_per_second: float


def finetune(
    backbone: Backbone,
    data: TrainingData,
    features: Features | None,
    *,
    settings: FinetuneSettings,
    device: torch.device,
    directory: Path,
    cache: Path,
    activation_rows: Sequence[ImageRow] = (),
    engine: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Train the last blocks of a backbone and a classifier, from the head fitted on its features.

    Parameters
    ----------
    backbone : its module is changed in place
    data : the images
    features : gives the stored features of keys, float32 array of shape (len(keys), dim);
        None where training is from scratch
    settings : how to train
    device : where
    directory : gets ``model.safetensors``, ``model.json``, ``history.csv`` and ``history.png``;
        an interrupted run is found there and goes on
    cache : folder for activations at the freezing boundary
    activation_rows : images whose activations the cache shall hold, where it is shared by several
        fine-tunings; by default those of ``data``
    engine : that runs the trunk: ``auto``, ``torch`` or ``openvino``
    batch_size : images in one pass through the trunk; None for what suits the engine
    progress : given what is being done, returns a callback for it

    Raises
    ------
    FxError
        If there are too few images, the network has fewer blocks, or training diverges.
    """
    report = progress or (lambda _: None)
    if data.validation:
        training, validation = list(data.train), list(data.validation)
    else:
        training, validation = set_validation_aside(data.train, settings.seed)
    classes = tuple(sorted({str(row.label) for row in training}))
    _check_labels(classes, validation, data.test)
    part, runner, has_trunk = _split_network(
        backbone, len(classes), settings, device, engine, batch_size
    )
    if features is not None:
        head = _fit_start(features, training, settings.seed, report("fitting the head"))
        fold(head, part.classifier)
    activations = _activations_of(
        activation_rows or [*training, *validation, *data.test],
        data.root,
        backbone,
        runner,
        settings,
        has_trunk,
        cache,
        report("frozen blocks"),
    )
    begun = time.perf_counter()
    state = train(
        part,
        activations,
        train_rows=activations.positions(training),
        train_labels=_numbers(training, classes),
        validation_rows=activations.positions(validation),
        validation_labels=_numbers(validation, classes),
        settings=settings,
        device=device,
        state_file=directory / "training.safetensors",
        progress=report("training"),
    )
    seconds = time.perf_counter() - begun
    if state.best_epoch == 0 and features is not None:
        # nothing was gained by training: deliver the head that all labelled rows give
        fold(_fit_start(features, [*training, *validation], settings.seed, None), part.classifier)
    logits = predict_logits(
        part, activations, activations.positions(data.test), settings=settings, device=device
    )
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    metrics = evaluate(probabilities, _numbers(data.test, classes), classes)
    result = Finetuned(
        metrics=metrics,
        probabilities=probabilities,
        classes=classes,
        trainable_parameters=sum(p.numel() for p in part.parameters() if p.requires_grad),
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        history=state.history,
        n_train=len(training),
        n_validation=len(validation),
        images_per_second=state.epoch * len(training) / seconds,
    )
    _deliver(directory, backbone, part, result, settings, data)
    return result


def fill_activations(
    backbone: Backbone,
    rows: Sequence[ImageRow],
    root: Path,
    *,
    settings: FinetuneSettings,
    device: torch.device,
    cache: Path,
    engine: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute the activations that several fine-tunings at one depth will share.

    Parameters are those of ``finetune``; ``rows`` are what it is given as ``activation_rows``.
    """
    _, runner, has_trunk = _split_network(backbone, 2, settings, device, engine, batch_size)
    callback = progress("frozen blocks") if progress else None
    _activations_of(rows, root, backbone, runner, settings, has_trunk, cache, callback)


def _activations_of(
    rows: Sequence[ImageRow],
    root: Path,
    backbone: Backbone,
    engine: Engine,
    settings: FinetuneSettings,
    has_trunk: bool,
    cache: Path,
    progress: Callable[[int, int], None] | None,
) -> Activations:
    identity = {
        "weights": backbone.weights_hash if has_trunk else None,
        "preprocessing": backbone.preprocessing.to_dict(),
        "unfreeze": settings.unfreeze if has_trunk else "all",
        "precision": engine.precision,
    }
    return load_activations(
        sorted(rows, key=lambda row: row.path),
        root,
        engine=engine,
        has_trunk=has_trunk,
        identity=identity,
        cache=cache,
        progress=progress,
    )


def fold(head: Head, classifier: nn.Linear) -> None:
    """Write a head's standardisation, weights and temperature into a linear layer."""
    weight, bias = head.as_linear()
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(np.asarray(weight)))
        classifier.bias.copy_(torch.from_numpy(np.asarray(bias)))


def _fit_start(
    features: Features,
    rows: Sequence[ImageRow],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Head:
    # by path, as a snapshot has them: the folds are those of fx fit-head
    rows = sorted(rows, key=lambda row: row.path)
    grouped = any(row.group is not None for row in rows)
    return fit_head(
        features([row.key for row in rows]),
        np.array([row.label for row in rows]),
        kind="logreg",
        groups=np.array([unit_of(row) for row in rows]) if grouped else None,
        seed=seed,
        progress=progress,
    )


def _split_network(
    backbone: Backbone,
    classes: int,
    settings: FinetuneSettings,
    device: torch.device,
    engine: str,
    batch_size: int | None,
) -> tuple[TrainedPart, Engine, bool]:
    """Freeze the trunk, make the rest trainable, and put a classifier on it."""
    module, preprocessing = backbone.module, backbone.preprocessing
    module.eval().requires_grad_(False)
    trunk, tail = cut(module, backbone.trained_size, settings.unfreeze)
    has_trunk = not isinstance(trunk, nn.Identity)
    tail.requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classifier = nn.Linear(backbone.dim, classes)
    part = TrainedPart(tail, classifier, None if has_trunk else preprocessing, settings.dropout)
    runner = make_engine(
        trunk,
        preprocessing,
        name=engine if has_trunk else "torch",
        device=device.type,
        precision=settings.precision,
        batch_size=batch_size,
    )
    return part, runner, has_trunk


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
        "trainable_parameters": result.trainable_parameters,
        "metrics": result.metrics.as_dict(),
        "snapshot_fingerprint": data.fingerprint,
        "versions": {"torch": torch.__version__},
    }
    network = Network(backbone.module, part.classifier).cpu()
    save_model(directory, network, backbone, record)
    write_history(directory, result.history)
