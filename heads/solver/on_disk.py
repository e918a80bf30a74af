"""Rows that are too many for memory, and are read anew whenever they are needed."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ROWS_PER_CHUNK = 4096


class RowsOnDisk(Protocol):
    """Features that are read a chunk at a time.

    Attributes
    ----------
    shape : (n, d)
    chunks : positions of the rows that are read together, int arrays; each row is in one of them
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def chunks(self) -> Sequence[NDArray[np.intp]]: ...
    def __getitem__(self, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        """Read rows: float32 array of shape (len(positions), d)."""


class ArrayOnDisk:
    """An array that is read by slices, such as ``numpy.memmap`` and Zarr's, as rows on a disk.

    Parameters
    ----------
    array : float, of shape (n, d)
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape: tuple[int, int] = (int(array.shape[0]), int(array.shape[1]))
        starts = range(0, self.shape[0], ROWS_PER_CHUNK)
        self.chunks = [np.arange(at, min(at + ROWS_PER_CHUNK, self.shape[0])) for at in starts]

    def __getitem__(self, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        """Read rows: float32 array of shape (len(positions), d)."""
        result = np.empty((len(positions), self.shape[1]), np.float32)
        chunk = positions // ROWS_PER_CHUNK
        for number in np.unique(chunk).tolist():
            start, inside = number * ROWS_PER_CHUNK, np.flatnonzero(chunk == number)
            rows = np.asarray(self.array[start : start + ROWS_PER_CHUNK])
            result[inside] = rows[positions[inside] - start]
        return result


class StreamedRows:
    """Rows on a disk as a problem has them: prepared as they are read, with a last column of ones.

    Parameters
    ----------
    source : the features
    prepare : normalises them; float32 arrays of shape (m, d) both
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, source: RowsOnDisk, prepare: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> None:
        self.source, self.prepare, self.chunks = source, prepare, source.chunks
        self.shape = (source.shape[0], source.shape[1] + 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        """Read rows: float32 array of shape (len(positions), d + 1)."""
        made = np.ones((len(positions), self.shape[1]), np.float32)
        made[:, :-1] = self.prepare(self.source[positions])
        return made
