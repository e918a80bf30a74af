"""fx: features of pretrained CNNs, classical heads on them, fine-tuning, and which of them pays.

What the command does, as functions: options in, a record out. The parts that they are made of
are the packages ``extract``, ``heads`` and ``finetune``.
"""

from __future__ import annotations

# and not from typing, which takes a moment to import, in which the command cannot be interrupted
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from fx.comparison import compare
    from fx.extract_stage import extract_images
    from fx.extractor import FeatureExtractor
    from fx.finetune_stage import finetune_images
    from fx.head_stage import fit_head_on_store
    from fx.options import Options
    from fx.plan import Plan
    from fx.prediction import predict_images
    from fx.report import write_report

__all__ = [
    "FeatureExtractor",
    "Options",
    "Plan",
    "compare",
    "extract_images",
    "finetune_images",
    "fit_head_on_store",
    "predict_images",
    "write_report",
]

_WHERE = {
    "FeatureExtractor": "fx.extractor",
    "Options": "fx.options",
    "Plan": "fx.plan",
    "compare": "fx.comparison",
    "extract_images": "fx.extract_stage",
    "finetune_images": "fx.finetune_stage",
    "fit_head_on_store": "fx.head_stage",
    "predict_images": "fx.prediction",
    "write_report": "fx.report",
}


def __getattr__(name: str) -> Any:
    # imported when asked for (PEP 562): the command's help needs none of it
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module 'fx' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
