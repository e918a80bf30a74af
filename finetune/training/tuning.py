"""Learning rate and batch size by short trials on training rows, after which all is as before."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from finetune.settings import AUTO, TunedSettings
from finetune.training.trainer import Trainer

MIN_RATE, MAX_RATE, RATE_STEPS = 1e-6, 1e-1, 60
SMOOTHING = 0.9  # of the loss from step to step
DIVERGED = 4.0  # times the lowest loss
BATCH_SIZES = (16, 32, 64, 128)
MIN_STEPS = 20  # an epoch
TIMED_STEPS = 3  # steps, after one that is not
DEFAULT_BATCH_SIZE = 32


def tune(
    trainer: Trainer, positions: NDArray[np.int64], labels: NDArray[np.int64]
) -> TunedSettings:
    """Find what the trainer's settings leave to be found, and give it settings with that.

    Parameters
    ----------
    trainer : its settings are replaced
    positions, labels : int64 arrays of shape (n,), of the training rows
    """
    size = rate = None
    if trainer.settings.batch_size == AUTO:
        # processes may time differently: the first one's choice is everybody's
        (size,) = broadcast_object_list([_quickest_batch(trainer, positions, labels)])
        trainer.settings = trainer.settings.with_found(TunedSettings(batch_size=size))
        trainer.notes.append(f"batch size {size}: the quickest tried")
    if trainer.settings.learning_rate == AUTO:
        rate = _find_rate(trainer, positions, labels)
        trainer.settings = trainer.settings.with_found(TunedSettings(learning_rate=rate))
        trainer.notes.append(f"learning rate {rate:.2g}: by a range test")
    return TunedSettings(rate, size)


def _find_rate(trainer: Trainer, positions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Raise the rate from step to step; take a tenth of where the smoothed loss is lowest.

    L. Smith, "Cyclical Learning Rates for Training Neural Networks" (2017); the tenth is fastai's.
    """
    rates = np.geomspace(MIN_RATE, MAX_RATE, RATE_STEPS)
    rng = np.random.default_rng(trainer.settings.seed)
    size = min(trainer.settings.step_size, len(positions))
    mean, losses = 0.0, []
    with _undone(trainer):
        for number, rate in enumerate(rates):
            some = rng.choice(len(positions), size, replace=False)
            loss, _ = trainer.step(
                positions[some], labels[some], rate=float(rate), epoch=1, seed=number
            )
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            losses.append(mean / (1 - SMOOTHING ** (number + 1)))
            if not math.isfinite(loss) or losses[-1] > DIVERGED * min(losses):
                break
    return float(rates[int(np.nanargmin(losses))]) / 10


def _quickest_batch(
    trainer: Trainer, positions: NDArray[np.int64], labels: NDArray[np.int64]
) -> int:
    """Time steps of several sizes, as long as memory holds them whole."""
    best, best_rate = min(DEFAULT_BATCH_SIZE, len(positions)), 0.0
    for size in BATCH_SIZES:
        if size * MIN_STEPS > max(len(positions), BATCH_SIZES[0] * MIN_STEPS):
            break
        some = np.arange(size) % len(positions)
        micro_batch, notes = trainer.micro_batch, list(trainer.notes)
        with _undone(trainer):
            for number in range(TIMED_STEPS + 1):
                if number == 1:
                    begun = time.perf_counter()
                trainer.step(positions[some], labels[some], rate=1e-6, epoch=1, seed=number)
            rate = TIMED_STEPS * size / (time.perf_counter() - begun)
        too_large = trainer.micro_batch != micro_batch
        trainer.micro_batch, trainer.notes = micro_batch, notes
        if too_large:
            break
        if rate > 1.05 * best_rate:
            best, best_rate = size, rate
    return best


@contextmanager
def _undone(trainer: Trainer) -> Iterator[None]:
    """Put weights and optimiser back to what they were."""
    weights = copy.deepcopy(trainer.step_module.state_dict())
    optimiser = copy.deepcopy(trainer.optimiser.state_dict())
    trainer.training_mode()
    try:
        yield
    finally:
        trainer.step_module.load_state_dict(weights)
        trainer.optimiser.load_state_dict(optimiser)
