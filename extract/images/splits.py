"""Splits: which images train, validate and test.

A split depends on an image's key (or its group) and the split seed only, so adding images never
moves another one. Copies count once; bytes under two labels are in no split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from extract.images.entries import ImageRow

TEST_SHARE = 0.2


def position(seed: int, unit: str) -> float:
    """Map an image or group to a fixed place in [0, 1), uniform over units."""
    digest = hashlib.sha256(f"{seed}:{unit}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def unit_of(row: ImageRow) -> str:
    """What stays together in a split: the group where one is given, else the image's bytes."""
    return f"group:{row.group}" if row.group is not None else f"key:{row.key.hex()}"


def assign_splits(
    rows: Iterable[ImageRow], split_seed: int, min_images: int = 0
) -> tuple[ImageRow, ...]:
    """Decide every row's split.

    Rows come with the split that was given for them, or None. Where no test split is given, a
    fifth of the units of the rows without one, or with ``train``, is set aside by hash. Two
    exceptions, for classes with more than one unit: one that would have no test row gives up the
    unit with its lowest hash, and one that would have no other row keeps that with its highest.
    A class of one unit is for training.

    Parameters
    ----------
    rows : with key, label, group, given split
    split_seed : moves the whole split
    min_images : classes of fewer units are in no split

    Returns
    -------
    the rows, sorted by path, with ``split`` and ``note`` decided
    """
    ordered = _settle_copies(sorted(rows, key=lambda row: row.path))
    units = units_of_classes(ordered)
    few = f"of a class of fewer than {min_images} images"
    ordered = [
        replace(row, note=few) if _counts(row) and units[str(row.label)] < min_images else row
        for row in ordered
    ]
    counted = [row for row in ordered if _counts(row)]
    test_given = any(row.split == "test" for row in counted)
    aside = set() if test_given else _test_units(counted, split_seed)
    result = []
    for row in ordered:
        if not _counts(row):
            result.append(replace(row, split=None))
        elif row.split == "val" or test_given:
            result.append(replace(row, split=row.split or "train"))
        else:
            result.append(replace(row, split="test" if unit_of(row) in aside else "train"))
    return tuple(result)


def units_of_classes(rows: Iterable[ImageRow]) -> Counter[str]:
    """Count the images (groups, where given) of each class that can be in a split."""
    units = {(str(row.label), unit_of(row)) for row in rows if _counts(row)}
    return Counter(label for label, _ in units)


def has_given_test(rows: Iterable[ImageRow], split_seed: int) -> bool:
    """Whether the test split of a snapshot is the user's own, not the one set aside by hash."""
    counted = [row for row in rows if _counts(row)]
    test = {unit_of(row) for row in counted if row.split == "test"}
    return test != _test_units(counted, split_seed)


def _counts(row: ImageRow) -> bool:
    return row.readable and not row.note and row.label is not None


def _test_units(rows: list[ImageRow], seed: int) -> set[str]:
    candidates = [row for row in rows if row.split != "val"]
    aside = {unit_of(row) for row in candidates if position(seed, unit_of(row)) < TEST_SHARE}
    units: dict[str, set[str]] = defaultdict(set)
    for row in candidates:
        units[str(row.label)].add(unit_of(row))
    for label in sorted(units):
        ordered = sorted(units[label], key=lambda unit: position(seed, unit))
        if len(ordered) > 1 and not units[label] & aside:
            aside.add(ordered[0])
        elif units[label] <= aside:
            aside.discard(ordered[-1])
    return aside


def _settle_copies(rows: list[ImageRow]) -> list[ImageRow]:
    """Mark rows with the bytes of another: in conflict, or copies of the one that counts.

    By their place and not their path: a table may list one path twice.
    """
    notes: dict[int, str] = {}
    for places in same_bytes(rows):
        if len({rows[i].label for i in places if rows[i].label is not None}) > 1:
            notes.update((i, "conflicting labels") for i in places)
        else:
            first = rows[places[0]].path
            notes.update((i, f"copy of {first}") for i in places[1:])
    return [replace(row, note=notes[i]) if i in notes else row for i, row in enumerate(rows)]


def same_bytes(rows: list[ImageRow]) -> list[list[int]]:
    """Places of rows that share a key; first the one that counts, where the labels agree."""
    by_key: dict[bytes, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.readable:
            by_key[row.key].append(place)
    # a copy that is given in the test split counts there: the test split stays what it was
    rank = {"test": 0, "val": 1, "train": 2, None: 2}
    return [
        sorted(same, key=lambda i: (rows[i].label is None, rank[rows[i].split], rows[i].path))
        for same in by_key.values()
        if len(same) > 1
    ]
