"""What lies on both sides of a split: images, nearly so, mirrored or in part, and groups."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

import msgspec
import numpy as np

from extract.errors import FxError
from extract.files import decoded
from extract.images import ImageRow, Snapshot, are_mirrored, first_near_copies, same_bytes
from extract.leaks.parts import LEAST_SIZE, find_parts
from extract.store import FeatureSet, FeatureStore

VERSION = 1  # of what ``near_leaks`` finds: another one is not taken from a store
Kind = Literal["mirrored", "crop", "mirrored crop"] | None


class Leak(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image whose copy, or near-copy, or group lies on another side of the split.

    Attributes
    ----------
    path, split : of the image
    copy, near_copy : path of the other one
    group : that both are of; one of the three is not None
    other : the other one's split
    kind : of a near-copy that is more than resized or encoded again: mirrored, or one of the two
        images is a part of the other, or that and mirrored
    """

    path: str
    split: str
    copy: str | None = None
    near_copy: str | None = None
    group: str | None = None
    other: str
    kind: Kind = None


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


def leaked_groups(rows: Iterable[ImageRow]) -> list[Leak]:
    """List images that are not for training, of whose group others are, or are for validation."""
    grouped = [row for row in rows if row.group is not None and row.split]
    sides: dict[str | None, set[str]] = defaultdict(set)
    for row in grouped:
        sides[row.group].add(str(row.split))
    leaks = []
    for row in sorted(grouped, key=lambda row: row.path):
        others = sides[row.group] - {str(row.split), "test"}
        if row.split != "train" and others:
            leaks.append(
                Leak(path=row.path, split=str(row.split), group=row.group, other=min(others))
            )
    return leaks


def near_leaks(snapshot: Snapshot, features: FeatureSet) -> list[Leak]:
    """List test images that a training image nearly is, each with one such image.

    Near-copies and mirrored ones are found by their perceptual hashes. Crops are looked for among
    the other test images, where the network sees at least 96 pixels (see ``find_parts``).
    """
    test = snapshot.split("test")
    train = snapshot.split("train") + snapshot.split("val")
    if not test or not train:
        return []
    ours, theirs = (features.hashes([row.key for row in rows]) for rows in (test, train))
    copies = first_near_copies(ours, theirs)
    mirrored = are_mirrored(ours, theirs[copies])
    found: dict[int, tuple[int, Kind]] = {
        i: (int(copies[i]), "mirrored" if mirrored[i] else None)
        for i in np.flatnonzero(copies >= 0).tolist()
    }
    if features.spec.size >= LEAST_SIZE:
        rest = [i for i in range(len(test)) if i not in found]
        parts = find_parts(features, snapshot.root, [test[i] for i in rest], train)
        for i, (copy, turned) in parts.items():
            found[rest[i]] = copy, "mirrored crop" if turned else "crop"
    return [
        Leak(
            path=test[i].path,
            split="test",
            near_copy=train[copy].path,
            other=str(train[copy].split),
            kind=kind,
        )
        for i, (copy, kind) in sorted(found.items())
    ]


def kept_near_leaks(store: FeatureStore, snapshot: Snapshot, features: FeatureSet) -> list[Leak]:
    """Give what ``near_leaks`` finds, of earlier where nothing has changed that it depends on.

    Parameters
    ----------
    store : keeps what was found; the caller holds its lock
    snapshot, features : as ``near_leaks`` takes them
    """
    kept: dict[str, _Kept] = {}
    with suppress(FxError, ValueError):  # looking again is all that it costs
        kept = decoded(store.read_leaks(snapshot.name), dict[str, _Kept])
    keys = [row.key for row in snapshot.rows if row.split]
    decisive = [VERSION, snapshot.root, snapshot.fingerprint, features.digest(keys)]
    identity = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    if features.name in kept and kept[features.name].identity == identity:
        return kept[features.name].leaks
    found = near_leaks(snapshot, features)
    names = store.catalogue.names()
    kept = {name: one for name, one in kept.items() if name in names}
    kept[features.name] = _Kept(identity, found)
    with suppress(FxError):  # there may be no room for it
        store.write_leaks(snapshot.name, msgspec.json.encode(kept))
    return found


class _Kept(msgspec.Struct, frozen=True):
    """Leaks that were found with one feature set, and a hash of all that they depend on."""

    identity: str
    leaks: list[Leak]


def leaks_not_sought(snapshot: Snapshot, features: FeatureSet) -> str:
    """Say which leaks ``near_leaks`` does not look for; empty where it looks for all."""
    if features.spec.size >= LEAST_SIZE or not snapshot.split("test"):
        return ""
    return (
        f"cropped copies are looked for from {LEAST_SIZE} pixels on; "
        f"the network sees {features.spec.size}"
    )
