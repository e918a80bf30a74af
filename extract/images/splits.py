"""Splits: which images train, validate and test.

A split depends on an image's key (or its group) and the split seed only, so adding images never
moves another one. Copies count once; bytes under two labels are in no split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from extract.images.entries import ImageRow

TEST_SHARE = 0.2
# Training images (groups, where given) that a class keeps where it has more: two to choose a head
# by cross-validation on, and one for fine-tuning to set aside.
MIN_TRAINING = 3


def position(seed: int, unit: str) -> float:
    """Map an image or group to a fixed place in [0, 1), uniform over units."""
    digest = hashlib.sha256(f"{seed}:{unit}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def unit_of(row: ImageRow) -> str:
    """What stays together in a split: the group where one is given, else the image's bytes."""
    return f"group:{row.group}" if row.group is not None else f"key:{row.key.hex()}"


def group_numbers(rows: Sequence[ImageRow]) -> NDArray[np.intp] | None:
    """Number the groups of rows from 0; None where every row stands alone.

    Returns
    -------
    int array of shape (len(rows),), or None
    """
    groups = np.unique([unit_of(row) for row in rows], return_inverse=True)[1]
    return groups if len(groups) and groups.max() + 1 < len(rows) else None


def assign_splits(
    rows: Iterable[ImageRow], split_seed: int, min_images: int = 0
) -> tuple[ImageRow, ...]:
    """Decide every row's split.

    Rows come with the split that was given for them, or None. Where no test split is given, a
    fifth of the units of the rows without one, or with ``train``, is set aside by hash: those
    whose hash is below 0.2. Two exceptions, by classes. One of three units or more that would have
    no test row gives up the unit with its lowest hash. And every class keeps three units to train
    on, two where it has three, and what it has where it has fewer: those with its highest hashes.
    So a unit's side depends on others only in classes that have few units, or one of many classes.

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
    units: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.split != "val":
            units[str(row.label)].add(unit_of(row))
    places = {unit: position(seed, unit) for of_class in units.values() for unit in of_class}
    aside = {unit for unit, place in places.items() if place < TEST_SHARE}
    by_hash = {label: sorted(units[label], key=places.__getitem__) for label in sorted(units)}
    for ordered in by_hash.values():
        if len(ordered) >= MIN_TRAINING and not aside.intersection(ordered):
            aside.add(ordered[0])
    # last, since a group may hold several classes: what cannot be trained on cannot be measured
    for ordered in by_hash.values():
        kept = MIN_TRAINING if len(ordered) > MIN_TRAINING else min(len(ordered), MIN_TRAINING - 1)
        tested = [unit for unit in ordered if unit in aside]
        aside.difference_update(tested[max(0, len(ordered) - kept) :])
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
