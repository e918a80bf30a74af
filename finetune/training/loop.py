"""The training loop: what is frozen stays bitwise as it was, and a killed run goes on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from extract.errors import FxError
from extract.files import disk_full_as_fx_error
from finetune.network import TrainedPart
from finetune.training.checkpoint import (
    Tensors,
    TrainingState,
    load_training_state,
    save_training_state,
)
from finetune.training.optimiser import rate_at
from finetune.training.trainer import Trainer
from finetune.training.tuning import tune
from heads.calibration import Calibration, balanced_weights, calibrate, log_losses

Progress = Callable[[int, int], None]
# A killed run may lose this much work, in seconds, and the epoch that it was in.
SAVE_INTERVAL = 20.0
# Of log temperatures, as a prior: those of trained networks lay between 0.47 and 3.6.
TEMPERATURE_SPREAD = 1.0
# Share of all steps that a moving average of the weights looks back on.
AVERAGED = 0.1
# Validation rows that must say so for the head to be doubted where training is not better.
FEWEST_TO_DOUBT = 30


@dataclass(frozen=True)
class Rows:
    """Labelled rows of the activations.

    Attributes
    ----------
    positions : int64 array of shape (n,)
    labels : int64 array of shape (n,), class numbers
    """

    positions: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, others: Rows) -> Rows:
        positions = np.concatenate([self.positions, others.positions])
        return Rows(positions, np.concatenate([self.labels, others.labels]))


@dataclass(frozen=True)
class _Plan:
    """Epochs of a run: those that are judged, and then those on all rows.

    Attributes
    ----------
    rows, all_rows : what they train on
    judged, final : how many there are of each
    step_size : images a step
    """

    rows: Rows
    all_rows: Rows
    judged: int
    final: int
    step_size: int

    def batches(self, rows: Rows) -> int:
        """Steps of an epoch; a last batch of one image goes with the one before it.

        Batch norm cannot train on it.
        """
        return max(1, -(-(len(rows) - 1) // self.step_size))

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.judged * self.batches(self.rows) + self.final * self.batches(self.all_rows)

    def rows_of(self, epoch: int) -> Rows:
        """What an epoch, counted from 1, trains on."""
        return self.rows if epoch <= self.judged else self.all_rows

    def first_step(self, epoch: int) -> int:
        """How many steps are taken before an epoch."""
        judged = min(epoch - 1, self.judged)
        final = epoch - 1 - judged
        return judged * self.batches(self.rows) + final * self.batches(self.all_rows)


def train(
    trainer: Trainer,
    training: Rows,
    validation: Rows,
    *,
    set_aside: bool,
    state_file: Path,
    progress: Progress | None = None,
) -> TrainingState:
    """Train while the validation log loss falls; rows that were set aside train in the end, too.

    Validation rows that were given choose the epoch, and the part ends as the best one. Rows that
    were set aside from the training rows judge the first epochs. If one of those is better than
    the head that the part began as, or the last of them worse by less than a standard error, all
    rows train in the last epochs, and the part ends as the last one; its temperature is that of the
    last epoch that was judged. While the learning rate is high a step moves the weights about: what
    is judged is their moving average, which is nearest to what they will be once it has fallen
    (B. Polyak and A. Juditsky, 1992).

    Epochs are judged by the log loss at their own best temperature: training moves how sure a
    network is far from how sure it may be (with label smoothing below, without it above), which
    says nothing of how well it tells classes apart, and is put right at the end.

    Parameters
    ----------
    trainer : its part is trained in place; epoch 0 is as it comes
    training, validation : what trains, and what judges
    set_aside : whether the validation rows are to train in the end
    state_file : written after an epoch, if it is older than 20 seconds; where it is there when
        training begins, training goes on from it
    progress : called with steps done and in all

    Returns
    -------
    TrainingState, whose ``best`` are the tensors that were judged, with their calibration

    Raises
    ------
    CannotWrite
        If the state has no room, or cannot be written.
    FxError
        If the loss stops being a number.
    """
    part = trainer.part
    weights = balanced_weights(validation.labels) if trainer.settings.class_weight else None

    def validate(judged: TrainedPart) -> tuple[Calibration, float, NDArray[np.float64]]:
        logits = trainer.logits(validation.positions, judged).double().numpy()
        accuracy = float((logits.argmax(axis=1) == validation.labels).mean())
        calibration = calibrate(
            logits, validation.labels, weights=weights, spread=TEMPERATURE_SPREAD
        )
        losses = log_losses(logits / calibration.temperature, validation.labels)
        return calibration, accuracy, losses if weights is None else losses * weights

    if state_file.exists():
        state = load_training_state(state_file, trainer.step_module, trainer.optimiser)
        trainer.settings = replace(trainer.settings, **state.found)
        trainer.notes = state.notes
    else:
        tune(trainer, training.positions, training.labels)
        calibration, accuracy, losses = validate(part)
        state = TrainingState(best=_copy_of(part), calibration=calibration, notes=trainer.notes)
        for name in ("learning_rate", "batch_size"):
            state.found[name] = getattr(trainer.settings, name)
        if not trainer.settings.from_scratch:
            state.best_loss, state.head_losses = calibration.log_loss_after, losses.tolist()
        state.history.append(_record(0, None, None, 0.0, calibration, accuracy))
    settings = trainer.settings
    epochs = settings.epochs_for(len(training))
    final = settings.final_epochs(epochs) if set_aside else 0
    plan = _Plan(training, training + validation, epochs - final, final, settings.step_size)
    average = _moving_average(part, plan, state)
    saved = time.monotonic()
    while not _has_ended(state, plan, trainer):
        epoch = state.epoch + 1
        loss, accuracy = _train_epoch(trainer, state, plan, epoch, average, progress)
        rate = state.steps[-1]["learning_rate"]
        state.epoch = epoch
        if epoch <= plan.judged:
            judged = part if average is None else cast("TrainedPart", average.module)
            calibration, right, losses = validate(judged)
            record = _record(epoch, loss, accuracy, rate, calibration, right)
            undecided = epoch == plan.judged and plan.final and not state.best_epoch
            if undecided and _may_be_better(losses, np.array(state.head_losses)):
                state.best_loss = math.inf
            _keep_if_best(state, calibration, judged, plan)
        else:
            record = _record(epoch, loss, accuracy, rate)
        state.history.append(record)
        if epoch == plan.judged:
            average, state.average = None, {}
        if trainer.accelerator.is_main_process and time.monotonic() - saved > SAVE_INTERVAL:
            save_training_state(state_file, state, trainer.step_module, trainer.optimiser)
            saved = time.monotonic()
        told = {name: value for name, value in record.items() if value is not None}
        with disk_full_as_fx_error(state_file.parent):
            trainer.accelerator.log(told, step=epoch)
    if not state.on_all_rows:
        part.load_state_dict(state.best)
    part.eval()
    return state


def _moving_average(part: TrainedPart, plan: _Plan, state: TrainingState) -> AveragedModel | None:
    """Begin the average of the weights that is judged, or go on with it."""
    if not plan.final or state.epoch >= plan.judged:
        return None
    decay = 1 - 1 / max(2.0, AVERAGED * plan.steps)
    # torch leaves it without types
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(part, multi_avg_fn=update, use_buffers=True)
    if state.average:
        average.load_state_dict(state.average)
    # the tensors themselves, which change with it
    state.average = average.state_dict()
    return average


def _may_be_better(losses: NDArray[np.float64], of_head: NDArray[np.float64]) -> bool:
    """Whether rows' losses are above the head's by less than a standard error, row by row.

    Of 40 rows one or two decide otherwise: a network that was far better than its head on 4,000
    test images was not on its 40 validation images. Fewer rows are those of so few images that
    training does not pay on average.
    """
    if len(of_head) < FEWEST_TO_DOUBT:
        return False
    worse = losses - of_head
    return bool(worse.mean() < worse.std(ddof=1) / np.sqrt(len(worse)))


def _keep_if_best(
    state: TrainingState, calibration: Calibration, part: TrainedPart, plan: _Plan
) -> None:
    """Keep the tensors of the epoch that was just judged, if they will be wanted."""
    if calibration.log_loss_after < state.best_loss:
        state.best_epoch, state.best_loss = state.epoch, calibration.log_loss_after
        state.best, state.calibration = _copy_of(part), calibration
    elif plan.final and state.epoch == plan.judged and state.best_epoch:
        # what goes on in the final epochs: its temperature is the nearest to theirs
        state.best, state.calibration = _copy_of(part), calibration


def _has_ended(state: TrainingState, plan: _Plan, trainer: Trainer) -> bool:
    if not plan.final:
        return state.epoch == plan.judged or _has_settled(state, trainer)
    # nothing was gained by training: there is nothing to go on with
    lost = state.epoch == plan.judged and not state.best_epoch
    return lost or state.epoch == plan.judged + plan.final


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
    plan: _Plan,
    epoch: int,
    average: AveragedModel | None,
    progress: Progress | None,
) -> tuple[float, float]:
    """Pass once over an epoch's rows; return the mean loss and the accuracy."""
    settings, device = trainer.settings, trainer.accelerator.device
    trainer.training_mode()
    rows, size = plan.rows_of(epoch), plan.step_size
    batches, first = plan.batches(rows), plan.first_step(epoch)
    alone = settings.classifier_epochs * plan.batches(plan.rows)
    # seeded by the epoch, so that a resumed run draws what an undisturbed one would have
    seeds = np.random.SeedSequence([settings.seed, epoch]).generate_state(batches + 1)
    order = np.random.default_rng(seeds[0]).permutation(len(rows))
    losses, correct = 0.0, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, seed in enumerate(seeds[1:].tolist()):
            stop = None if number == batches - 1 else (number + 1) * size
            chosen = order[number * size : stop]
            step = first + number
            rate = rate_at(step, plan.steps, alone, settings)
            loss, right = trainer.step(
                rows.positions[chosen],
                rows.labels[chosen],
                rate=rate,
                epoch=epoch,
                seed=seed,
                classifier_alone=epoch <= settings.classifier_epochs,
            )
            if average is not None:
                average.update_parameters(trainer.part)
            if not math.isfinite(loss):
                raise FxError(
                    f"training diverged in epoch {epoch} (the loss is {loss}); "
                    f"try --learning-rate {settings.peak_learning_rate / 10:.1g}"
                )
            state.steps.append({"step": step + 1, "learning_rate": rate, "loss": loss})
            losses += loss * len(chosen)
            correct += right
            if progress:
                progress(step + 1, plan.steps)
    return losses / len(rows), correct / len(rows)


def _copy_of(part: TrainedPart) -> Tensors:
    return {name: copy.deepcopy(value).cpu() for name, value in part.state_dict().items()}


def _record(
    epoch: int,
    train_loss: float | None,
    train_accuracy: float | None,
    learning_rate: float,
    calibration: Calibration | None = None,
    validation_accuracy: float | None = None,
) -> dict[str, float | int | None]:
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "validation_loss": calibration.log_loss_before if calibration else None,
        "calibrated_loss": calibration.log_loss_after if calibration else None,
        "temperature": calibration.temperature if calibration else None,
        "validation_accuracy": validation_accuracy,
        "learning_rate": learning_rate,
    }
