"""Imports of libraries without a part of them, which takes long or does what is not wanted."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast


@contextmanager
def in_place_of(name: str, stand_in: ModuleType | None = None) -> Iterator[None]:
    """Let what is imported meanwhile find another module under a name; None for not installed.

    A module that has been imported under this name stays.
    """
    found = sys.modules.setdefault(name, cast("Any", stand_in))
    try:
        yield
    finally:
        if found is stand_in:
            del sys.modules[name]
