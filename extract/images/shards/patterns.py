"""Patterns of shards' names, as WebDataset takes them: ``train-{000..012}.tar``, ``{a,b}.tar``."""

import itertools
import math
import os
import re
from pathlib import Path

from extract.errors import FxError
from extract.files import ObjectPath, Place

MOST_SHARDS = 100_000
# what a shard's name ends with
SHARDS = (".tar", ".parquet")


def expand_pattern(path: Place) -> tuple[Place, list[Place]] | None:
    """Give the folder of what a pattern names, and the shards; None of what is no pattern.

    Raises
    ------
    FxError
        If it names none, or more than ``MOST_SHARDS``.
    """
    pattern = path.key if isinstance(path, ObjectPath) else str(path)
    if path.suffix.lower() not in SHARDS or not re.search(r"{[^{}]*(\.\.|,)[^{}]*}", pattern):
        return None
    parts = re.split(r"{([^{}]+)}", pattern)
    choices: list[list[str]] = [[part] for part in parts]
    for number in range(1, len(parts), 2):
        if span := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", parts[number]):
            first, last = map(int, span.groups())
            some = range(first, min(last, first + MOST_SHARDS) + 1)
            choices[number] = [str(one).zfill(len(span[1])) for one in some]
        else:
            choices[number] = parts[number].split(",")
    if not 0 < math.prod(map(len, choices)) <= MOST_SHARDS:
        raise FxError(f"{str(path)!r} names no shards, or more than {MOST_SHARDS:,}; give others")
    names = ["".join(one) for one in itertools.product(*choices)]
    folder = os.path.commonpath([os.path.dirname(name) for name in names])  # noqa: PTH120
    if isinstance(path, ObjectPath):
        return ObjectPath(path.base, folder), [ObjectPath(path.base, name) for name in names]
    return Path(folder), [Path(name) for name in names]
