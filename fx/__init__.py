"""fx: features of pretrained CNNs, classical heads on them, fine-tuning, and which of them pays.

What the command does, as functions: its options are their keywords, with the same defaults, and
what it prints is returned as a record. The parts that they are made of are the packages
``extract``, ``heads`` and ``finetune``.
"""

from __future__ import annotations

# and not from typing, which takes a moment to import, in which the command cannot be interrupted
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from fx.commands.advise import advise as advise
    from fx.commands.compare import compare as compare
    from fx.commands.demo import sample as sample
    from fx.commands.extract import extract as extract
    from fx.commands.finetune import finetune as finetune
    from fx.commands.fit_head import fit_head as fit_head
    from fx.commands.models.predict import predict as predict
    from fx.stages.extractor import FeatureExtractor as FeatureExtractor
    from fx.stages.load import load as load

    __version__: str

_COMMANDS = ("advise", "compare", "extract", "finetune", "fit_head", "predict", "sample")
_WHERE = {"FeatureExtractor": "fx.stages.extractor", "load": "fx.stages.load"}

__all__ = [*_COMMANDS, *_WHERE]


def __getattr__(name: str) -> Any:
    # imported when asked for (PEP 562): the command's help needs none of it
    if name == "__version__":
        from importlib.metadata import version

        return version("fx-images")
    if name not in __all__:
        raise AttributeError(f"module 'fx' has no attribute {name!r}")
    from importlib import import_module

    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    found = import_module("fx.commands.app").function_named(name)
    # not made anew each time
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
