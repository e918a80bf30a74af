"""Stage one: every readable image of a folder has a row of features in the store, computed once."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.decode import UnreadableImage, near_copies, perceptual_hash, read_pixels
from extract.engine import Engine
from extract.errors import FxError
from extract.feature_set import FeatureSet, Spec
from extract.preprocessing import Preprocessing
from extract.reading import look
from extract.snapshot import FileStamp, ImageRow, Snapshot, assign_splits, leaked_copies
from extract.sources import ImageSource
from extract.store import FeatureStore, check_snapshot_name
from extract.writer import FeatureWriter

Progress = Callable[[int, int], None]

# A file changed this shortly before it was looked at could change again unnoticed.
RACY_NS = 2_000_000_000
# Largest relative distance between a stored row and the same row computed again.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
ROWS_COMPARED = 8
FILES_SEARCHED = 256


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did; the fields are those of ``fx extract --json``.

    Attributes
    ----------
    store, backbone, spec, snapshot : names of what was filled
    images : images found
    new : feature vectors computed
    reused : images whose vector was there
    failed, duplicates, conflicts, leaks : records, one an image
    splits : rows per split and class
    dim : length of a vector
    seconds, images_per_second : wall time, and images looked at over it
    engine, precision : how the new ones were computed
    """

    store: str
    backbone: str
    spec: str
    snapshot: str
    images: int
    new: int
    reused: int
    failed: list[dict[str, str]]
    duplicates: list[dict[str, str]]
    conflicts: list[str]
    leaks: list[dict[str, str]]
    splits: dict[str, dict[str, int]]
    dim: int
    seconds: float
    images_per_second: float
    engine: str
    precision: str


def make_spec(backbone: Backbone, precision: str) -> Spec:
    """Say what the features of a backbone mean; two sets with one spec may be mixed."""
    return {
        "backbone": backbone.name,
        "weights": backbone.weights_hash,
        "layer": "pool",
        "size": backbone.preprocessing.size,
        "crops": 1,
        "preprocessing": backbone.preprocessing.to_dict(),
        "numerics": precision,
    }


def extract(
    source: ImageSource,
    *,
    backbone: Backbone,
    engine: Engine,
    store: FeatureStore,
    split_seed: int = 0,
    snapshot: str | None = None,
    rehash: bool = False,
    progress: Progress | None = None,
) -> ExtractResult:
    """Compute the features that the store lacks, and keep a snapshot of the images.

    Parameters
    ----------
    source : the images
    backbone : gives the spec
    engine : runs ``backbone.module``
    store : where features go; locked while this runs
    split_seed : moves the split of images that come without one
    snapshot : name of the snapshot; by default made of the folder's name and a hash
    rehash : read every file, also those that look unchanged
    progress : called with images done and images in all

    Raises
    ------
    FxError
        If another process writes to the store, or the snapshot's name cannot be one.
    """
    begun = time.perf_counter()
    taken_ns = time.time_ns()
    check_snapshot_name(snapshot)
    spec = make_spec(backbone, engine.precision)
    with store.lock():
        known = _previous_stamps(store, source, taken_ns) if not rehash else {}
        signature = engine.signature()
        current = store.find(spec)
        stale = current is not None and not _still_agrees(current, store, source, engine, signature)
        run = {
            **signature,
            "threads": os.cpu_count(),
            "weights_source": backbone.weights,
            "taken_ns": taken_ns,
        }
        writer = store.start(spec, backbone.dim, run, new_generation=stale)
        at_hand = frozenset(writer.known)
        rows = _fill(writer, source, engine, known, progress)
        taken = _keep_snapshot(store, source, rows, split_seed, taken_ns, snapshot)
        leaks = leaked_copies(rows) + _near_leaks(taken, writer.feature_set)
    seconds = time.perf_counter() - begun
    return ExtractResult(
        store=str(store.path),
        backbone=backbone.name,
        spec=writer.feature_set.name,
        snapshot=taken.name,
        images=len(taken.rows),
        new=len(writer.known) - len(at_hand),
        reused=sum(row.key in at_hand for row in taken.rows if row.readable),
        failed=taken.failed() + [{"path": p, "reason": r} for p, r in source.skipped],
        duplicates=[
            {"path": row.path, "copy_of": row.note.removeprefix("copy of ")}
            for row in taken.rows
            if row.note.startswith("copy of ")
        ],
        conflicts=[row.path for row in taken.rows if row.note == "conflicting labels"],
        leaks=leaks,
        splits=taken.counts(),
        dim=backbone.dim,
        seconds=seconds,
        images_per_second=len(taken.rows) / seconds,
        engine=str(signature["engine"]),
        precision=engine.precision,
    )


def take_snapshot(
    source: ImageSource,
    *,
    preprocessing: Preprocessing,
    store: FeatureStore,
    split_seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Keep a snapshot of images whose features are not needed, for training from scratch.

    Parameters are those of ``extract``.
    """
    taken_ns = time.time_ns()
    check_snapshot_name(name)
    with store.lock():
        known = _previous_stamps(store, source, taken_ns)
        readable = {key for feature_set in store.sets() for key in feature_set.rows}
        readable |= {key for _, key in known.values()}
        rows = []
        for looked in look(source, preprocessing, readable, known):
            rows.append(looked.row)
            if progress:
                progress(len(rows), len(source.entries))
        return _keep_snapshot(store, source, rows, split_seed, taken_ns, name)


def _keep_snapshot(
    store: FeatureStore,
    source: ImageSource,
    rows: list[ImageRow],
    split_seed: int,
    taken_ns: int,
    name: str | None,
) -> Snapshot:
    root = str(source.root.resolve())
    snapshot = Snapshot(root, assign_splits(rows, split_seed), split_seed, taken_ns, name or "")
    store.write_snapshot(snapshot.name, snapshot.to_parquet(), taken_ns)
    return snapshot


def _fill(
    writer: FeatureWriter,
    source: ImageSource,
    engine: Engine,
    known: dict[str, tuple[FileStamp, bytes]],
    progress: Progress | None,
) -> list[ImageRow]:
    """Look at every image and append the rows that are missing; what was done is never lost."""
    rows: list[ImageRow] = []
    waiting: deque[tuple[list[bytes], NDArray[np.uint8]]] = deque()
    asked = set(writer.known)
    total = len(source.entries)

    def batches() -> Iterator[NDArray[np.uint8]]:
        keys: list[bytes] = []
        images: list[NDArray[np.uint8]] = []
        for looked in look(source, engine.preprocessing, writer.known, known):
            rows.append(looked.row)
            if progress:
                progress(len(rows), total)
            if looked.pixels is None or looked.row.key in asked:
                continue
            asked.add(looked.row.key)
            keys.append(looked.row.key)
            images.append(looked.pixels)
            if len(keys) == engine.batch_size:
                waiting.append((keys, np.stack([perceptual_hash(image) for image in images])))
                yield np.stack(images)
                keys, images = [], []
        if keys:
            waiting.append((keys, np.stack([perceptual_hash(image) for image in images])))
            yield np.stack(images)

    try:
        for features in engine.run(batches()):
            keys, hashes = waiting.popleft()
            writer.append(keys, features, hashes)
    except BaseException:
        with suppress(OSError):  # the disk may be what failed
            writer.commit()
        raise
    writer.commit()
    return rows


def _previous_stamps(
    store: FeatureStore, source: ImageSource, taken_ns: int
) -> dict[str, tuple[FileStamp, bytes]]:
    """Find the stamps of the last snapshot of the same root, without those too young to trust."""
    root = str(source.root.resolve())
    for name in reversed(store.snapshots()):
        with suppress(FxError):  # a damaged snapshot only costs hashing
            snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
            if snapshot.root == root:
                return {
                    row.path: (row.stamp, row.key)
                    for row in snapshot.rows
                    if row.readable and row.stamp and _settled(row.stamp, snapshot.taken_ns)
                }
    return {}


def _settled(stamp: FileStamp, taken_ns: int) -> bool:
    return max(stamp.mtime_ns, stamp.ctime_ns) < taken_ns - RACY_NS


def _still_agrees(
    current: FeatureSet,
    store: FeatureStore,
    source: ImageSource,
    engine: Engine,
    signature: dict[str, Any],
) -> bool:
    """Compute some stored rows again if another engine or version made them."""
    if not current.runs or all(
        current.runs[-1].get(name) == value for name, value in signature.items()
    ):
        return True
    keys: list[bytes] = []
    images: list[NDArray[np.uint8]] = []
    for file in _where_stored_images_may_be(store, source):
        with suppress(OSError, UnreadableImage):
            data = file.read_bytes()
            key = hashlib.sha256(data).digest()
            if key in current.rows and key not in keys:
                images.append(read_pixels(data, engine.preprocessing))
                keys.append(key)
        if len(keys) == ROWS_COMPARED:
            break
    if not keys:
        # nothing to compare with can be reached; the run records what computed which rows
        return True
    size = engine.batch_size
    parts = (np.stack(images[i : i + size]) for i in range(0, len(images), size))
    again = np.concatenate(list(engine.run(parts)))
    stored = current.features(keys)
    distance = np.linalg.norm(again - stored, axis=1)
    return bool((distance <= TOLERANCE[engine.precision] * np.linalg.norm(stored, axis=1)).all())


def _where_stored_images_may_be(store: FeatureStore, source: ImageSource) -> Iterator[Path]:
    """Some files of these images, then some of each snapshot, the last one first."""
    yield from (source.root / entry.path for entry in source.entries[:FILES_SEARCHED])
    for name in reversed(store.snapshots()):
        with suppress(FxError):  # a damaged snapshot is another command's matter
            snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
            for row in snapshot.rows[:FILES_SEARCHED]:
                yield Path(snapshot.root) / row.path


def _near_leaks(snapshot: Snapshot, features: FeatureSet) -> list[dict[str, str]]:
    """List test images of which a training image is a near-copy."""
    test = snapshot.split("test")
    train = snapshot.split("train") + snapshot.split("val")
    if not test or not train:
        return []
    pairs = near_copies(
        features.hashes([row.key for row in test]), features.hashes([row.key for row in train])
    )
    return [
        {
            "path": test[i].path,
            "split": "test",
            "near_copy": train[j].path,
            "other": str(train[j].split),
        }
        for i, j in pairs
    ]
