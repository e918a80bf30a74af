"""Importing torchvision and timm without torch's compiler, which would take longest of all.

And importing the compiler, where torch will, without a temporary folder.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from extract.imports import in_place_of


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Let torchvision and timm be imported without ``torch._dynamo``.

    torchvision imports it for one function, by which detectors ask whether they run compiled; here
    that is no. timm marks functions of a few transformers as not to be compiled, which is left out.
    """
    stand_in = ModuleType("torch._dynamo.utils")
    stand_in.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    unmarked = patch.object(torch.compiler, "disable", _unmarked)
    with in_place_of(stand_in.__name__, stand_in), unmarked:
        yield


def import_compiler() -> None:
    """Import torch's compiler, before torch does so on its way to trace or to train a network.

    It begins by making a folder for its cache among the temporary ones, which fails where a disk is
    full or read-only. Nothing is compiled here, so any existing folder will do.
    """
    if "torch._dynamo" not in sys.modules:
        there = str(Path(torch.__file__).parent)
        with patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=there):
            importlib.import_module("torch._dynamo")


def _unmarked(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    """Stand in for the decorator ``torch.compiler.disable``, with and without brackets."""
    return (lambda one: one) if fn is None else fn
