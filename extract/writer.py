"""Appending features: data first, then a sync to the disk, then the count of committed rows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.feature_set import ROW_ARRAYS, FeatureSet

ROWS_PER_SHARD = 4096
ROWS_PER_CHUNK = 256
KEYS_PER_CHUNK = 16384
KEY_BYTES = 32
# A killed run may lose this much work, in seconds.
COMMIT_INTERVAL = 20.0


class FeatureWriter:
    """Appends rows to one feature set; they are buffered and committed every 20 seconds.

    Rows in a damaged range are given up first: their keys become zeros, so that their images
    count as new.
    """

    def __init__(self, feature_set: FeatureSet, run: dict[str, Any]) -> None:
        self.feature_set = feature_set
        self._run = {**run, "rows": 0}
        self._pending: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._waiting = 0
        self._since = time.monotonic()
        self._give_up_damaged_rows()
        self.known = set(feature_set.rows)

    def _give_up_damaged_rows(self) -> None:
        feature_set = self.feature_set
        spans = set(feature_set.damaged)
        for name in ROW_ARRAYS:
            rows = (feature_set.array(name).shards or feature_set.array(name).chunks)[0]
            for file in feature_set.missing_shards(name):
                start = int(file.parent.name) * rows
                spans.add((start, min(start + rows, feature_set.committed)))
        if not spans:
            return
        for name in ROW_ARRAYS:
            array = feature_set.array(name)
            rows = (array.shards or array.chunks)[0]
            for start, stop in sorted(spans):
                first, last = start // rows, -(-stop // rows)
                for number in range(first, last):
                    file = feature_set.path / name / "c" / str(number) / "0"
                    begin, end = number * rows, min((number + 1) * rows, feature_set.committed)
                    try:
                        kept = np.asarray(array[begin:end])
                    except Exception:  # unreadable: nothing of this shard can be kept
                        kept = np.zeros((end - begin, array.shape[1]), dtype=array.dtype)
                        # zarr would read it before it writes a part of it
                        file.unlink(missing_ok=True)
                    if name == "keys":
                        kept[max(start - begin, 0) : max(stop - begin, 0)] = 0
                    array[begin:end] = kept
                    sync(file)
        self.feature_set.group.attrs.update({"damaged": []})
        sync(feature_set.path / "zarr.json")
        feature_set.damaged = []
        feature_set.forget_rows()

    def append(
        self, keys: Sequence[bytes], features: NDArray[np.float32], hashes: NDArray[np.uint8]
    ) -> None:
        """Add rows.

        Parameters
        ----------
        keys : n digests of 32 bytes
        features : float32 array of shape (n, dim)
        hashes : uint8 array of shape (n, 32)
        """
        key_rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
        self._pending.append((features, key_rows, hashes))
        self._waiting += len(key_rows)
        self.known.update(keys)
        late = time.monotonic() - self._since > COMMIT_INTERVAL
        if late or self._waiting >= ROWS_PER_SHARD:
            self.commit()

    def commit(self) -> None:
        """Write what is buffered, wait until it is on the disk, then count it as committed."""
        self._since = time.monotonic()
        if not self._waiting:
            return
        feature_set = self.feature_set
        start, stop = feature_set.committed, feature_set.committed + self._waiting
        for position, name in enumerate(ROW_ARRAYS):
            array = feature_set.array(name)
            array.resize((stop, array.shape[1]))
            array[start:stop] = np.concatenate([part[position] for part in self._pending])
            rows = (array.shards or array.chunks)[0]
            shards = range(start // rows, -(-stop // rows))
            folder = feature_set.path / name
            sync(folder / "zarr.json", *(folder / "c" / str(n) / "0" for n in shards))
        if not self._run["rows"]:
            feature_set.runs.append(self._run)
        self._run["rows"] += self._waiting
        self.feature_set.group.attrs.update({"committed": stop, "runs": feature_set.runs})
        sync(feature_set.path / "zarr.json")
        feature_set.committed = stop
        feature_set.forget_rows()
        self._pending, self._waiting = [], 0


def sync(*files: Path) -> None:
    """Wait until files, and the folders' entries that name them, are on the disk."""
    for path in {*files, *(file.parent for file in files)}:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
