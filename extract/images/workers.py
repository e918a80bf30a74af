"""Images are read by threads where cores are few, and by processes where they are many.

On two cores two threads read as fast as two processes, and share what is imported. On 16, threads
wait for each other: 8 of them read 1,900 photographs a second and 16 of them 1,300, and 16
processes 5,200. Whole extractions on those cores, with a GPU for the network, did 730 images a
second with threads, 1,600 with 8 or 16 processes and 1,850 with 12: this process needs cores, too.
"""

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from extract.errors import FxError
from extract.images.decoding_memory import PARTS, Synchroniser, Turn, share_memory
from extract.images.entries import ImageEntry, LoadedImage

Work = Callable[[ImageEntry], LoadedImage]
# Given an image, begins to read it and returns what waits for the result.
Read = Callable[[ImageEntry], Callable[[], LoadedImage]]

# Cores up to which threads read, and images up to which it is not worth beginning processes.
FEW_CORES = 4
FEW_IMAGES = 500
# Processes: this share of the cores, and no more than this process can keep busy, which takes in
# 5,000 images a second where each of them reads 300.
CORE_FRACTION, MAX_WORKERS = 0.75, 16
# Threads that read what lies on object storage: an answer takes longer than decoding.
REQUESTS = 16
# Images that a process is given at once.
CHUNK_SIZE = 4
PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


def readers(
    work: Work,
    cores: int,
    ahead: int,
    shape: tuple[int, ...],
    images: int,
    *,
    streamed: bool = False,
) -> AbstractContextManager[Read]:
    """Begin threads or processes that read images.

    Parameters
    ----------
    work : reads one
    cores : as many threads, or three quarters as many processes
    ahead : most images that are begun and not waited for; they are waited for in order
    shape : of an image's pixels, uint8
    images : that there are
    streamed : whether they lie on object storage or in shards: threads wait for it, and share what
        neighbours have read
    """
    if streamed:
        return _threads(work, max(cores, REQUESTS))
    # elsewhere a process would have to import everything anew
    if sys.platform != "linux" or cores <= FEW_CORES or images <= FEW_IMAGES:
        return _threads(work, cores)
    return _processes(work, min(MAX_WORKERS, max(2, int(CORE_FRACTION * cores))), ahead, shape)


@contextmanager
def _threads(work: Work, workers: int) -> Iterator[Read]:
    pool = ThreadPoolExecutor(workers)
    try:
        yield lambda entry: pool.submit(work, entry).result
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _processes(work: Work, workers: int, ahead: int, shape: tuple[int, ...]) -> Iterator[Read]:
    # here, so that no process imports it again; snapshots are read without it
    import torch  # noqa: F401

    size = int(np.prod(shape))
    # of no file, and so of no size but the memory's
    places = np.frombuffer(mmap.mmap(-1, ahead * size), np.uint8).reshape(ahead, *shape)
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(
        workers,
        context,
        _prepare_process,
        # forked, a process has these as they are, and what ``work`` refers to
        (work, places, context.Lock(), context.Semaphore(PARTS), os.getpid()),
    )
    number = 0
    chunk = _Chunk(pool)

    def read(entry: ImageEntry) -> Callable[[], LoadedImage]:
        nonlocal number, chunk
        if chunk.future is not None:
            chunk = _Chunk(pool)
        # they are waited for in order, so that whoever had this place before has left it
        place = number % ahead
        number += 1
        return chunk.add(entry, place, places[place])

    try:
        yield read
    except BrokenProcessPool as error:
        raise FxError(
            "a process that reads images was killed; there may be too little memory: "
            "leave out very large images, or run it on fewer cores (taskset)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class _Chunk:
    """Images that one process reads, one after the other."""

    pool: ProcessPoolExecutor
    entries: list[tuple[ImageEntry, int]] = field(default_factory=list)
    future: Future[list[tuple[LoadedImage, bool]]] | None = None

    def add(
        self, entry: ImageEntry, place: int, pixels: NDArray[np.uint8]
    ) -> Callable[[], LoadedImage]:
        index = len(self.entries)
        self.entries.append((entry, place))
        if len(self.entries) == CHUNK_SIZE:
            self._started()

        def wait() -> LoadedImage:
            loaded, decoded = self._started().result()[index]
            return replace(loaded, pixels=pixels.copy()) if decoded else loaded

        return wait

    def _started(self) -> Future[list[tuple[LoadedImage, bool]]]:
        if self.future is None:
            self.future = self.pool.submit(_read, self.entries)
        return self.future


_work: Work
_places: NDArray[np.uint8]


def _prepare_process(
    work: Work, places: NDArray[np.uint8], turn: Turn, parts: Synchroniser, parent: int
) -> None:
    """Prepare a forked process to read images, and to end with the thread that forked it."""
    global _work, _places
    # what it holds, such as the store's lock, must not outlive its parent
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # a terminal interrupts all its processes; the one that began this one will end it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # one thread: there are as many processes as cores
    import torch

    torch.set_num_threads(1)
    share_memory(turn, parts)
    _work, _places = work, places


def _read(entries: list[tuple[ImageEntry, int]]) -> list[tuple[LoadedImage, bool]]:
    results = []
    for entry, place in entries:
        loaded = _work(entry)
        if loaded.pixels is not None:
            _places[place] = loaded.pixels
        results.append((replace(loaded, pixels=None), loaded.pixels is not None))
    return results
