"""A limit to the memory of images that are decoded at the same time, by threads or processes."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Protocol

# Images take parts of these bytes, a larger one all of them.
BYTES_AT_ONCE, PARTS = 2**30, 16


class Synchroniser(Protocol):
    """A semaphore of threads or of processes."""

    def acquire(self) -> bool: ...

    def release(self) -> None: ...


Turn = AbstractContextManager[object]  # a lock
_turn: Turn = threading.Lock()
_parts: Synchroniser = threading.Semaphore(PARTS)


def share_memory(turn: Turn, parts: Synchroniser) -> None:
    """Let the processes that are given these decode together what the threads of one may.

    Parameters
    ----------
    turn : a lock
    parts : a semaphore of ``PARTS``
    """
    global _turn, _parts
    _turn, _parts = turn, parts


@contextmanager
def memory_for(taken: int) -> Iterator[None]:
    """Wait until the images that others decode leave room for so many bytes.

    A caller that waits must hold none.
    """
    wanted = min(PARTS, -(-taken * PARTS // BYTES_AT_ONCE))
    # one after the other, so that small images do not keep a large one waiting for ever
    with _turn:
        for _ in range(wanted):
            _parts.acquire()
    try:
        yield
    finally:
        if wanted > 1 and (trim := _malloc_trim()):
            # glibc would keep it for this thread, while another one takes as much
            trim(0)
        for _ in range(wanted):
            _parts.release()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
