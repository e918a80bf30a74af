"""The training loop: what is frozen stays bitwise as it was, and a killed run goes on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from extract import FxError
from extract.files import told_where_it_fails
from finetune.checkpoint import (
    Tensors,
    TrainingState,
    load_training_state,
    save_training_state,
)
from finetune.network import TrainedPart
from finetune.optimiser import rate_at
from finetune.trainer import Trainer
from finetune.tuning import tune
from heads import Calibration, balanced_weights, calibrate

Progress = Callable[[int, int], None]
# A killed run may lose this much work, in seconds, and the epoch that it was in.
SAVE_INTERVAL = 20.0
# Of log temperatures, as a prior: those of trained networks lay between 0.47 and 3.6.
TEMPERATURE_SPREAD = 1.0


def train(
    trainer: Trainer,
    *,
    train_rows: NDArray[np.int64],
    train_labels: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
    validation_labels: NDArray[np.int64],
    state_file: Path,
    progress: Progress | None = None,
) -> TrainingState:
    """Train until the validation log loss stops falling; the part ends as its best epoch.

    It is the log loss at the epoch's own best temperature: training moves how sure a network is
    far from how sure it may be (with label smoothing below, without it above), which says nothing
    of how well it tells classes apart and is put right at the end.

    Parameters
    ----------
    trainer : its part is trained in place; epoch 0 is as it comes
    train_rows, validation_rows : int64 arrays, positions in the activations
    train_labels, validation_labels : int64 arrays, class numbers
    state_file : written after an epoch, if it is older than 20 seconds; where it is there when
        training begins, training goes on from it
    progress : called with steps done and in all

    Raises
    ------
    CannotWrite
        If the state has no room, or cannot be written.
    FxError
        If the loss stops being a number.
    """
    part = trainer.part
    weights = balanced_weights(validation_labels) if trainer.settings.class_weight else None

    def validate() -> tuple[Calibration, float]:
        logits = trainer.logits(validation_rows).double().numpy()
        accuracy = float((logits.argmax(axis=1) == validation_labels).mean())
        calibration = calibrate(
            logits, validation_labels, weights=weights, spread=TEMPERATURE_SPREAD
        )
        return calibration, accuracy

    if state_file.exists():
        state = load_training_state(state_file, trainer.step_module, trainer.optimiser)
        trainer.settings = replace(trainer.settings, **state.found)
        trainer.notes = state.notes
    else:
        tune(trainer, train_rows, train_labels)
        calibration, accuracy = validate()
        state = TrainingState(best=_copy_of(part), calibration=calibration, notes=trainer.notes)
        for name in ("learning_rate", "batch_size"):
            state.found[name] = getattr(trainer.settings, name)
        if not trainer.settings.from_scratch:
            state.best_loss = calibration.log_loss_after
        state.history.append(_record(0, None, None, calibration, accuracy, 0.0))
    settings = trainer.settings
    saved = time.monotonic()
    while state.epoch < settings.epochs and not _has_settled(state, trainer):
        epoch = state.epoch + 1
        train_loss, train_accuracy = _train_epoch(
            trainer, state, train_rows, train_labels, epoch, progress
        )
        calibration, accuracy = validate()
        rate = state.steps[-1]["learning_rate"]
        record = _record(epoch, train_loss, train_accuracy, calibration, accuracy, rate)
        state.history.append(record)
        state.epoch = epoch
        if calibration.log_loss_after < state.best_loss:
            state.best_epoch, state.best_loss = epoch, calibration.log_loss_after
            state.best, state.calibration = _copy_of(part), calibration
        if trainer.accelerator.is_main_process and time.monotonic() - saved > SAVE_INTERVAL:
            save_training_state(state_file, state, trainer.step_module, trainer.optimiser)
            saved = time.monotonic()
        told = {name: value for name, value in state.history[-1].items() if value is not None}
        with told_where_it_fails(state_file.parent):
            trainer.accelerator.log(told, step=epoch)
    part.load_state_dict(state.best)
    part.eval()
    return state


def _has_settled(state: TrainingState, trainer: Trainer) -> bool:
    """Whether so many epochs of the phase that runs brought nothing over those before them.

    The head that training began with does not count: at its peak the learning rate costs more log
    loss than it has yet brought, and what is won back afterwards is what training is for.
    """
    trained = state.history[1:]
    best = min(trained, key=_loss_of)["epoch"] if trained else 0
    since = max(int(best or 0), trainer.settings.classifier_epochs)
    return state.epoch - since >= trainer.settings.patience


def _loss_of(record: dict[str, float | int | None]) -> float:
    loss = record["calibrated_loss"]
    return math.inf if loss is None else float(loss)


def _train_epoch(
    trainer: Trainer,
    state: TrainingState,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    epoch: int,
    progress: Progress | None,
) -> tuple[float, float]:
    """Pass once over the rows; return the mean loss and the accuracy."""
    settings, device = trainer.settings, trainer.accelerator.device
    trainer.training_mode()
    size = settings.step_size
    # a last batch of one image goes with the one before: batch norm cannot train on it
    batches = max(1, -(-(len(rows) - 1) // size))
    # seeded by the epoch, so that a resumed run draws what an undisturbed one would have
    seeds = np.random.SeedSequence([settings.seed, epoch]).generate_state(batches + 1)
    order = np.random.default_rng(seeds[0]).permutation(len(rows))
    losses, correct = 0.0, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, seed in enumerate(seeds[1:].tolist()):
            stop = None if number == batches - 1 else (number + 1) * size
            chosen = order[number * size : stop]
            step = (epoch - 1) * batches + number
            rate = rate_at(step, batches, settings)
            loss, right = trainer.step(
                rows[chosen],
                labels[chosen],
                rate=rate,
                epoch=epoch,
                seed=seed,
                classifier_alone=epoch <= settings.classifier_epochs,
            )
            if not math.isfinite(loss):
                raise FxError(
                    f"training diverged in epoch {epoch} (the loss is {loss}); "
                    f"try --learning-rate {settings.peak_learning_rate / 10:.1g}"
                )
            state.steps.append({"step": step + 1, "learning_rate": rate, "loss": loss})
            losses += loss * len(chosen)
            correct += right
            if progress:
                progress(step + 1, settings.epochs * batches)
    return losses / len(rows), correct / len(rows)


def _copy_of(part: TrainedPart) -> Tensors:
    return {name: copy.deepcopy(value).cpu() for name, value in part.state_dict().items()}


def _record(
    epoch: int,
    train_loss: float | None,
    train_accuracy: float | None,
    calibration: Calibration,
    validation_accuracy: float,
    learning_rate: float,
) -> dict[str, float | int | None]:
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "validation_loss": calibration.log_loss_before,
        "calibrated_loss": calibration.log_loss_after,
        "temperature": calibration.temperature,
        "validation_accuracy": validation_accuracy,
        "learning_rate": learning_rate,
    }
