"""Stage three: networks cut into blocks and trained from the fitted head."""

from finetune.blocks import Block, cut, find_blocks
from finetune.checkpoint import FinetunedModel, load_model
from finetune.finetuning import (
    Finetuned,
    TrainingData,
    fill_activations,
    finetune,
)
from finetune.flips import FlipTrial, try_flips
from finetune.processes import TRACKERS, check_tracker, joined, make_accelerator
from finetune.settings import RECIPES, FinetuneSettings
from finetune.split import Resources
from finetune.starting_head import Features, fold, starting_head
from finetune.timing import Timing, time_training
from finetune.validation import VALIDATION_SHARE, set_validation_aside

__all__ = [
    "RECIPES",
    "TRACKERS",
    "VALIDATION_SHARE",
    "Block",
    "Features",
    "FinetuneSettings",
    "Finetuned",
    "FinetunedModel",
    "FlipTrial",
    "Resources",
    "Timing",
    "TrainingData",
    "check_tracker",
    "cut",
    "fill_activations",
    "find_blocks",
    "finetune",
    "fold",
    "joined",
    "load_model",
    "make_accelerator",
    "set_validation_aside",
    "starting_head",
    "time_training",
    "try_flips",
]
