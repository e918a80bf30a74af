"""Rows on their way into a feature set: memory holds one shard of them, however many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.files import disk_full_as_fx_error, sync
from extract.store.feature_set import ROW_ARRAYS, Checksums, FeatureSet, checksum_of


class RowBuffer:
    """The rows of one set that do not count yet, behind those that do.

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
