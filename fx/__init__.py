"""fx: features of pretrained CNNs, classical heads on them, fine-tuning, and which of them pays.

What the command does, as functions: options in, a record out. The parts that they are made of
are the packages ``extract``, ``heads`` and ``finetune``.
"""

from __future__ import annotations

# and not from typing, which takes a moment to import, in which the command cannot be interrupted
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from fx.comparison import Plan as Plan
    from fx.comparison import compare as compare
    from fx.options import Options as Options
    from fx.report import write_report as write_report
    from fx.stages.extract import extract_images as extract_images
    from fx.stages.extractor import FeatureExtractor as FeatureExtractor
    from fx.stages.finetune import finetune_images as finetune_images
    from fx.stages.fit_head import fit_head_on_store as fit_head_on_store
    from fx.stages.predict import predict_images as predict_images

    __version__: str

_WHERE = {
    "FeatureExtractor": "fx.stages.extractor",
    "Options": "fx.options",
    "Plan": "fx.comparison",
    "compare": "fx.comparison",
    "extract_images": "fx.stages.extract",
    "finetune_images": "fx.stages.finetune",
    "fit_head_on_store": "fx.stages.fit_head",
    "predict_images": "fx.stages.predict",
    "write_report": "fx.report",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    # imported when asked for (PEP 562): the command's help needs none of it
    if name == "__version__":
        from importlib.metadata import version

        return version("fx-images")
    if name not in _WHERE:
        raise AttributeError(f"module 'fx' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
