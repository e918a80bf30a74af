"""Rows on their way into a feature set: memory holds one shard of them, however many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.feature_set import ROW_ARRAYS, FeatureSet
from extract.files import sync


class RowBuffer:
    """The rows of one set that do not count yet.

    A shard is written as soon as it is full, and what there is of the last one with a commit.

    Parameters
    ----------
    feature_set : that the rows are for, behind its committed ones

    Attributes
    ----------
    stop : int, rows of the set with those that do not count yet
    """

    def __init__(self, feature_set: FeatureSet) -> None:
        self._set = feature_set
        self.stop = feature_set.committed
        array = feature_set.array("features")
        self._rows_per_shard = (array.shards or array.chunks)[0]
        # row `_start` of the set and what follows it within one shard; the pages of an empty
        # array take memory once they are written to
        self._start = self.stop
        self._features = np.empty((self._rows_per_shard, feature_set.dim), feature_set.dtype)
        self._keys: list[NDArray[np.uint8]] = []
        self._hashes: list[NDArray[np.uint8]] = []

    def append(
        self, features: NDArray[Any], keys: NDArray[np.uint8], hashes: NDArray[np.uint8]
    ) -> None:
        """Add rows.

        Parameters
        ----------
        features : array of shape (n, dim), of numbers that the set's dtype holds
        keys, hashes : uint8 arrays of shape (n, 32)
        """
        taken = 0
        while taken < len(features):
            room = self._rows_per_shard - self.stop % self._rows_per_shard
            some = slice(taken, min(taken + room, len(features)))
            count = some.stop - some.start
            place = self.stop - self._start
            self._features[place : place + count] = features[some]
            self._keys.append(keys[some])
            self._hashes.append(hashes[some])
            self.stop += count
            taken += count
            if count == room:
                self._write_features()

    def write(self) -> None:
        """Write what has not been written, and wait until it is on the disk."""
        self._write_features()
        self._write("keys", self._set.committed, np.concatenate(self._keys))
        self._write("hashes", self._set.committed, np.concatenate(self._hashes))

    def forget(self) -> None:
        """Let go of keys and hashes that have been written and count now."""
        self._keys.clear()
        self._hashes.clear()

    def _write_features(self) -> None:
        if self._start < self.stop:
            self._write("features", self._start, self._features[: self.stop - self._start])
        if self.stop % self._rows_per_shard == 0:
            self._start = self.stop

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        # all of them: where they differ in length, xarray refuses to open the set
        for each in ROW_ARRAYS:
            array = self._set.array(each)
            if array.shape[0] != self.stop:
                array.resize((self.stop, array.shape[1]))
                sync(self._set.path / each / "zarr.json")
        array = self._set.array(name)
        array[start : self.stop] = values
        rows = (array.shards or array.chunks)[0]
        shards = range(start // rows, -(-self.stop // rows))
        sync(*(self._set.path / name / "c" / str(number) / "0" for number in shards))
