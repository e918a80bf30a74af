"""Files: read where they are regular and not too large, written whole or not at all.

Nothing here waits for a pipe or follows a link that stands where a file is about to be written.
"""

import errno
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from extract.errors import CannotWrite, FxError, NoRoom
from extract.files.objects import ObjectPath, ObjectStats, Place, StorageFailure, place

# how the names end of what zarr, or fx itself, has not finished writing
UNFINISHED = ".partial"
OWN_FILES = ".fx-"  # how hidden files begin that fx leaves in folders of images
# bytes from which on a file may be refused for its holes
LARGE = 2**26
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)
# bytes that are read and written at once
_AT_ONCE = 1 << 20


def sync(*files: Place) -> None:
    """Wait until files, and the folders' entries that name them, are on the disk.

    Objects are where they were written, once that is answered.
    """
    on_disk = [file for file in files if isinstance(file, Path)]
    for path in {*on_disk, *(file.parent for file in on_disk)}:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_regular(path: Place) -> bool:
    """Whether there is a regular file, or a link to one; False for folders, pipes and devices."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except StorageFailure:
        raise
    except OSError:
        return False


def remove(path: Place) -> None:
    """Delete a file, or a folder with all that is in it, if it is there; of a link, the link."""
    if isinstance(path, ObjectPath):
        path.remove_all()
        path.unlink(missing_ok=True)
    # not what a link points to
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def open_regular(
    path: Place, largest: int
) -> Iterator[tuple[BinaryIO, os.stat_result | ObjectStats]]:
    """Open a regular file to read, whatever its name says; never wait for a pipe.

    Parameters
    ----------
    path : the file, a link to it, or an object, which is read at once
    largest : bytes that it may have

    Raises
    ------
    OSError
        If it cannot be opened, is no regular file, or is larger.
    """

    path = place(path)
    if isinstance(path, ObjectPath):
        data, stats = path.read_with_stats(largest)
        yield io.BytesIO(data), stats
        return

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none

    with open(path, "rb", opener=at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > largest:
            raise OSError(f"too large: {status.st_size:,} bytes")
        yield file, status


def refuse_holes(status: os.stat_result | ObjectStats) -> None:
    """Raise OSError of a large file that has next to no bytes on the disk, and reads as zeros."""
    blocks = getattr(status, "st_blocks", 0)  # absent on Windows, and 0 on some file systems
    if status.st_size > LARGE and 0 < 512 * blocks < status.st_size // 64:
        raise OSError(f"nearly all of its {in_units(status.st_size)} are holes")


def read_regular(path: Place, largest: int) -> bytes:
    """Read a file, or an object, of at most `largest` bytes; raises as ``open_regular`` does."""
    with open_regular(path, largest) as (file, _):
        return file.read(largest)


@contextmanager
def whole_file(path: Place, *, needs: int = 0) -> Iterator[Path]:
    """Give a new file to be written, which then takes the place of another in one step.

    Its folder is made where it is missing. Where the writing fails, the old file stays, and nothing
    of the new one, nor an empty folder. An object is written from a temporary file.

    Parameters
    ----------
    path : the file that is replaced
    needs : bytes that are about to be written, for the error of a full disk

    Raises
    ------
    NoRoom
        If the disk is full.
    CannotWrite
        If the place cannot be written to.
    """
    path = place(path)
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory() as temporary:
            written = Path(temporary, "object")
            yield written
            path.write_bytes(written.read_bytes())
        return
    unfinished = path.with_name(path.name + UNFINISHED)
    with disk_full_as_fx_error(path, needs=needs):
        missing = [one for one in path.parents if not one.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # a link that stands there, or what a killed run has left
            unfinished.unlink(missing_ok=True)
            yield unfinished
            sync(unfinished)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
                for folder in missing:
                    folder.rmdir()
            raise


def write_whole(path: Place, data: bytes | str) -> None:
    """Write a file, text as UTF-8, whole or not at all; raises as ``whole_file`` does."""
    # a file name's bytes may be no UTF-8
    content = data if isinstance(data, bytes) else data.encode(errors="backslashreplace")
    with whole_file(path, needs=len(content)) as file:
        file.write_bytes(content)


@contextmanager
def disk_full_as_fx_error(path: Place, *, needs: int = 0) -> Iterator[None]:
    """Turn the error of a full disk, or of one that cannot be written to, into one line.

    Parameters
    ----------
    path : what is written
    needs : bytes that it takes; 0 where that is not known

    Raises
    ------
    NoRoom
        If the disk is full.
    CannotWrite
        If it is read-only, or writing is not allowed.
    """
    try:
        yield
    except FxError:
        raise
    except Exception as error:
        if isinstance(path, Path) and (clear := why_not_written(error, path, needs=needs)):
            raise clear from error
        raise


def why_not_written(error: Exception, path: Path, *, needs: int = 0) -> CannotWrite | None:
    """Return what ``disk_full_as_fx_error`` would raise in place of an error of writing.

    Parameters are those of ``disk_full_as_fx_error``. None for any other error.
    """
    number, there = _error_number(error), path.absolute()
    if number in _FULL:
        return NoRoom(_no_room(path, needs, number))
    named, name = path, getattr(error, "filename", None)
    if isinstance(name, str | bytes):
        named = Path(os.fsdecode(name).removesuffix(UNFINISHED))
    below = named.absolute().is_relative_to(there)
    # a file of the user's that may not be read is another matter, and has its own name
    if number == errno.EROFS or (
        number in _DENIED and (below or named.absolute() in there.parents)
    ):
        # a file in it may be a temporary one, whose name says nothing
        return CannotWrite(_cannot_write(path if below else named, os.strerror(number)))
    return None


def check_room(path: Path, needs: int) -> None:
    """Make sure, before long work, that a file or folder can be written when it is done.

    Parameters
    ----------
    path : need not be there yet
    needs : bytes

    Raises
    ------
    NoRoom
        If its disk has less room.
    CannotWrite
        If it is read-only, writing is not allowed, or a file stands in the place of a folder.
    """
    there = _nearest(path)
    if there != path and not there.is_dir():
        raise CannotWrite(_cannot_write(path, f"{there} is no folder"))
    if not os.access(there, os.W_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
        reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
        raise CannotWrite(_cannot_write(path, reason))
    if free_bytes(path) < needs:
        raise NoRoom(_no_room(path, needs, errno.ENOSPC))


def reserve(file: Path) -> None:
    """Give a file all the room that its size says, before it is written to through memory.

    A file that was only made so long has no room of its own, and where its disk is full then, the
    process that writes to the mapped file is killed (SIGBUS).

    Raises
    ------
    OSError
        If there is no room.
    """
    with file.open("rb+") as opened:
        size = os.fstat(opened.fileno()).st_size
        if hasattr(os, "posix_fallocate"):  # not every system has it
            os.posix_fallocate(opened.fileno(), 0, size)
            return
        for begin in range(0, size, _AT_ONCE):
            opened.seek(begin)
            content = opened.read(_AT_ONCE)
            opened.seek(begin)
            opened.write(content)


def cache_directory() -> Path:
    """Folder of what can be made again: ``$XDG_CACHE_HOME/fx``, by default ``~/.cache/fx``.

    Raises
    ------
    RuntimeError
        If there is no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fx"


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a file or folder, which need not be there yet."""
    return shutil.disk_usage(_nearest(path)).free


def in_units(size: int) -> str:
    """Say a number of bytes in a unit that suits it: ``8.4 MB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _nearest(path: Path) -> Path:
    """The path itself, or the closest folder above it that is there."""
    while path != path.parent:
        with suppress(OSError):  # a folder that must not be looked into
            if path.exists():
                break
        path = path.parent
    return path


def _no_room(path: Path, needs: int, number: int) -> str:
    needed, reason = in_units(needs), os.strerror(number)
    if number != errno.ENOSPC:
        # a quota, or a limit to the size of one file: what is free on the disk says nothing
        found = f"needs {needed}" if needs else "needs more"
    elif needs > (free := free_bytes(path)):
        found = f"needs {needed}, and {in_units(free)} are free"
    elif _has_no_more_files(path):
        found = "is one file more than fit on that disk (it has no free inodes)"
    else:
        # rounded up to the blocks of a disk, even the smallest file may not fit
        found = f"needs more, and {in_units(free)} are free"
    return (
        f"{reason}: {path} {found}; make room and run the same command again: it goes on from "
        "what is kept"
    )


def _has_no_more_files(path: Path) -> bool:
    if not hasattr(os, "statvfs"):  # Windows
        return False
    disk = os.statvfs(_nearest(path))
    # some file systems count none
    return disk.f_files > 0 and disk.f_favail == 0


def _cannot_write(place: Path, reason: str) -> str:
    return f"cannot write {place}: {reason}; give a place that can be written to"


def _error_number(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    # safetensors' and pyarrow's errors have it in their text only
    if found := re.search(r"os error (\d+)", str(error)):
        return int(found[1])
    found = re.search(r"(?:Errno|errno:?) (\d+)", str(error))
    # a permission that is denied there may be one to use the network
    return int(found[1]) if found and int(found[1]) not in _DENIED else 0
