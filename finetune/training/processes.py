"""Devices, precision and several processes: accelerate does all of it, and is set up here."""

import threading
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from extract.errors import FxError
from extract.files import disk_full_as_fx_error, why_not_written
from finetune.settings import FinetuneSettings

TRACKERS = ("tensorboard", "mlflow")
# What the first process does alone (extraction above all) may take hours.
PROCESS_TIMEOUT = timedelta(days=7)


def join_processes(device: torch.device) -> PartialState:
    """Join the other processes of this run, where ``accelerate launch`` has started some."""
    return PartialState(cpu=device.type == "cpu", timeout=PROCESS_TIMEOUT)


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that cannot be used; None is no tracker.

    Raises
    ------
    FxError
        If it is unknown or not installed.
    """
    if name is not None and name not in TRACKERS:
        raise FxError(f"unknown tracker {name!r}; choose {' or '.join(TRACKERS)}")
    if name is not None and find_spec(name) is None:
        raise FxError(f"`log_to={name}` needs a package that is not installed: pip install {name}")


def make_accelerator(
    device: torch.device,
    settings: FinetuneSettings,
    *,
    log_to: str | None = None,
    directory: Path | None = None,
) -> Accelerator:
    """Make the accelerator that places, wraps and synchronises a training.

    Parameters
    ----------
    device : ``cpu``, or the kind that accelerate finds by itself
    settings : gives the precision
    log_to : ``tensorboard`` or ``mlflow``, which must be installed
    directory : where a tracker writes

    Raises
    ------
    CannotWrite
        If the tracker has no room, or cannot write there.
    FxError
        If the tracker is unknown or not installed.
    """
    check_tracker(log_to)
    join_processes(device)
    # accelerate keeps one state a process and refuses another precision; a comparison has several
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        log_with=log_to,
        project_dir=directory,
        # while the classifier trains alone, the blocks have no gradients
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=settings.classifier_epochs > 0)
        ],
    )
    if log_to is not None:
        with disk_full_as_fx_error(directory or Path()):
            accelerator.init_trackers(log_to)
        threading.excepthook = _ignore_reported_write_errors
    return accelerator


def _ignore_reported_write_errors(ended: threading.ExceptHookArgs) -> None:
    # a tracker's thread that cannot write: the logging call raises an exception of its own
    error = ended.exc_value
    if not isinstance(error, Exception) or not why_not_written(error, Path()):
        threading.__excepthook__(ended)


def gather_rows(accelerator: Accelerator, mine: torch.Tensor, total: int) -> torch.Tensor:
    """Put the rows of all processes together, in their order: each process has every n-th of them.

    Parameters
    ----------
    mine : tensor of shape (rows of this process, …) on the CPU
    total : rows in all
    """
    if accelerator.num_processes == 1:
        return mine
    everything = torch.empty((total, *mine.shape[1:]), dtype=mine.dtype)
    parts: list[Any] = gather_object([(accelerator.process_index, mine)])
    for index, part in parts:
        everything[index :: accelerator.num_processes] = part
    return everything
