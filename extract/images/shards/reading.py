"""An image's bytes, wherever it lies: in a file, in an object, or in a shard that is either."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from extract.files import ObjectPath, Place, open_regular, place
from extract.images.entries import FileStats
from extract.images.shards.patterns import SHARDS
from extract.images.shards.rows import read_row
from extract.images.shards.tars import TarIndex, find_in_index, read_member


def image_place(root: str | Place, path: str) -> Place:
    """Say where an image lies, by a snapshot's root and the path of one of its rows."""
    return place(path) if "://" in path else place(root) / path


def is_streamed(root: str | Place, path: str) -> bool:
    """Whether an image lies on object storage, or by its name in a shard."""
    return (
        "://" in path
        or isinstance(root, ObjectPath)
        or any(f"{end}/" in path.lower() for end in SHARDS)
    )


@contextmanager
def open_image(root: str | Place, path: str, largest: int) -> Iterator[tuple[BinaryIO, FileStats]]:
    """Open an image to read; what does not lie in a file is read at once.

    Parameters
    ----------
    root : of the source or snapshot
    path : of its entry or row: ``cat/1.jpg``, ``shard.tar/cat/1.jpg``, ``shard.parquet/17``
    largest : bytes that it may have

    Raises
    ------
    OSError
        If it cannot be opened, is no regular file, or is larger.
    """
    where = image_place(root, path)
    try:
        data, stats = _from_shard(where, largest)
    except FileNotFoundError as error:
        missing = error
    else:
        yield io.BytesIO(data), stats
        return
    try:
        with open_regular(where, largest) as (file, status):
            yield file, FileStats.of(status)
    except NotADirectoryError:
        raise missing from None


def read_image(root: str | Place, path: str, largest: int) -> bytes:
    """Read an image; parameters and errors are those of ``open_image``."""
    with open_image(root, path, largest) as (file, _):
        return file.read(largest)


def indexes_of(root: str | Place, paths: Iterable[str]) -> dict[Place, TarIndex]:
    """Say where images lie in tars that were listed here, for ``learn_indexes`` elsewhere."""
    found: dict[Place, TarIndex] = {}
    for path in paths:
        for shard, member in _shards_in(image_place(root, path)):
            if known := find_in_index(shard, member):
                index = found.setdefault(shard, TarIndex(known[0], {}, whole=False))
                index.members[member] = known[1]
    return found


def _from_shard(where: Place, largest: int) -> tuple[bytes, FileStats]:
    """Read a member of the first part of a path that is a shard.

    Raises
    ------
    FileNotFoundError
        If none is, or it has no such member.
    """
    error = FileNotFoundError(str(where))
    for shard, member in _shards_in(where):
        # a folder may have such a name
        if isinstance(shard, Path) and not shard.is_file():
            continue
        read = read_member if shard.suffix.lower() == ".tar" else read_row
        try:
            return read(shard, member, largest)
        except FileNotFoundError as missing:
            error = missing
    raise error


def _shards_in(where: Place) -> Iterator[tuple[Place, str]]:
    """Take a place apart after each name of a shard, and what follows it."""
    whole = where.key if isinstance(where, ObjectPath) else str(where)
    for found in re.finditer(r"\.(tar|parquet)(?=/)", whole, re.IGNORECASE):
        head, member = whole[: found.end()], whole[found.end() + 1 :]
        yield ObjectPath(where.base, head) if isinstance(where, ObjectPath) else Path(head), member
