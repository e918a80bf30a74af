"""Files: read where they are regular and not too large, written whole or not at all.

Nothing here waits for a pipe or follows a link that stands where a file is about to be written.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from extract.errors import FxError, NoRoom

# how the names end of what zarr, or fx itself, has not finished writing
UNFINISHED = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def sync(*files: Path) -> None:
    """Wait until files, and the folders' entries that name them, are on the disk."""
    for path in {*files, *(file.parent for file in files)}:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, or a link to one; False for folders, pipes and devices."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there; of a link, the link."""
    # what a link names is somebody else's
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def open_regular(path: Path, largest: int) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file to read, whatever its name says; never wait for a pipe.

    Parameters
    ----------
    path : the file, or a link to it
    largest : bytes that it may have

    Raises
    ------
    OSError
        If it cannot be opened, is no regular file, or is larger.
    """

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none

    with open(path, "rb", opener=at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > largest:
            raise OSError(f"too large: {status.st_size:,} bytes")
        yield file, status


def read_regular(path: Path, largest: int) -> bytes:
    """Read a regular file of at most `largest` bytes; raises as ``open_regular`` does."""
    with open_regular(path, largest) as (file, _):
        return file.read(largest)


@contextmanager
def whole_file(path: Path, *, needs: int = 0) -> Iterator[Path]:
    """Give a new file to be written, which then takes the place of another in one step.

    Its folder is made where it is missing. Where the writing fails, the old file stays, and nothing
    of the new one.

    Parameters
    ----------
    path : the file that is replaced
    needs : bytes that are about to be written, for the error of a full disk

    Raises
    ------
    NoRoom
        If the disk is full.
    FxError
        If the place cannot be written to.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    with told_where_it_fails(path, needs=needs):
        path.parent.mkdir(parents=True, exist_ok=True)
        # somebody's link, or what a killed run has left
        unfinished.unlink(missing_ok=True)
        try:
            yield unfinished
            sync(unfinished)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file, text as UTF-8, whole or not at all; raises as ``whole_file`` does."""
    # a file name's bytes may be no UTF-8
    content = data if isinstance(data, bytes) else data.encode(errors="backslashreplace")
    with whole_file(path, needs=len(content)) as file:
        file.write_bytes(content)


@contextmanager
def told_where_it_fails(path: Path, *, needs: int = 0) -> Iterator[None]:
    """Tell of a full disk, or of one that cannot be written to, in one line with its place.

    Parameters
    ----------
    path : what is written
    needs : bytes that it takes; 0 where that is not known

    Raises
    ------
    NoRoom
        If the disk is full.
    FxError
        If it is read-only, or writing is not allowed.
    """
    try:
        yield
    except FxError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number in _FULL:
            raise NoRoom(_no_room(path, needs)) from error
        # a file of the user's that may not be read is another matter, and has its own name
        if number == errno.EROFS or (number in _FORBIDDEN and _is_below(error, path)):
            raise FxError(
                f"cannot write {_place(error, path)}: {os.strerror(number)}; "
                "give a place that can be written to"
            ) from error
        raise


def check_room(path: Path, needs: int) -> None:
    """Raise NoRoom unless the disk that a file or folder is to lie on has room for it.

    Parameters
    ----------
    path : need not be there yet
    needs : bytes
    """
    if free_bytes(path) < needs:
        raise NoRoom(_no_room(path, needs))


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a file or folder, which need not be there yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def in_units(size: int) -> str:
    """Say a number of bytes in a unit that suits it: ``8.4 MB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _no_room(path: Path, needs: int) -> str:
    free = free_bytes(path)
    # rounded up to the blocks of a disk, even the smallest file may not fit
    needed = f"needs {in_units(needs)}" if needs > free else "needs more"
    return (
        f"No space left on device: {path} {needed}, and {in_units(free)} are free; make room and "
        "run the same command again: it goes on from what is kept"
    )


def _error_number(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    # safetensors' and pyarrow's errors have it in their text alone
    found = re.search(r"(?:os error|Errno|errno:?) (\d+)", str(error))
    return int(found[1]) if found else 0


def _is_below(error: Exception, path: Path) -> bool:
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return True
    return (
        Path(os.fsdecode(name)).absolute().is_relative_to(path.absolute())
        or Path(os.fsdecode(name)).absolute() in path.absolute().parents
    )


def _place(error: Exception, path: Path) -> str:
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else str(path)
