"""What the machines of a cluster do: read images, run the network, write shards of features.

A row of Ray's tables is a chunk of images: ``records``, pickled, what is known of each of them, and
``pixels``, or ``features``, of those that have some, one behind the other. Nothing here imports
torch before a network comes.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from extract.errors import FxError
from extract.images import (
    ImageSource,
    LoadedImage,
    Preprocessing,
    batched,
    learn_indexes,
    load_images,
    mean_of_crops,
)
from extract.store import ShardForm, StagedShard

if TYPE_CHECKING:
    from extract.engines import Engine

# threads of a task that reads: one decodes while the other waits for a disk or a network
READERS = 2


@dataclass(frozen=True)
class Record:
    """One image read: its place among the source's entries, and what is known of it.

    Attributes
    ----------
    number : int
    image : without pixels
    position : of its features among those of its chunk; None where it has none
    """

    number: int
    image: LoadedImage
    position: int | None


@dataclass(frozen=True)
class Part:
    """Where a layer's numbers are in the vectors that a network gives, which have a width."""

    start: int
    stop: int
    width: int


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes
    ----------
    source : without entries
    preprocessing, crops : as of ``load_images``
    stored : keys whose pixels are not needed, in Ray's object store
    """

    source: ImageSource
    preprocessing: Preprocessing
    crops: int
    stored: ray.ObjectRef[Any]


def read_images(table: pa.Table, *, reading: Reading) -> pa.Table:
    """Read and decode a chunk of images.

    Parameters
    ----------
    table : of one cell: their numbers, their entries, and where they lie in tars, pickled
    """
    numbers, entries, indexes = pickle.loads(table["entries"][0].as_py())
    learn_indexes(indexes)
    if isinstance(reading.source.root, Path) and not reading.source.root.is_dir():
        raise FxError(
            f"{reading.source.root} is no folder on {socket.gethostname()}; the images must lie "
            "where all machines of the cluster see them: on a file system of theirs, or s3://"
        )
    os.environ["LOKY_MAX_CPU_COUNT"] = str(READERS)
    source = replace(reading.source, entries=tuple(entries))
    records: list[Record] = []
    pixels: list[NDArray[np.uint8]] = []
    loading = load_images(
        source,
        reading.preprocessing,
        ray.get(reading.stored),
        crops=reading.crops,
        hashed=True,
    )
    for number, image in zip(numbers, loading, strict=True):
        position = None
        if image.pixels is not None:
            position = len(pixels)
            pixels.append(image.pixels)
        records.append(Record(number, replace(image, pixels=None), position))
    return _table(pickle.dumps(records), "pixels", pixels)


class Network:
    """A network that stays on one machine, and computes the features of chunk after chunk.

    Parameters
    ----------
    engine : in Ray's object store
    crops : squares of each image that are averaged
    threads : of a CPU
    versions : of the libraries of the process that commits, which records them with the rows
    """

    def __init__(
        self, engine: ray.ObjectRef[Any], crops: int, threads: int, versions: dict[str, str]
    ) -> None:
        self._engine: Engine = ray.get(engine).with_threads(threads)
        ours = self._engine.versions()
        self._others = [
            f"{name} {ours[name]} instead of {version}"
            for name, version in versions.items()
            if ours[name] != version
        ]
        self._crops = crops
        self._run = self._engine.resident()

    def __call__(self, table: pa.Table) -> pa.Table:
        # not when it begins: of that Ray tells no reason
        if self._others:
            raise FxError(
                f"{socket.gethostname()} has {', '.join(self._others)}; install the same versions "
                "on all machines of the cluster"
            )
        size = self._engine.preprocessing.size
        pixels = values(table, "pixels", np.uint8, (self._crops, size, size, 3))
        batches = self._run(batched(pixels, self._engine.batch_size))
        features = list(mean_of_crops(batches, self._crops))
        return _table(table["records"][0].as_py(), "features", features)


def records_of(table: pa.Table) -> bytes:
    """Give the records of a chunk without the features."""
    pickled: bytes = table["records"][0].as_py()
    return pickled


def write_shard(
    form: ShardForm,
    part: Part,
    positions: Sequence[NDArray[np.intp]],
    *chunks: pa.Table,
) -> StagedShard:
    """Write a shard of features of several chunks beside the set that it is for."""
    try:
        return form.write(gather(part, positions, chunks))
    except FileNotFoundError as error:
        raise FxError(
            f"{form.store} is not there on {socket.gethostname()}; the store must lie where all "
            "machines of the cluster see it: on a file system of theirs, or s3://"
        ) from error


def gather(
    part: Part, positions: Sequence[NDArray[np.intp]], chunks: Sequence[pa.Table]
) -> NDArray[np.float32]:
    """Take the features of one layer out of several chunks."""
    parts = [
        values(chunk, "features", np.float32, (part.width,))[some, part.start : part.stop]
        for some, chunk in zip(positions, chunks, strict=True)
    ]
    return np.concatenate(parts)


def values(table: pa.Table, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    """Give the arrays of a chunk's images, of this shape each, without copying them."""
    return np.frombuffer(table[name][0].as_buffer(), dtype).reshape(-1, *shape)


def _table(records: bytes, name: str, arrays: Sequence[NDArray[Any]]) -> pa.Table:
    joined = b"".join(array.tobytes() for array in arrays)
    columns = {"records": records, name: joined}
    return pa.table({key: pa.array([value], pa.large_binary()) for key, value in columns.items()})
