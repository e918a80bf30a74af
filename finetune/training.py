"""The training loop: what is frozen stays bitwise as it was, and every epoch can be resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extract import FxError, autocast
from finetune.activations import Activations
from finetune.checkpoint import (
    Tensors,
    TrainingState,
    load_training_state,
    save_training_state,
)
from finetune.network import TrainedPart
from finetune.settings import FinetuneSettings

Progress = Callable[[int, int], None]
NORMALISATIONS = (nn.modules.batchnorm._BatchNorm,)


def train(
    part: TrainedPart,
    activations: Activations,
    *,
    train_rows: NDArray[np.int64],
    train_labels: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
    validation_labels: NDArray[np.int64],
    settings: FinetuneSettings,
    device: torch.device,
    state_file: Path,
    progress: Progress | None = None,
) -> TrainingState:
    """Train until the validation log loss stops falling; ``part`` ends as its best epoch.

    Parameters
    ----------
    part : trained in place; epoch 0 is as it comes
    activations : inputs of ``part``
    train_rows, validation_rows : int64 arrays, positions in ``activations``
    train_labels, validation_labels : int64 arrays, class numbers
    settings : how
    device : where
    state_file : written after every epoch; if it is there, training goes on from it
    progress : called with steps done and in all

    Raises
    ------
    FxError
        If the loss stops being a number.
    """
    part.to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        _parameter_groups(part, settings), lr=settings.peak_learning_rate, foreach=False
    )

    def evaluate(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[float, float]:
        logits = predict_logits(part, activations, rows, settings=settings, device=device)
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
        return loss, float((logits.argmax(1).numpy() == labels).mean())

    if state_file.exists():
        state = load_training_state(state_file, part, optimiser)
    else:
        state = TrainingState(best=_copy_of(part))
        train_loss, train_accuracy = evaluate(train_rows, train_labels)
        loss, accuracy = evaluate(validation_rows, validation_labels)
        state.best_loss = math.inf if settings.from_scratch else loss
        state.history.append(_record(0, train_loss, train_accuracy, loss, accuracy, 0.0))
    while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
        epoch = state.epoch + 1
        train_loss, train_accuracy, rate = _train_epoch(
            part,
            optimiser,
            activations,
            train_rows,
            train_labels,
            epoch,
            settings,
            device,
            progress,
        )
        loss, accuracy = evaluate(validation_rows, validation_labels)
        record = _record(epoch, train_loss, train_accuracy, loss, accuracy, rate)
        state.history.append(record)
        state.epoch = epoch
        if loss < state.best_loss:
            state.best_epoch, state.best_loss, state.best = epoch, loss, _copy_of(part)
        save_training_state(state_file, state, part, optimiser)
    part.load_state_dict(state.best)
    part.eval()
    return state


def _train_epoch(
    part: TrainedPart,
    optimiser: torch.optim.Optimizer,
    activations: Activations,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    epoch: int,
    settings: FinetuneSettings,
    device: torch.device,
    progress: Progress | None,
) -> tuple[float, float, float]:
    """Pass once over the rows; return the mean loss, the accuracy and the last learning rate."""
    set_training_mode(part, settings)
    # a last batch of one image goes with the one before: batch norm cannot train on it
    batches = max(1, -(-(len(rows) - 1) // settings.batch_size))
    total = settings.epochs * batches
    # seeded by the epoch, so that a resumed run draws what an undisturbed one would have
    seed = settings.seed * 100_003 + epoch
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).numpy()
    loss_sum, correct, rate = 0.0, 0, 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for number in range(batches):
            stop = None if number == batches - 1 else (number + 1) * settings.batch_size
            chosen = order[number * settings.batch_size : stop]
            step = (epoch - 1) * batches + number
            rate = settings.peak_learning_rate * schedule(step, total, settings.warm_up)
            for group in optimiser.param_groups:
                group["lr"] = rate
            truth = torch.from_numpy(labels[chosen]).to(device)
            with autocast(device, settings.precision):
                logits = part(activations.take(rows[chosen]).to(device))
            loss = nn.functional.cross_entropy(logits.float(), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            optimiser.step()
            loss_sum += loss.item() * len(chosen)
            correct += int((logits.argmax(1) == truth).sum())
            if progress:
                progress(step + 1, total)
    if not math.isfinite(loss_sum):
        raise FxError(
            f"training diverged in epoch {epoch} (the loss is {loss_sum}); "
            f"try --learning-rate {settings.peak_learning_rate / 10:.1g}"
        )
    return loss_sum / len(rows), correct / len(rows), rate


def set_training_mode(part: TrainedPart, settings: FinetuneSettings) -> None:
    """Put dropout into training; batch norm only from scratch.

    With the small batches and few images of fine-tuning, batch statistics are noise, and running
    ones would drift from those that the pretrained weights fit.
    """
    part.train()
    if not settings.from_scratch:
        for module in part.modules():
            if isinstance(module, NORMALISATIONS):
                module.eval()


def predict_logits(
    part: TrainedPart,
    activations: Activations,
    rows: NDArray[np.int64],
    *,
    settings: FinetuneSettings,
    device: torch.device,
) -> torch.Tensor:
    """Compute logits in inference mode: float32 tensor (len(rows), classes) on the CPU."""
    part.eval()
    size = max(settings.batch_size, 64)
    parts = []
    with torch.inference_mode(), autocast(device, settings.precision):
        for start in range(0, len(rows), size):
            inputs = activations.take(rows[start : start + size]).to(device)
            parts.append(part(inputs).float().cpu())
    return torch.cat(parts)


def schedule(step: int, total: int, warm_up: float) -> float:
    """Share of the peak learning rate: a linear rise over ``warm_up``, then a cosine to zero.

    Loshchilov and Hutter 2017, without restarts.
    """
    rise = max(1, round(warm_up * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _parameter_groups(
    part: TrainedPart, settings: FinetuneSettings
) -> list[dict[str, list[nn.Parameter] | float]]:
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    return [
        {
            "params": [p for p in trained if p.dim() > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _copy_of(part: TrainedPart) -> Tensors:
    return {name: copy.deepcopy(value).cpu() for name, value in part.state_dict().items()}


def _record(
    epoch: int,
    train_loss: float,
    train_accuracy: float,
    validation_loss: float,
    validation_accuracy: float,
    learning_rate: float,
) -> dict[str, float | int | None]:
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "validation_loss": validation_loss,
        "validation_accuracy": validation_accuracy,
        "learning_rate": learning_rate,
    }
