"""The training loop: what is frozen stays bitwise as it was, and a killed run goes on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from extract.errors import FxError
from extract.files import disk_full_as_fx_error
from finetune.network import TrainedPart
from finetune.settings import FinetuneSettings
from finetune.training.checkpoint import (
    Tensors,
    TrainingState,
    load_training_state,
    save_training_state,
)
from finetune.training.history import EpochRow, StepRow
from finetune.training.optimiser import rate_at
from finetune.training.trainer import Trainer
from finetune.training.tuning import tune
from heads.calibration import Calibration, calibrate, log_losses

Progress = Callable[[int, int], None]
# Seconds of work that a killed run may lose, besides the epoch that it was in.
SAVE_INTERVAL = 20.0
# Standard deviation of the prior of log temperatures: those of trained networks lie between 0.5 and
# 1, seldom near 3.6. Where that is simulated with 20 to 240 rows, 0.6 loses less log loss than 1,
# and than 0.25 and 0.4 where the temperature is not near 1.
TEMPERATURE_SPREAD = 0.6
# Share of all steps that the moving average of the weights looks back on.
AVERAGE_WINDOW = 0.1
# Fewer validation rows do not say whether training may yet be better than the head.
MIN_ROWS_TO_DOUBT = 30


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

    @classmethod
    def of(cls, settings: FinetuneSettings, training: Rows, set_aside: Rows | None) -> _Plan:
        """Plan the epochs; rows that were set aside train in the final ones."""
        epochs = settings.epochs_for(len(training))
        if set_aside is None:
            return cls(training, training, epochs, 0, settings.step_size)
        final = settings.final_epochs(epochs)
        return cls(training, training + set_aside, epochs - final, final, settings.step_size)

    def batches(self, rows: Rows) -> int:
        """Steps of an epoch; a last batch of one image goes with the one before it.

        Batch norm cannot train on it.
        """
        return max(1, -(-(len(rows) - 1) // self.step_size))

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.first_step(1 + self.judged + self.final)

    def rows_of(self, epoch: int) -> Rows:
        """What an epoch, counted from 1, trains on."""
        return self.rows if epoch <= self.judged else self.all_rows

    def first_step(self, epoch: int) -> int:
        """How many steps are taken before an epoch."""
        judged = min(epoch - 1, self.judged)
        final = epoch - 1 - judged
        return judged * self.batches(self.rows) + final * self.batches(self.all_rows)


@dataclass(frozen=True)
class _Validation:
    """What the validation rows say of a network.

    Attributes
    ----------
    calibration : its best temperature, and the log losses without it and with it
    accuracy : share of the rows classified correctly
    losses : float64 array of shape (n,), each row's log loss at that temperature
    """

    calibration: Calibration
    accuracy: float
    losses: NDArray[np.float64]

    def added_to(self, row: EpochRow) -> EpochRow:
        """Fill in an epoch's columns."""
        return structs.replace(
            row,
            validation_loss=self.calibration.log_loss_before,
            calibrated_loss=self.calibration.log_loss_after,
            temperature=self.calibration.temperature,
            validation_accuracy=self.accuracy,
        )


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

    Epochs are judged by the log loss at their own best temperature: training makes a network less
    sure than it may be (with label smoothing) or surer (without), which says nothing of how well it
    tells classes apart, and is corrected at the end.

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
    if state_file.exists():
        # where a run was interrupted
        state = load_training_state(state_file, trainer.step_module, trainer.optimiser)
        trainer.settings = trainer.settings.with_found(state.found)
        trainer.notes = state.notes
    else:
        state = _begin(trainer, training, validation)
    plan = _Plan.of(trainer.settings, training, validation if set_aside else None)
    average = _moving_average(part, plan, state)
    saved = time.monotonic()
    while not _has_ended(state, plan, trainer.settings):
        row = _train_epoch(trainer, state, plan, average, progress)
        if row.epoch <= plan.judged:
            judged = part if average is None else cast("TrainedPart", average.module)
            found = _validate(trainer, validation, judged)
            row = found.added_to(row)
            _keep_if_best(state, found, judged, plan)
        if row.epoch == plan.judged:
            average, state.average = None, {}
        state.history.append(row)
        if trainer.accelerator.is_main_process and time.monotonic() - saved > SAVE_INTERVAL:
            save_training_state(state_file, state, trainer.step_module, trainer.optimiser)
            saved = time.monotonic()
        logged = {name: x for name, x in structs.asdict(row).items() if x is not None}
        with disk_full_as_fx_error(state_file.parent):
            trainer.accelerator.log(logged, step=row.epoch)
    if not state.on_all_rows:
        part.load_state_dict(state.best)
    part.eval()
    return state


def _begin(trainer: Trainer, training: Rows, validation: Rows) -> TrainingState:
    """Find what the settings leave to be found, and judge the network before it trains."""
    found = tune(trainer, training.positions, training.labels)
    start = _validate(trainer, validation, trainer.part)
    state = TrainingState(
        best=_copy_of(trainer.part),
        calibration=start.calibration,
        history=[start.added_to(EpochRow(0, learning_rate=0.0))],
        found=found,
        notes=trainer.notes,
    )
    if not trainer.settings.from_scratch:
        state.best_loss = start.calibration.log_loss_after
        state.head_losses = start.losses.tolist()
    return state


def _validate(trainer: Trainer, validation: Rows, part: TrainedPart) -> _Validation:
    labels = validation.labels
    weights = compute_sample_weight(how, labels) if (how := trainer.settings.class_weight) else None
    logits = trainer.logits(validation.positions, part).double().numpy()
    calibration = calibrate(logits, labels, weights=weights, spread=TEMPERATURE_SPREAD)
    losses = log_losses(logits / calibration.temperature, labels)
    return _Validation(
        calibration,
        accuracy=float((logits.argmax(axis=1) == labels).mean()),
        losses=losses if weights is None else losses * weights,
    )


def _moving_average(part: TrainedPart, plan: _Plan, state: TrainingState) -> AveragedModel | None:
    """Begin the average of the weights that is judged, or go on with it."""
    if not plan.final or state.epoch >= plan.judged:
        return None
    decay = 1 - 1 / max(2.0, AVERAGE_WINDOW * plan.steps)
    # torch leaves it without types
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(part, multi_avg_fn=update, use_buffers=True)
    if state.average:
        average.load_state_dict(state.average)
    # the tensors themselves, which change with it
    state.average = average.state_dict()
    return average


def _may_be_better(losses: NDArray[np.float64], of_head: NDArray[np.float64]) -> bool:
    """Whether the mean loss exceeds the head's by less than a standard error of the difference.

    Among 40 rows one or two can decide: a network that was far better than its head on 4,000 test
    images was worse on its 40 validation images. With fewer validation rows there are so few
    images in all that training does not pay on average.
    """
    if len(of_head) < MIN_ROWS_TO_DOUBT:
        return False
    worse = losses - of_head
    return bool(worse.mean() < worse.std(ddof=1) / np.sqrt(len(worse)))


def _keep_if_best(
    state: TrainingState, found: _Validation, judged: TrainedPart, plan: _Plan
) -> None:
    """Keep the tensors of the epoch that was just judged, if they will be wanted."""
    loss = found.calibration.log_loss_after
    last = plan.final > 0 and state.epoch == plan.judged
    if last and not state.best_epoch and _may_be_better(found.losses, np.array(state.head_losses)):
        state.best_loss = math.inf
    if loss < state.best_loss:
        state.best_epoch, state.best_loss = state.epoch, loss
    # what goes on in the final epochs is kept, too: its temperature is the nearest to theirs
    elif not (last and state.best_epoch):
        return
    state.best, state.calibration = _copy_of(judged), found.calibration


def _has_ended(state: TrainingState, plan: _Plan, settings: FinetuneSettings) -> bool:
    if not plan.final:
        return state.epoch == plan.judged or _has_settled(state, settings)
    # nothing was gained by training: there is nothing to go on with
    lost = state.epoch == plan.judged and not state.best_epoch
    return lost or state.epoch == plan.judged + plan.final


def _has_settled(state: TrainingState, settings: FinetuneSettings) -> bool:
    """Whether the last `patience` epochs of the current phase were no better than one before.

    The head that training began with does not count: while the learning rate is high the log loss
    rises above the head's, and falls below it later.
    """
    losses = {row.epoch: row.calibrated_loss for row in state.history[1:]}
    known = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    best = min(known, key=known.__getitem__, default=0)
    return state.epoch - max(best, settings.classifier_epochs) >= settings.patience


def _train_epoch(
    trainer: Trainer,
    state: TrainingState,
    plan: _Plan,
    average: AveragedModel | None,
    progress: Progress | None,
) -> EpochRow:
    """Pass once over the next epoch's rows; the means are over its steps."""
    settings, device = trainer.settings, trainer.accelerator.device
    epoch = state.epoch + 1
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
                    f"try `learning_rate={settings.peak_learning_rate / 10:.1g}`"
                )
            state.steps.append(StepRow(step + 1, rate, loss))
            losses += loss * len(chosen)
            correct += right
            if progress:
                progress(step + 1, plan.steps)
    state.epoch = epoch
    return EpochRow(epoch, losses / len(rows), correct / len(rows), learning_rate=rate)


def _copy_of(part: TrainedPart) -> Tensors:
    return {name: copy.deepcopy(value).cpu() for name, value in part.state_dict().items()}
