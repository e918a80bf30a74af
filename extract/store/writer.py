"""Appending features: data first, then a sync to the disk, then the count of committed rows.

Several sets that one pass fills are committed together, by one write that names all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from msgspec.structs import replace
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from extract.errors import FxError
from extract.files import disk_full_as_fx_error, sync
from extract.store.feature_set import KEY_BYTES, ROW_ARRAYS, FeatureSet, checksum_of
from extract.store.records import Checksums, Commit, ExtractionRun, Spec
from extract.store.zarr_files import open_group

# A killed run may lose this much work, in seconds.
COMMIT_INTERVAL = 20.0
ROWS_PER_SHARD = 4096
ROWS_PER_CHUNK = 256
KEYS_PER_CHUNK = 16384
# Memory holds a shard of each set that is filled, and two copies of it while it is written or read.
SHARD_BYTES = 1 << 23

# Makes commits of several sets, by name, count all at once.
Publish = Callable[[dict[str, Commit]], None]


class FeatureWriter:
    """Appends rows to the sets that one pass fills; they are committed every 20 seconds.

    Attributes
    ----------
    sets : the feature sets, in the order of the parts that ``append`` is given
    known : keys that all sets have, or are about to have
    """

    def __init__(self, sets: Sequence[FeatureSet], publish: Publish, run: ExtractionRun) -> None:
        self.sets = list(sets)
        self._publish = publish
        self._have = [set(feature_set.rows) for feature_set in self.sets]
        self.known = set.intersection(*self._have)
        self._runs = [replace(run, rows=0) for _ in self.sets]
        self._waiting = [RowBuffer(feature_set) for feature_set in self.sets]
        self._since = time.monotonic()

    def append(
        self, keys: Sequence[bytes], parts: Sequence[NDArray[np.float32]], hashes: NDArray[np.uint8]
    ) -> None:
        """Add rows, to each set those that it lacks.

        Parameters
        ----------
        keys : n digests of 32 bytes
        parts : float32 arrays of shape (n, dim), one a set
        hashes : uint8 array of shape (n, 32)

        Raises
        ------
        FxError
            If a number is too large for a set that keeps float16.
        """
        key_rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
        for number, (feature_set, features) in enumerate(zip(self.sets, parts, strict=True)):
            have = self._have[number]
            lacking = [row for row, key in enumerate(keys) if key not in have]
            if lacking:
                kept = _narrowed(features[lacking], feature_set)
                self._waiting[number].append(kept, key_rows[lacking], hashes[lacking])
                have.update(keys)
        self.known.update(keys)
        if time.monotonic() - self._since > COMMIT_INTERVAL:
            self.commit()

    def commit(self) -> None:
        """Write what waits, until it is on the disk, then count it as committed."""
        self._since = time.monotonic()
        changes: dict[str, Commit] = {}
        for feature_set, waiting, run in zip(self.sets, self._waiting, self._runs, strict=True):
            new = waiting.stop - feature_set.committed
            # what an interruption left half done is computed again
            if not new or waiting.torn:
                continue
            waiting.write()
            before = feature_set.runs[:-1] if run.rows else feature_set.runs
            runs = [*before, replace(run, rows=run.rows + new)]
            changes[feature_set.name] = Commit(waiting.stop, runs, waiting.checksums())
        if not changes:
            return
        self._publish(changes)
        for number, feature_set in enumerate(self.sets):
            if feature_set.name in changes:
                feature_set.take_over(changes[feature_set.name])
                self._runs[number] = feature_set.runs[-1]


class RowBuffer:
    """Rows on their way into a set: memory holds one shard of them, however many there are.

    A chunk is written when it is full, before another row comes, and what there is of the last one
    with a commit.

    Parameters
    ----------
    feature_set : that the rows are for; its last chunks can be read

    Attributes
    ----------
    stop : int, rows of the set with those that do not count yet
    torn : bool, whether an interruption has left some arrays with more rows than others
    """

    def __init__(self, feature_set: FeatureSet) -> None:
        self._set = feature_set
        self.stop = feature_set.committed
        self.torn = False
        self._chunks = {name: _LastChunk(feature_set, name) for name in ROW_ARRAYS}

    def append(
        self, features: NDArray[Any], keys: NDArray[np.uint8], hashes: NDArray[np.uint8]
    ) -> None:
        """Add rows.

        Parameters
        ----------
        features : array of shape (n, dim), of numbers that the set's dtype holds
        keys, hashes : uint8 arrays of shape (n, 32)
        """
        given, taken = (features, keys, hashes), 0
        while taken < len(features):
            for chunk in self._chunks.values():
                if not chunk.room:
                    self._resize()
                    chunk.write()
                    chunk.begin_next()
            # to all arrays alike, before anything is written that may fail
            count = min(len(features) - taken, *(one.room for one in self._chunks.values()))
            self.torn = True
            for name, rows in zip(ROW_ARRAYS, given, strict=True):
                self._chunks[name].take(rows[taken : taken + count])
            self.stop += count
            self.torn = False
            taken += count

    def write(self) -> None:
        """Write what has not been written, and wait until it is on the disk."""
        self._resize()
        for chunk in self._chunks.values():
            chunk.write()

    def checksums(self) -> Checksums:
        """Checksums of all rows that have been written, by array and chunk."""
        return {name: chunk.checksums for name, chunk in self._chunks.items()}

    def _resize(self) -> None:
        # all of them: where they differ in length, xarray refuses to open the set
        for name in ROW_ARRAYS:
            array = self._set.array(name)
            if array.shape[0] != self.stop:
                with disk_full_as_fx_error(self._set.path.parent):
                    array.resize((self.stop, array.shape[1]))
                    sync(self._set.path / name / "zarr.json")


class _LastChunk:
    """The chunk of an array that grows: all of its rows, those that count among them.

    It is always written from its first row on.
    """

    def __init__(self, feature_set: FeatureSet, name: str) -> None:
        self._set, self._name = feature_set, name
        array, rows = feature_set.array(name), feature_set.rows_per_chunk(name)
        self._number, self._filled = divmod(feature_set.committed, rows)
        # the pages of an empty array take memory once they are written to
        self._rows = np.empty((rows, array.shape[1]), array.dtype)
        self._done = list((feature_set.checksums or {}).get(name, ()))[: self._number]
        if self._filled:
            self._rows[: self._filled] = feature_set.read_chunk(name, self._number)
        self._written = self._filled

    @property
    def checksums(self) -> list[int]:
        """Of all chunks, with this one as far as it is filled."""
        rows = self._rows[: self._filled]
        return [*self._done, checksum_of(rows)] if self._filled else self._done

    @property
    def room(self) -> int:
        """Rows that it can still take."""
        return len(self._rows) - self._filled

    def take(self, rows: NDArray[Any]) -> None:
        self._rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def begin_next(self) -> None:
        # at once, so that an interruption comes before or after
        following = (self.checksums, self._number + 1, 0, 0)
        self._done, self._number, self._filled, self._written = following

    def write(self) -> None:
        if self._written == self._filled:
            return
        array, rows = self._set.array(self._name), self._rows[: self._filled]
        start = self._number * len(self._rows)
        file = self._set.chunk_file(self._name, self._number)
        with disk_full_as_fx_error(self._set.path.parent, needs=rows.nbytes):
            if start >= self._set.committed:
                # what an unfinished run has left may be damaged, and Zarr would read it first
                file.unlink(missing_ok=True)
            array[start : start + self._filled] = rows
            sync(file)
        self._written = self._filled


def _narrowed(features: NDArray[np.float32], feature_set: FeatureSet) -> NDArray[Any]:
    if feature_set.dtype == np.float32:
        return np.ascontiguousarray(features)
    largest = float(np.abs(features).max(initial=0))
    if largest > float(np.finfo(feature_set.dtype).max):
        raise FxError(
            f"features of {feature_set.name} reach {largest:.3g}, more than {feature_set.dtype} "
            "holds; extract with `dtype=float32`"
        )
    return features.astype(feature_set.dtype)


def create_set(
    store: Path, name: str, spec: Spec, dim: int, dtype: str, weights_source: str
) -> zarr.Group:
    """Make the group of an empty feature set.

    Parameters
    ----------
    store : the store's folder
    name : of the group
    spec : what the features mean
    dim : int, numbers a row
    dtype : ``float32`` or ``float16``
    weights_source : where the network's weights came from
    """
    attributes = {
        "spec": spec.to_dict(),
        "weights_source": weights_source,
        "dim": dim,
        "committed": 0,
        "runs": [],
        "damaged": [],
        "checksums": {array: [] for array in ROW_ARRAYS},
    }
    group = open_group(store, "r+").create_group(name, attributes=attributes)
    rows = rows_per_shard(dim, dtype)
    for array, width, kind, chunk, shard in (
        ("features", dim, np.dtype(dtype), min(rows, ROWS_PER_CHUNK), rows),
        ("keys", KEY_BYTES, np.dtype(np.uint8), KEYS_PER_CHUNK, None),
        ("hashes", KEY_BYTES, np.dtype(np.uint8), KEYS_PER_CHUNK, None),
    ):
        # not compressed: that saves a tenth, and reading takes 1.6 times as long
        # (benchmarks/storage.py)
        group.create_array(
            array,
            shape=(0, width),
            chunks=(chunk, width),
            shards=None if shard is None else (shard, width),
            dtype=kind,
            compressors=[Crc32cCodec()],
            dimension_names=["row", f"{array}_column"],
        )
    return group


def rows_per_shard(dim: int, dtype: str) -> int:
    """Rows that a new set keeps in one file: a power of two."""
    fitting = max(1, SHARD_BYTES // (np.dtype(dtype).itemsize * dim))
    return min(ROWS_PER_SHARD, 1 << fitting.bit_length() - 1)


def copy_rows(source: FeatureSet, target: FeatureWriter, keys: Collection[bytes]) -> None:
    """Append the rows of some images to the one set of a writer, a shard at a time."""
    for batch in source.in_batches(keys):
        target.append(*batch)
    target.commit()
