"""Stage one: every readable image of a folder has a row of features in the store, computed once."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from extract.backbones import Backbone, make_spec
from extract.engines import Engine, find_stale_sets
from extract.errors import FxError
from extract.files import Place
from extract.images import (
    CROPS,
    DuplicateImage,
    FailedImage,
    FileStats,
    ImageEntry,
    ImageRow,
    ImageSource,
    LoadedImage,
    Preprocessing,
    Snapshot,
    assign_splits,
    batched,
    load_images,
    mean_of_crops,
    units_of_classes,
)
from extract.leaks import Leak, kept_near_leaks, leaked_copies, leaked_groups, leaks_not_sought
from extract.records import Record
from extract.store import (
    DTYPES,
    ExtractionRun,
    FeatureStore,
    FeatureWriter,
    check_snapshot_name,
)

Progress = Callable[[int, int], None]
# A file changed this shortly before it was looked at could change again unnoticed.
RACY_NS = 2_000_000_000
# pixels of a shorter side, and how much longer the other one is, at which an image is odd
SMALL, NARROW = 8, 10


class ExtractedLayer(msgspec.Struct, frozen=True):
    """Features of one layer: its name, the name of their set, and the length of a vector."""

    layer: str
    spec: str
    dim: int


class OddImage(msgspec.Struct, frozen=True):
    """An image so small or so narrow that a network sees little of it: its size in pixels."""

    path: str
    width: int
    height: int


# Parameters and results are those of ``fill_here``.
Fill = Callable[
    [
        FeatureWriter,
        ImageSource,
        Backbone,
        Engine,
        dict[str, tuple[FileStats, bytes]],
        int,
        Progress | None,
    ],
    tuple[list[ImageRow], list[OddImage]],
]


class ExtractResult(Record, frozen=True, kw_only=True):
    """What an extraction did.

    Attributes
    ----------
    store, backbone, spec, snapshot : names of what was filled; of several layers, the first's spec
    layers : what was filled, layer by layer
    images : images found
    new : images whose features were computed
    reused : images whose features were there
    failed, duplicates, leaks : records, one an image
    leaks_not_sought : which leaks were not looked for; empty where all were
    odd : images of which a network sees little, of those whose features were computed
    conflicts : paths of images whose bytes have several labels
    notes : which of a checkpoint's networks was taken, where several would fit
    passed_over : how many files, folders and table rows are no labelled images, by kind
    columns : what a table calls the columns that were read, such as ``path``; of folders none
    left_out : classes of fewer images than there must be, and how many they have
    too_few : classes that nothing can be trained on, and how many training images (groups, where
        given) they have: none or one
    splits : rows per split and class
    dim : length of a vector, of the first layer
    crops : squares of each image that a vector is the mean of
    seconds, images_per_second : wall time, and images looked at over it
    engine, precision : how the new ones were computed
    dtype : what they are kept in
    """

    store: str
    backbone: str
    spec: str
    layers: list[ExtractedLayer]
    snapshot: str
    images: int
    new: int
    reused: int
    failed: list[FailedImage]
    duplicates: list[DuplicateImage]
    odd: list[OddImage]
    conflicts: list[str]
    leaks: list[Leak]
    leaks_not_sought: str
    notes: tuple[str, ...]
    passed_over: dict[str, int]
    columns: dict[str, str]
    left_out: dict[str, int]
    too_few: dict[str, int]
    splits: dict[str, dict[str, int]]
    dim: int
    crops: int
    seconds: float
    images_per_second: float
    engine: str
    precision: str
    dtype: str


def extract(
    source: ImageSource,
    *,
    backbone: Backbone,
    engine: Engine,
    store: FeatureStore,
    crops: int = 1,
    dtype: str | None = None,
    split_seed: int = 0,
    snapshot: str | None = None,
    rehash: bool = False,
    progress: Progress | None = None,
    fill: Fill | None = None,
) -> ExtractResult:
    """Compute the features that the store lacks, and keep a snapshot of the images.

    Parameters
    ----------
    source : the images
    backbone : gives the specs, one for each of its layers
    engine : runs ``backbone.module``
    store : where features go; locked while this runs
    crops : squares of each image whose features are averaged: 1, 5 or 10
    dtype : that features are kept in, ``float32`` or ``float16``; None for what the store has
    split_seed : moves the split of images that come without one
    snapshot : name of the snapshot; by default made of the folder's name and a hash
    rehash : read every file, also those that look unchanged
    progress : called with images done and images in all
    fill : reads the images and appends their rows, where this process does not; see ``fill_here``

    Raises
    ------
    FxError
        If another process writes to the store, a parameter has an impossible value, features do
        not fit the dtype, or nothing is left of a class: then there is no snapshot, and what was
        computed is kept.
    """
    begun = time.perf_counter()
    taken_ns = time.time_ns()
    fill = fill or fill_here
    check_snapshot_name(snapshot)
    _check_classes(source, ())
    _check_choice("crops", crops, CROPS)
    _check_choice("dtype", dtype, (None, *DTYPES))
    with store.lock():
        known = known_file_stats(store, source) if not rehash else {}
        writer = _start(store, source, backbone, engine, taken_ns, crops=crops, dtype=dtype)
        rows, odd = fill(writer, source, backbone, engine, known, crops, progress)
        taken = _keep_snapshot(store, source, rows, split_seed, taken_ns, snapshot)
        leaks = leaked_copies(rows) + leaked_groups(taken.rows)
        leaks += kept_near_leaks(store, taken, writer.sets[0])
    seconds = time.perf_counter() - begun
    first = writer.sets[0]
    return ExtractResult(
        store=str(store.path),
        backbone=backbone.name,
        spec=first.name,
        layers=[
            ExtractedLayer(layer, feature_set.name, feature_set.dim)
            for layer, feature_set in zip(backbone.layers, writer.sets, strict=True)
        ],
        snapshot=taken.name,
        images=len(taken.rows),
        new=len(writer.known) - len(writer.at_hand),
        reused=int(
            (writer.at_hand.find([row.key for row in taken.rows if row.readable]) >= 0).sum()
        ),
        failed=taken.failed() + [FailedImage(*one) for one in source.skipped],
        duplicates=taken.duplicates(),
        odd=odd,
        conflicts=taken.conflicts(),
        leaks=leaks,
        leaks_not_sought=leaks_not_sought(taken, first),
        notes=backbone.notes,
        passed_over=dict(source.passed_over),
        columns=dict(source.columns),
        left_out=classes_left_out(source, taken),
        too_few=classes_too_small(taken),
        splits=taken.counts(),
        dim=first.dim,
        crops=crops,
        seconds=seconds,
        images_per_second=len(taken.rows) / seconds,
        engine=engine.name,
        precision=engine.precision,
        dtype=str(first.dtype),
    )


def extract_files(
    paths: Sequence[Place], *, backbone: Backbone, engine: Engine, store: FeatureStore
) -> NDArray[np.float32]:
    """Give the features of files, computing those that the store lacks; no snapshot is kept.

    Parameters
    ----------
    paths : n files; one may be named twice
    backbone : of one layer
    engine : runs ``backbone.module``
    store : where features go; locked while this runs, once no other process writes to it

    Returns
    -------
    float32 array of shape (n, d)

    Raises
    ------
    FxError
        Where a file cannot be read; it is named. The others' features are kept.
    """
    names = [str(path.absolute()) for path in paths]
    entries = tuple(ImageEntry(name, None, None, None) for name in dict.fromkeys(names))
    source = ImageSource(Path.cwd(), "unlabelled", entries, ())
    if len(backbone.layers) != 1:
        raise ValueError(f"backbone must be of one layer, got {', '.join(backbone.layers)}")
    # a search of scikit-learn's asks from several processes at once
    with store.lock(wait=True):
        writer = _start(store, source, backbone, engine, time.time_ns())
        filled, _ = fill_here(writer, source, backbone, engine, {}, 1, None)
    rows = {row.path: row for row in filled}
    for name in names:
        if not rows[name].readable:
            raise FxError(f"{name} cannot be read: {rows[name].note}; leave it out")
    return writer.sets[0].features([rows[name].key for name in names])


def _start(
    store: FeatureStore,
    source: ImageSource,
    backbone: Backbone,
    engine: Engine,
    taken_ns: int,
    *,
    crops: int = 1,
    dtype: str | None = None,
) -> FeatureWriter:
    """Begin to fill the sets of a backbone's layers, after checking that they still agree."""
    numerics, network = engine.precision, engine.network_hash
    specs = [
        make_spec(backbone, numerics, layer=layer, crops=crops, network_hash=network)
        for layer in backbone.layers
    ]
    stale = find_stale_sets(specs, backbone, store, source, engine, crops)
    run = ExtractionRun(
        engine=engine.name,
        versions=engine.versions(),
        threads=os.cpu_count(),
        weights_source=backbone.weights,
        taken_ns=taken_ns,
    )
    wanted = list(zip(specs, backbone.layers.values(), strict=True))
    return store.start(wanted, run, stale=stale, dtype=dtype)


def _check_choice(parameter: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        choices = ", ".join(str(one) for one in allowed if one is not None)
        raise FxError(f"`{parameter}` must be one of {choices}; got {value!r}")


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
    _check_classes(source, ())
    with store.lock():
        known = known_file_stats(store, source)
        readable = {key for _, key in known.values()}
        for feature_set in store.sets():
            with suppress(FxError):  # what is damaged is read again
                readable.update(feature_set.rows)
        rows = []
        with closing(load_images(source, preprocessing, readable, known)) as loading:
            for loaded in loading:
                rows.append(loaded.row)
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
    assigned = assign_splits(rows, split_seed, source.min_images)
    _check_classes(source, assigned)
    snapshot = Snapshot(root, assigned, split_seed, taken_ns, name or "")
    store.write_snapshot(snapshot.name, snapshot.to_parquet(), taken_ns)
    return snapshot


def _check_classes(source: ImageSource, rows: Sequence[ImageRow]) -> None:
    """Refuse a class of which no image can be used: it would be missed by nobody.

    Of no rows, those are refused of which no image can even be opened.
    """
    if source.min_images:
        return
    kept = {row.label for row in rows if row.split}
    lost = [(row.label, row.path, row.note) for row in rows if row.label not in {None, *kept}]
    first = {label: (path, note) for label, path, note in [*source.lost, *reversed(lost)]}
    if first:
        label, (path, reason) = min(first.items(), key=lambda one: str(one[0]))
        others = f" and {len(first) - 1:,} more" if len(first) > 1 else ""
        raise FxError(
            f"nothing is left of class {label!r}{others}: {path!r}: {reason}; "
            "mend its images, take it away, or leave such classes out by `min_images=1`"
        )


def classes_left_out(source: ImageSource, snapshot: Snapshot) -> dict[str, int]:
    """Count the images of classes that are in no split: of fewer than there must be."""
    labels = {row.label for row in snapshot.rows} | {label for label, *_ in source.lost}
    out = sorted(label for label in labels - {*snapshot.classes} if label is not None)
    small = [row for row in snapshot.rows if row.note.startswith("of a class")]
    units = units_of_classes(replace(row, note="") for row in small)
    return {label: units[label] for label in out}


def classes_too_small(snapshot: Snapshot) -> dict[str, int]:
    """Count the training images, or groups, of classes that nothing can be trained on."""
    training = units_of_classes(snapshot.split("train"))
    return {label: training[label] for label in snapshot.classes if training[label] < 2}


def fill_here(
    writer: FeatureWriter,
    source: ImageSource,
    backbone: Backbone,
    engine: Engine,
    known: dict[str, tuple[FileStats, bytes]],
    crops: int,
    progress: Progress | None,
) -> tuple[list[ImageRow], list[OddImage]]:
    """Read every image and append the rows that are missing; finished work is never lost.

    Parameters
    ----------
    writer : of the sets to fill, which are committed at the end
    source, backbone, engine, crops, progress : as of ``extract``
    known : as of ``load_images``

    Returns
    -------
    rows of all entries, in their order, and the odd ones of the images that were decoded
    """
    rows: list[ImageRow] = []
    odd: list[OddImage] = []
    waiting: deque[tuple[bytes, NDArray[np.uint8] | None]] = deque()
    asked: set[bytes] = set()
    total = len(source.entries)
    edges = np.cumsum(list(backbone.layers.values()))[:-1]

    loading = load_images(
        source, engine.preprocessing, writer.known, known, crops=crops, hashed=True
    )

    def pixels_of_new() -> Iterator[NDArray[np.uint8]]:
        for loaded in loading:
            rows.append(loaded.row)
            if progress:
                progress(len(rows), total)
            odd.extend(odd_images([loaded]))
            key = loaded.row.key
            if loaded.pixels is not None and key not in asked and key not in writer.known:
                asked.add(key)
                waiting.append((key, loaded.perceptual))
                yield loaded.pixels

    try:
        batches = engine.run(batched(pixels_of_new(), engine.batch_size))
        for vectors in mean_of_crops(batches, crops):
            keys, hashes = zip(*(waiting.popleft() for _ in vectors), strict=True)
            writer.append(keys, np.split(vectors, edges, axis=1), np.stack(hashes))
            asked.difference_update(keys)
    except BaseException:
        with suppress(OSError, FxError):  # the disk may be what failed
            writer.commit()
        raise
    finally:
        # the readers hold the store's lock, too, and a kept exception would keep them
        loading.close()
    writer.commit()
    return rows, odd


def odd_images(images: Iterable[LoadedImage]) -> Iterator[OddImage]:
    """Find the images, of those that were decoded, of which a network sees little."""
    for image in images:
        if image.size is not None:
            shorter, longer = sorted(image.size)
            if shorter < SMALL or longer > NARROW * shorter:
                yield OddImage(image.row.path, *image.size)


def known_file_stats(
    store: FeatureStore, source: ImageSource
) -> dict[str, tuple[FileStats, bytes]]:
    """Find which files need not be read again: path -> stats and key, by the last snapshot.

    Stats are trusted where the file had lain unchanged for a while when the snapshot was taken,
    and the store lies where it lay then.
    """
    root = str(source.root.resolve())
    if store.was_copied:
        return {}
    for name in reversed(store.snapshots()):
        with suppress(FxError):  # a damaged snapshot only costs hashing
            snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
            if snapshot.root == root:
                return {
                    row.path: (row.stats, row.key)
                    for row in snapshot.rows
                    if row.readable
                    and row.stats
                    and max(row.stats.mtime_ns, row.stats.ctime_ns) < snapshot.taken_ns - RACY_NS
                }
    return {}
