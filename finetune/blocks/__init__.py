"""Networks cut into numbered blocks."""

from finetune.blocks.blocks import cut, depths, find_blocks
