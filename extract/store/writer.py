"""Appending features: data first, then a sync to the disk, then the count of committed rows.

Several sets that one pass fills are committed together, by one write that names all of them.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import zarr
from msgspec.structs import replace
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from extract.files import Place, disk_full_as_fx_error, sync
from extract.store.feature_set import ROW_ARRAYS, FeatureSet, checksum_of
from extract.store.key_index import KEY_BYTES, GrowingKeys, KeyIndex, KeyRows, as_key_rows
from extract.store.records import Commit, ExtractionRun, Spec
from extract.store.staging import StagedShard, move_shard, narrowed
from extract.store.zarr_files import open_group

# A killed run may lose this much work, in seconds.
COMMIT_INTERVAL = 20.0
ROWS_PER_SHARD = 4096
ROWS_PER_CHUNK = 256
KEYS_PER_CHUNK = 16384
# Memory holds a shard of each set that is filled, and two copies of it while it is written.
SHARD_BYTES = 1 << 23

# Makes commits of several sets, by name, count all at once.
Publish = Callable[[dict[str, Commit]], None]


class FeatureWriter:
    """Appends rows to the sets that one pass fills; they are committed every 20 seconds.

    Attributes
    ----------
    sets : the feature sets, in the order of the parts that ``append`` is given
    at_hand : keys that all sets had when it began
    known : keys that all sets have, or are about to have
    """

    def __init__(
        self,
        sets: Sequence[FeatureSet],
        publish: Publish,
        run: ExtractionRun,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.sets = list(sets)
        self._publish = publish
        self._have = [GrowingKeys(feature_set.rows) for feature_set in self.sets]
        self.at_hand = _common_keys([feature_set.rows for feature_set in self.sets])
        self.known = self._have[0] if len(self.sets) == 1 else GrowingKeys(self.at_hand)
        self._runs = [replace(run, rows=0) for _ in self.sets]
        self._waiting = [RowBuffer(feature_set, check) for feature_set in self.sets]
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
        for number, features in enumerate(parts):
            self.append_to(number, keys, features, hashes)
        if time.monotonic() - self._since > COMMIT_INTERVAL:
            self.commit()

    def append_to(
        self,
        number: int,
        keys: Sequence[bytes],
        features: NDArray[np.float32],
        hashes: NDArray[np.uint8],
    ) -> None:
        """Add rows to one set alone, those that it lacks; raises as ``append`` does."""
        lacking = self._have[number].add(keys)
        if lacking:
            one = self.sets[number]
            kept = narrowed(features[lacking], one.dtype, one.name)
            self._waiting[number].append(kept, as_key_rows(keys)[lacking], hashes[lacking])
        self._find_known(keys)

    def adopt(
        self, number: int, keys: Sequence[bytes], staged: StagedShard, hashes: NDArray[np.uint8]
    ) -> None:
        """Add a shard of rows to one set, which lacks them all and ends with a whole shard."""
        self._waiting[number].adopt(staged, as_key_rows(keys), hashes)
        self._have[number].add(keys)
        self._find_known(keys)

    def _find_known(self, keys: Sequence[bytes]) -> None:
        if len(self.sets) > 1:
            self.known.add([key for key in keys if not self.lacks(key)])

    def room(self, number: int) -> int:
        """Rows that one set takes until its last shard is full: at least one."""
        return self._waiting[number].room

    def lacks(self, key: bytes, number: int | None = None) -> bool:
        """Whether a set, one or any, has no row of a key and is not about to have one."""
        asked = self._have if number is None else [self._have[number]]
        return any(key not in have for have in asked)

    def commit(self) -> None:
        """Write what waits, until it is on the disk, then count it as committed."""
        self._since = time.monotonic()
        changes: dict[str, Commit] = {}
        for feature_set, waiting, run in zip(self.sets, self._waiting, self._runs, strict=True):
            waiting.write()
            new = waiting.written - feature_set.committed
            if new:
                before = feature_set.runs[:-1] if run.rows else feature_set.runs
                runs = [*before, replace(run, rows=run.rows + new)]
                changes[feature_set.name] = Commit(waiting.written, runs, waiting.checksums)
        if not changes:
            return
        self._publish(changes)
        for number, feature_set in enumerate(self.sets):
            if feature_set.name in changes:
                feature_set.take_over(changes[feature_set.name])
                self._runs[number] = feature_set.runs[-1]


class RowBuffer:
    """Rows on their way into a set: they wait until they fill a shard, or are committed.

    Parameters
    ----------
    feature_set : that the rows are for
    check : called before anything is written; raises where the store is locked no longer

    Attributes
    ----------
    written : int, rows of the set with those that do not count yet
    checksums : of all of these, by array and chunk
    """

    def __init__(self, feature_set: FeatureSet, check: Callable[[], None]) -> None:
        self._set, self._check = feature_set, check
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self.written = feature_set.committed
        self.checksums = feature_set.checksums or {name: [] for name in ROW_ARRAYS}

    @property
    def room(self) -> int:
        """Rows that fill the last shard up, behind those that wait: at least one."""
        shard = self._set.rows_per_chunk("features")
        waiting = sum(len(features) for features, *_ in self._waiting)
        return shard - (self.written + waiting) % shard

    def append(self, *rows: NDArray[Any]) -> None:
        """Add rows: arrays of shape (n, columns), in the order of ``ROW_ARRAYS``."""
        room = self.room
        # to all arrays at once: an interruption comes before or after
        self._waiting.append(tuple(part[:room] for part in rows))
        if len(rows[0]) >= room:
            self.write()
        if len(rows[0]) > room:
            self.append(*(part[room:] for part in rows))

    def write(self) -> None:
        """Write what waits, until it is on the disk; after an interruption, once more."""
        if not self._waiting:
            return
        joined = tuple(np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = [joined]
        stop = self.written + len(joined[0])
        self._resize(stop)
        found = [self._write_array(*each) for each in zip(ROW_ARRAYS, joined, strict=True)]
        checksums = dict(zip(ROW_ARRAYS, found, strict=True))
        self.written, self.checksums, self._waiting = stop, checksums, []

    def adopt(self, staged: StagedShard, keys: KeyRows, hashes: NDArray[np.uint8]) -> None:
        """Move a shard of features to its place; nothing waits, and whole shards are written."""
        number, rest = divmod(self.written, self._set.rows_per_chunk("features"))
        if rest or self._waiting:
            raise ValueError(f"{self.written} rows of {self._set.name} are no whole shards")
        stop = self.written + len(keys)
        self._resize(stop)
        with disk_full_as_fx_error(self._set.path.parent):
            move_shard(staged, self._set.chunk_file("features", number))
        found = [
            [*self.checksums["features"], staged.checksum],
            self._write_array("keys", keys),
            self._write_array("hashes", hashes),
        ]
        self.written, self.checksums = stop, dict(zip(ROW_ARRAYS, found, strict=True))

    def _resize(self, stop: int) -> None:
        self._check()
        # all of them, before any is written: where they differ in length, xarray refuses the set
        for name in ROW_ARRAYS:
            with disk_full_as_fx_error(self._set.path.parent):
                self._set.resize(name, stop)

    def _write_array(self, name: str, rows: NDArray[Any]) -> list[int]:
        """Write rows behind those of one array, and return the checksums of its chunks."""
        checksums, step = list(self.checksums[name]), self._set.rows_per_chunk(name)
        start, stop = self.written, self.written + len(rows)
        for number in range(start // step, -(-stop // step)):
            first, last = max(start, number * step), min(stop, (number + 1) * step)
            some, file = rows[first - start : last - start], self._set.chunk_file(name, number)
            with disk_full_as_fx_error(self._set.path.parent, needs=some.nbytes):
                if first == number * step:
                    # what an unfinished run has left may be damaged, and Zarr would read it first
                    file.unlink(missing_ok=True)
                    checksums.append(0)
                self._set.arrays[name][first:last] = some
                sync(file)
            checksums[number] = checksum_of(some, checksums[number])
        return checksums


def _common_keys(indices: Sequence[KeyIndex]) -> KeyIndex:
    first, *others = indices
    if not others:
        return first
    keys = list(first)
    common = np.logical_and.reduce([other.find(keys) >= 0 for other in others])
    return KeyIndex(as_key_rows(keys), common)


def create_set(
    store: Place, name: str, spec: Spec, dim: int, dtype: str, weights_source: str
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
