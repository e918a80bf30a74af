"""Shards of features that several processes write beside their sets, and one moves to their places.

Only who holds the store's lock changes a set. What others write has a name of its own until then,
which no reader looks at and the next writer clears up.
"""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from extract.errors import FxError
from extract.files import UNFINISHED, Place, disk_full_as_fx_error, move, remove, sync
from extract.store.feature_set import FeatureSet, checksum_of
from extract.store.zarr_files import open_group


@dataclass(frozen=True)
class StagedShard:
    """A shard that is written: the folder of its one file, and the checksum of its rows."""

    folder: Place
    checksum: int


@dataclass(frozen=True)
class ShardForm:
    """What a shard of a set's features looks like.

    Attributes
    ----------
    store : where the store lies
    name : of the set
    shape : rows and columns
    chunks, shards : as of zarr's array; an old set has no shards, but a file for each chunk
    dtype : of its numbers
    """

    store: Place
    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, feature_set: FeatureSet) -> "ShardForm":
        """Take it from a set."""
        array = feature_set.arrays["features"]
        return cls(
            # a machine elsewhere has another working directory
            store=feature_set.path.parent.absolute(),
            name=feature_set.name,
            shape=array.shards or array.chunks,
            chunks=array.chunks,
            shards=array.shards,
            dtype=feature_set.dtype,
        )

    def write(self, features: NDArray[np.float32]) -> StagedShard:
        """Write a shard beside the sets, until it is on the disk.

        Raises
        ------
        FxError
            If a number is too large for float16, or the disk is full.
        """
        rows = narrowed(features, self.dtype, self.name)
        with disk_full_as_fx_error(self.store, needs=rows.nbytes):
            return self._write(rows)

    def _write(self, rows: NDArray[Any]) -> StagedShard:
        name = f"{uuid4().hex}{UNFINISHED}"
        # as ``create_set`` makes the array that it will be a part of
        array = open_group(self.store, "r+").create_array(
            name,
            shape=self.shape,
            chunks=self.chunks,
            shards=self.shards,
            dtype=self.dtype,
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        array[:] = rows
        folder = self.store / name / "c" / "0"
        sync(folder / "0")
        return StagedShard(folder, checksum_of(rows))


def move_shard(staged: StagedShard, file: Place) -> None:
    """Move a shard to where a set has its file, in the place of what an unfinished run has left."""
    remove(file.parent)
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    # the folder: an object's place is replaced with all that lies below it
    move(staged.folder, file.parent)
    sync(file, file.parent)
    remove(staged.folder.parent.parent)


def narrowed(features: NDArray[np.float32], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Give features in the dtype that a set keeps; raises FxError where float16 holds them not."""
    if dtype == np.float32:
        return np.ascontiguousarray(features)
    largest = float(np.abs(features).max(initial=0))
    if largest > float(np.finfo(dtype).max):
        raise FxError(
            f"features of {name} reach {largest:.3g}, more than {dtype} holds; "
            "extract with `dtype=float32`"
        )
    return features.astype(dtype)
