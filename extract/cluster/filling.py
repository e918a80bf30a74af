"""Rows reach the store from a cluster: machines compute, and this process alone commits.

This process holds the store's lock, and what is known of each image, but no features: they stay
where they were computed until a machine there has written a shard of them beside the set. Only the
rows that fill an unfinished shard up, or are fewer than one when a commit is due, come here.

What Ray loses or gives twice does no harm: a key that a set has is not taken again, and what is
missing after all images were looked at is looked at once more.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.util.client
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.cluster.workers import (
    Network,
    Part,
    Reading,
    Record,
    gather,
    read_images,
    records_of,
    write_shard,
)
from extract.engines import Engine
from extract.errors import FxError, one_line
from extract.extraction import OddImage, Progress, odd_images
from extract.images import (
    FileStats,
    ImageRow,
    ImageSource,
    indexes_of,
    load_images,
    unchanged,
)
from extract.store import COMMIT_INTERVAL, FeatureWriter, ShardForm

# A cluster on this machine, or the one that RAY_ADDRESS names.
HERE = "ray"
# Bytes of decoded pixels in a chunk, and images in it at most: less is lost with a machine, and
# more would be read by processes.
CHUNK_BYTES, CHUNK_IMAGES = 1 << 24, 256
# Chunks for each core, where there are few images.
CHUNKS_PER_CORE = 4
# Threads of a network on a CPU, the cores that Ray counts for one of them, and those for a task
# that reads: some are left to read wherever there is a network.
THREADS, CORES_PER_THREAD, CORES_TO_READ = 4, 0.75, 0.25
# Shards of a set that are being written at a time.
MOST_SHARDS = 8
# Times that all that is missing may be looked at in vain.
ATTEMPTS = 3
# Processes that a cluster begun here keeps. Ray itself keeps as many as there are cores, those of
# networks among them, and ends others a second after their last task: on two cores many a chunk
# began its reader anew, and 4,000 images took 46 % more CPU time than without a cluster, not 15.
PROCESSES_KEPT = 16


def fill(
    cluster: str,
    writer: FeatureWriter,
    source: ImageSource,
    backbone: Backbone,
    engine: Engine,
    known: dict[str, tuple[FileStats, bytes]],
    crops: int,
    progress: Progress | None,
) -> tuple[list[ImageRow], list[OddImage]]:
    """Fill sets as ``fill_here`` does, on the cluster with an address; see ``fill_on``."""
    committer = _Committer(writer, source, backbone, progress)
    for number, entry in enumerate(source.entries):
        if image := unchanged(entry, source.root, writer.known, known):
            committer.note(number, image.row)
    missing, in_vain = committer.missing(), 0
    with _connected(cluster) if missing else nullcontext():
        while missing:
            error = _compute(committer, missing, source, engine, crops)
            before, missing = len(missing), committer.missing()
            in_vain = in_vain + 1 if len(missing) == before else 0
            if in_vain == ATTEMPTS:
                raise FxError(
                    f"the cluster fails at {before:,} images: {one_line(error)}; what was "
                    "computed is stored, and the same command goes on from there"
                ) from error
    rows = committer.rows()
    _check_seen_by_all(source, engine, rows)
    return rows, committer.odd()


def _check_seen_by_all(source: ImageSource, engine: Engine, rows: Sequence[ImageRow]) -> None:
    """Refuse images that a machine could not open, and this one can: all must see the same."""
    entries = [entry for entry, row in zip(source.entries, rows, strict=True) if not row.key]
    again = replace(source, entries=tuple(entries))
    for image in load_images(again, engine.preprocessing):
        if image.row.key:
            raise FxError(
                f"{image.row.path} in {source.root} can be opened here, and not on a machine of "
                "the cluster; the images must lie where all of them see them"
            )


def _compute(
    committer: _Committer,
    numbers: Sequence[int],
    source: ImageSource,
    engine: Engine,
    crops: int,
) -> Exception:
    """Look at some images once; return why some may be missing afterwards.

    Raises
    ------
    FxError
        If it would fail again.
    """
    try:
        try:
            for block in _chunks_of_features(committer, numbers, source, engine, crops):
                committer.take(block)
        finally:
            # after an interruption, too: nothing that is computed shall be lost
            committer.commit()
    except Exception as error:
        return _expected(error)
    return committer.failure or RuntimeError("machines were lost")


def _chunks_of_features(
    committer: _Committer,
    numbers: Sequence[int],
    source: ImageSource,
    engine: Engine,
    crops: int,
) -> Iterator[ray.ObjectRef[pa.Table]]:
    """Have chunks of images read and computed, and give them as they are done."""
    machines: Any = ray.nodes()  # type: ignore[no-untyped-call]
    cores = [int(one["Resources"].get("CPU", 0)) for one in machines if one["Alive"]]
    threads = min([THREADS, *(one for one in cores if one)])
    size = engine.preprocessing.size
    count = min(CHUNK_IMAGES, CHUNK_BYTES // (3 * crops * size**2))
    count = min(count, math.ceil(len(numbers) / (CHUNKS_PER_CORE * max(1, sum(cores)))))
    # whole batches: what a batch lacks is computed in vain
    per_batch = max(1, engine.batch_size // crops)
    count = max(1, count // per_batch) * per_batch
    chunks = [numbers[start : start + count] for start in range(0, len(numbers), count)]
    tables = [_chunk(source, some) for some in chunks]
    reading = Reading(
        source=replace(source, entries=(), skipped=(), lost=()),
        preprocessing=engine.preprocessing,
        crops=crops,
        stored=ray.put(committer.stored),
    )
    gpus = 1 if engine.device.type == "cuda" else 0
    # a new engine, without what it keeps while it runs
    arguments = tables, reading, ray.put(replace(engine)), threads, gpus, engine.versions()
    if not ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        yield from _computed(*arguments)
        return
    # in one: Ray would replace what it finds among the arguments themselves by what it refers to
    stream: Any = ray.remote(num_cpus=0)(_Stream).remote(arguments)
    # what it has given is lost with it
    committer.source_of_blocks = stream
    while blocks := ray.get(stream.some.remote()):
        yield from blocks


def _chunk(source: ImageSource, numbers: Sequence[int]) -> pa.Table:
    """Make what ``read_images`` takes: some images, and where they lie in tars."""
    entries = [source.entries[number] for number in numbers]
    indexes = indexes_of(source.root, (one.path for one in entries))
    return pa.table({"entries": [pickle.dumps((numbers, entries, indexes))]})


class _Stream:
    """Chunks of features, given from within the cluster: a client of it cannot run Ray Data."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self._blocks = _computed(*arguments)

    def some(self) -> list[ray.ObjectRef[pa.Table]]:
        """Give the next one; none at the end."""
        return list(islice(self._blocks, 1))


def _computed(
    tables: list[pa.Table],
    reading: Reading,
    engine: ray.ObjectRef[Engine],
    threads: int,
    gpus: int,
    versions: dict[str, str],
) -> Iterator[ray.ObjectRef[pa.Table]]:
    """Have Ray Data stream chunks of images through the machines."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    with ray.data.DataContext.current(context):
        dataset = (
            ray.data.from_arrow(tables)
            .map_batches(
                read_images,  # type: ignore[arg-type]  # it has an argument of its own
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"reading": reading},
                num_cpus=CORES_TO_READ,
            )
            .map_batches(
                Network,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(engine, reading.crops, threads, versions),
                compute=ray.data.ActorPoolStrategy(min_size=1),
                num_cpus=CORES_PER_THREAD * threads,
                num_gpus=gpus,
            )
        )
    for bundle in dataset.iter_internal_ref_bundles():
        yield from bundle.block_refs


class _Committer:
    """What is known of the images, and the features that wait to be written.

    Parameters
    ----------
    writer : of the sets to fill
    source : the images
    backbone : gives the sets' layers
    progress : called with images done and images in all
    """

    def __init__(
        self,
        writer: FeatureWriter,
        source: ImageSource,
        backbone: Backbone,
        progress: Progress | None,
    ) -> None:
        self._writer, self._progress = writer, progress
        self._rows: list[ImageRow | None] = [None] * len(source.entries)
        self._odd: dict[int, OddImage] = {}
        self._done = 0
        edges = np.cumsum([0, *backbone.layers.values()]).tolist()
        self._sets = [
            _SetOnItsWay(writer, number, edges[number], edges[number + 1], edges[-1])
            for number in range(len(writer.sets))
        ]
        self._since = time.monotonic()
        self._records_of = ray.remote(num_cpus=0)(records_of)
        self.failure: Exception | None = None
        self.source_of_blocks: Any = None

    @property
    def stored(self) -> Container[bytes]:
        """Keys of which nothing has to be computed."""
        return self._writer.known

    def note(self, number: int, row: ImageRow) -> None:
        """Take what is known of an image, by its place among the entries."""
        self._done += self._rows[number] is None
        self._rows[number] = row
        if self._progress:
            self._progress(self._done, len(self._rows))

    def take(self, block: ray.ObjectRef[pa.Table]) -> None:
        """Take a chunk of images whose features lie in Ray's object store."""
        try:
            records: list[Record] = pickle.loads(ray.get(self._records_of.remote(block)))
        except ray.exceptions.RayError as error:
            self.failure = _expected(error)
            return
        found = [one for one in records if one.position is not None]
        for each in self._sets:
            each.add(block, found)
        for record in records:
            self.note(record.number, record.image.row)
            for odd in odd_images([record.image]):
                self._odd[record.number] = odd
        if time.monotonic() - self._since > COMMIT_INTERVAL:
            self.commit()

    def commit(self) -> None:
        """Write all that waits, and count it as committed."""
        try:
            for each in self._sets:
                each.settle(everything=True)
                self.failure = each.failure or self.failure
        finally:
            self._writer.commit()
            self._since = time.monotonic()

    def missing(self) -> list[int]:
        """Places of the entries of which nothing is known, or whose features were lost."""
        return [
            number
            for number, row in enumerate(self._rows)
            if row is None or (row.readable and self._writer.lacks(row.key))
        ]

    def rows(self) -> list[ImageRow]:
        """The rows of all entries, in their order."""
        return [row for row in self._rows if row is not None]

    def odd(self) -> list[OddImage]:
        """The odd ones of the images that were decoded, in the order of the entries."""
        return [self._odd[number] for number in sorted(self._odd)]


@dataclass(frozen=True)
class _Rows:
    """Rows of one chunk that one set lacks."""

    block: ray.ObjectRef[pa.Table]
    positions: NDArray[np.intp]
    keys: list[bytes]
    hashes: NDArray[np.uint8]

    def split(self, at: int) -> tuple[_Rows, _Rows]:
        """Give the first rows, and the others."""
        return (
            _Rows(self.block, self.positions[:at], self.keys[:at], self.hashes[:at]),
            _Rows(self.block, self.positions[at:], self.keys[at:], self.hashes[at:]),
        )


class _SetOnItsWay:
    """Rows of one set that wait until they are a shard, and shards that are being written."""

    def __init__(self, writer: FeatureWriter, number: int, start: int, stop: int, width: int):
        self._writer, self._number = writer, number
        self._form = ShardForm.of(writer.sets[number])
        self._part = Part(start, stop, width)
        self._waiting: deque[_Rows] = deque()
        self._count = 0
        self._keys: set[bytes] = set()
        self._writing: deque[tuple[Any, list[_Rows]]] = deque()
        self._write_shard = ray.remote(num_cpus=0)(write_shard)
        self.failure: Exception | None = None

    def add(self, block: ray.ObjectRef[pa.Table], records: Sequence[Record]) -> None:
        """Take the rows of a chunk that the set lacks."""
        new: dict[bytes, Record] = {}
        for record in records:
            key = record.image.row.key
            if key not in self._keys and self._writer.lacks(key, self._number):
                new.setdefault(key, record)
        if new:
            self._keys.update(new)
            self._count += len(new)
            positions = np.array([record.position for record in new.values()])
            found = [record.image.perceptual for record in new.values()]
            hashes = np.stack([one for one in found if one is not None])
            self._waiting.append(_Rows(block, positions, list(new), hashes))
        self.settle()

    def settle(self, *, everything: bool = False) -> None:
        """Have whole shards written; with ``everything``, all rows, and wait for it."""
        shard = self._form.shape[0]
        while self._count:
            room = shard if self._writing else self._writer.room(self._number)
            if self._count < room and not everything:
                break
            if min(room, self._count) == shard:
                self._begin_shard(self._next(shard))
            elif self._writing:
                self._finish_shard()
            else:
                self._append(self._next(room))
        while self._writing and (everything or len(self._writing) > MOST_SHARDS):
            self._finish_shard()

    def _next(self, most: int) -> list[_Rows]:
        """Take the first rows out of those that wait."""
        taken = []
        while most and self._waiting:
            some, rest = self._waiting.popleft().split(most)
            taken.append(some)
            if rest.keys:
                self._waiting.appendleft(rest)
            most -= len(some.keys)
            self._count -= len(some.keys)
        return taken

    def _begin_shard(self, rows: list[_Rows]) -> None:
        positions = [one.positions for one in rows]
        blocks = [one.block for one in rows]
        task = self._write_shard.remote(self._form, self._part, positions, *blocks)
        self._writing.append((task, rows))

    def _finish_shard(self) -> None:
        task, rows = self._writing.popleft()
        with self._leaving(rows) as (keys, hashes):
            self._writer.adopt(self._number, keys, ray.get(task), hashes)

    def _append(self, rows: list[_Rows]) -> None:
        with self._leaving(rows) as (keys, hashes):
            chunks = ray.get([one.block for one in rows])
            features = gather(self._part, [one.positions for one in rows], chunks)
            self._writer.append_to(self._number, keys, features, hashes)

    @contextmanager
    def _leaving(self, rows: list[_Rows]) -> Iterator[tuple[list[bytes], NDArray[np.uint8]]]:
        """Give keys and hashes of rows that are written now, or else lost and computed again."""
        keys = [key for one in rows for key in one.keys]
        try:
            yield keys, np.concatenate([one.hashes for one in rows])
        except ray.exceptions.RayError as error:
            self.failure = _expected(error)
        finally:
            self._keys.difference_update(keys)


def _expected(error: BaseException) -> Exception:
    """Give what made Ray fail, where it may come out differently the next time.

    Raises
    ------
    FxError
        Where it would not.
    """
    first = error
    while isinstance(found := getattr(first, "cause", None) or first.__cause__, BaseException):
        first = found
    if first.args and isinstance(first.args[0], str):
        # Ray appends what one might do
        first.args = (first.args[0].partition("\nFailed to apply UDF")[0], *first.args[1:])
    if isinstance(first, FxError):
        # not Ray's, whose text has the traceback
        raise type(first)(*first.args) from error
    if not isinstance(first, Exception):
        raise first
    said = f"{first} {error}"
    if isinstance(first, ImportError) or "No module named" in said:
        raise FxError(
            f"a machine of the cluster cannot import what is run there ({one_line(first)}); "
            "install fx there, in the same version: pip install 'fx-images[ray]'"
        ) from error
    if isinstance(first, ray.exceptions.RayError):
        # above it stands a traceback
        return RuntimeError(str(first).strip().splitlines()[-1])
    return first


@contextmanager
def _connected(cluster: str) -> Iterator[None]:
    """Join a cluster, or begin one on this machine, and leave it at the end."""
    if ray.is_initialized():
        yield
        return
    address = (os.environ.get("RAY_ADDRESS") or "local") if cluster == HERE else cluster
    # it reports to a server of Ray's makers; and of what its C++ code logs a user needs nothing
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept = max(PROCESSES_KEPT, os.cpu_count() or 1)
    os.environ.setdefault("RAY_num_workers_soft_limit", str(kept))
    _be_quiet()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FxError(
            f"no Ray cluster at {address} ({one_line(error)}); begin one with Ray's own command"
        ) from error
    finally:
        # it sets its own
        for number, handler in signals.items():
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)
    _be_quiet()
    try:
        yield
    finally:
        ray.shutdown()


def _be_quiet() -> None:
    """Have Ray say what fails alone; it sets its levels anew when it begins."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
