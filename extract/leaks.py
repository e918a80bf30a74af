"""Leaks: images that lie on both sides of a split, byte for byte or nearly so."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from extract.images import ImageRow, Snapshot, first_near_copies, same_bytes
from extract.store import FeatureSet


class Leak(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image whose copy, or near-copy, lies on another side of the split.

    Attributes
    ----------
    path, split : of the image
    copy, near_copy : path of the other one; one of the two is None
    other : the other one's split
    """

    path: str
    split: str
    copy: str | None = None
    near_copy: str | None = None
    other: str


def leaked_copies(rows: Iterable[ImageRow]) -> list[Leak]:
    """List byte-for-byte copies that the given splits put on different sides.

    Parameters
    ----------
    rows : with the splits that the folder or table gave
    """
    ordered = sorted(rows, key=lambda row: row.path)
    leaks = []
    for places in same_bytes(ordered):
        first = ordered[places[0]]
        for row in (ordered[i] for i in places[1:]):
            if first.split and row.split and first.split != row.split:
                leaks.append(
                    Leak(path=row.path, split=row.split, copy=first.path, other=first.split)
                )
    return leaks


def near_leaks(snapshot: Snapshot, features: FeatureSet) -> list[Leak]:
    """List test images of which a training image is a near-copy, each with the first of them."""
    test = snapshot.split("test")
    train = snapshot.split("train") + snapshot.split("val")
    if not test or not train:
        return []
    copies = first_near_copies(
        features.hashes([row.key for row in test]), features.hashes([row.key for row in train])
    )
    return [
        Leak(
            path=row.path,
            split="test",
            near_copy=train[copy].path,
            other=str(train[copy].split),
        )
        for row, copy in zip(test, copies, strict=True)
        if copy >= 0
    ]
