"""The training loop, and what it keeps on disk."""

from finetune.training.auxiliary import Auxiliaries
from finetune.training.checkpoint import (
    FinetunedModel,
    ModelRecord,
    TrainingState,
    bytes_of,
    load_model,
    save_model,
)
from finetune.training.history import EpochRow, StepRow, write_history, write_steps
from finetune.training.loop import Rows, train
from finetune.training.processes import check_tracker, join_processes, make_accelerator
from finetune.training.trainer import Trainer, weights_of_classes
