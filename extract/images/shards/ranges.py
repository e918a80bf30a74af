"""Files that hold many images, opened where they lie; of objects, only what is asked for is read.

Whoever goes through an object from its start on reads it once, in blocks: neighbours share them. A
jump costs one request for the bytes that are asked for.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from os import stat_result
from threading import Lock
from typing import BinaryIO

from extract.files import ObjectPath, ObjectStats, Place, open_regular

# bytes; and of Parquet, whose columns of labels lie between those of images
BLOCK, SMALL_BLOCK = 2**22, 2**16
# shared by all that read beside each other
_MOST_BLOCKS = 16
# one reads a block, and others wait for it
_locks = [Lock() for _ in range(_MOST_BLOCKS)]
_last_blocks: dict[ObjectPath, int] = {}


@contextmanager
def open_shard(
    where: Place, block: int | None = None
) -> Iterator[tuple[BinaryIO, stat_result | ObjectStats]]:
    """Open a file or an object in which one can seek.

    Parameters
    ----------
    where : the shard
    block : bytes of an object that are read at once, where less is asked for; by default ``BLOCK``

    Raises
    ------
    OSError
        If it cannot be opened, is no regular file, or the storage does not answer.
    """
    if isinstance(where, ObjectPath):
        stats = where.stat()
        yield io.BufferedReader(_Ranges(where, stats, block or BLOCK), 2**16), stats
        return
    with open_regular(where, 2**63) as opened:
        yield opened


def read_range(where: ObjectPath, stats: ObjectStats, start: int, stop: int) -> bytes:
    """Read bytes of an object that is still the one of `stats`.

    Raises
    ------
    OSError
        If it has changed, or the storage does not answer.
    """
    first, last = start // BLOCK, max(start, stop - 1) // BLOCK
    near = abs(first - _last_blocks.get(where, 0)) <= 1
    _last_blocks[where] = last
    if not near or stop - start > BLOCK:
        return where.read_bytes(start, stop, stats.e_tag)
    data = b"".join(_block(where, stats, number, BLOCK) for number in range(first, last + 1))
    return data[start - first * BLOCK : stop - first * BLOCK]


def _block(where: ObjectPath, stats: ObjectStats, number: int, size: int) -> bytes:
    with _locks[number % len(_locks)]:
        return _read_block(where, stats, number, size)


@lru_cache(_MOST_BLOCKS)
def _read_block(where: ObjectPath, stats: ObjectStats, number: int, size: int) -> bytes:
    start = number * size
    return where.read_bytes(start, min(start + size, stats.st_size), stats.e_tag)


class _Ranges(io.RawIOBase):
    """An object as a file."""

    def __init__(self, where: ObjectPath, stats: ObjectStats, block: int) -> None:
        self.where, self.stats, self.block, self.at = where, stats, block, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.stats.st_size)[whence]
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self.at + len(buffer), self.stats.st_size)
        if stop <= self.at:
            return 0
        if stop - self.at >= self.block:
            data = self.where.read_bytes(self.at, stop, self.stats.e_tag)
        else:
            number, inside = divmod(self.at, self.block)
            data = _block(self.where, self.stats, number, self.block)
            data = data[inside : inside + stop - self.at]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
