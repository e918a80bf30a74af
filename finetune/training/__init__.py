"""The training loop, and what it keeps on disk."""

from finetune.training.auxiliary import Auxiliaries
from finetune.training.checkpoint import TrainingState, bytes_of, load_model, save_model
from finetune.training.history import write_history, write_steps
from finetune.training.loop import Rows, train
from finetune.training.processes import check_tracker, joined, make_accelerator
from finetune.training.trainer import Trainer, weights_of_classes

__all__ = [
    "Auxiliaries",
    "Rows",
    "Trainer",
    "TrainingState",
    "bytes_of",
    "check_tracker",
    "joined",
    "load_model",
    "make_accelerator",
    "save_model",
    "train",
    "weights_of_classes",
    "write_history",
    "write_steps",
]
