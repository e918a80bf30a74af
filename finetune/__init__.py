"""Stage three: networks cut into blocks and trained from the fitted head."""

from finetune.blocks import Block, cut, find_blocks
from finetune.checkpoint import FinetunedModel, load_model
from finetune.finetuning import (
    Finetuned,
    TrainingData,
    fill_activations,
    finetune,
    fold,
)
from finetune.settings import FinetuneSettings
from finetune.validation import set_validation_aside

__all__ = [
    "Block",
    "FinetuneSettings",
    "Finetuned",
    "FinetunedModel",
    "TrainingData",
    "cut",
    "fill_activations",
    "find_blocks",
    "finetune",
    "fold",
    "load_model",
    "set_validation_aside",
]
