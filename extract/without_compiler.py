"""Importing torchvision and timm without torch's compiler, which takes longer than all the rest."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Let what is imported meanwhile do without ``torch._dynamo``.

    torchvision imports it for one function that detectors ask whether they run compiled; here that
    is no. timm marks functions of a few transformers as not to be compiled, which is left out.
    """
    stand_in = ModuleType("torch._dynamo.utils")
    stand_in.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    used = sys.modules.setdefault(stand_in.__name__, stand_in)
    if used is not stand_in:
        # the compiler is there already
        yield
        return
    try:
        with patch.object(torch.compiler, "disable", _unmarked):
            yield
    finally:
        del sys.modules[stand_in.__name__]


def _unmarked(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    """Stand in for the decorator ``torch.compiler.disable``, with and without brackets."""
    return (lambda one: one) if function is None else function
