"""Tars of images, as WebDataset writes them: members that share a name up to its first dot.

A tar is never unpacked. Its headers say where its members lie, and these bytes are read. What they
say may be anybody's: no name leads out of the tar, and no header makes fx read or keep much.
"""

import errno
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

from extract.errors import one_line
from extract.files import ObjectPath, ObjectStats, Place, open_regular
from extract.images.entries import SUFFIXES, FileStats, ImageEntry, Listing, composed
from extract.images.shards.ranges import open_shard, read_range

# bytes: of a member's names and attributes, and of a label's file
_LARGEST_HEADER, _LARGEST_LABEL = 2**20, 2**20
# characters; a text of more, or of several lines, is a caption
_LONGEST_LABEL = 100
# what says a label, the first of them before the others
_LABEL_SUFFIXES = ("cls", "json", "txt")
_LABEL_KEYS = ("label", "class", "cls", "category")


class TarIndex(NamedTuple):
    """Where images lie in a tar.

    Attributes
    ----------
    stats : of the tar, as a disk or a storage says them
    members : name → where it begins, and its bytes
    whole : whether these are all images that it has
    """

    stats: Any
    members: dict[str, tuple[int, int]]
    whole: bool


_indexes: dict[Place, TarIndex] = {}
_indexing = Lock()


def list_tar(where: Place) -> Listing:
    """List the images of a tar, with the labels that lie beside them; keep where they are.

    Raises
    ------
    OSError
        If it cannot be opened or read; what is damaged is listed up to the damage.
    """
    found, members = Listing(), dict[str, tuple[int, int]]()
    labels: dict[str, tuple[int, str]] = {}
    with open_shard(where) as (file, stats):
        try:
            for info in _members(file, stats.st_size):
                parts = [part for part in info.name.split("/") if part not in ("", ".")]
                path = "/".join(parts)
                sample, _, extension = parts[-1].partition(".") if parts else ("", "", "")
                is_image = extension.rpartition(".")[2].lower() in SUFFIXES
                sample = "/".join([*parts[:-1], sample])
                if info.isdir():
                    continue
                if any(part.startswith(".") and part != ".." for part in parts):
                    found.hidden += 1
                elif ".." in parts:
                    found.skipped.append((path, "its name leads out of the archive"))
                elif not info.isreg() or info.sparse is not None:
                    if is_image:
                        found.skipped.append((path, "not a regular file"))
                elif is_image:
                    members[path] = info.offset_data, info.size
                elif (label := _label(file, info, extension.lower())) is not None:
                    rank = _LABEL_SUFFIXES.index(extension.lower())
                    labels[sample] = min((rank, label), labels.get(sample, (rank + 1, "")))
                else:
                    found.others.append(path)
        except OSError:
            raise
        except Exception as error:  # a damaged tar fails in as many ways as there are bytes
            found.skipped.append(("", f"damaged, and read up to there: {one_line(error)}"))
    for path, (offset, size) in members.items():
        if offset + size > stats.st_size:
            continue
        folder, _, name = path.rpartition("/")
        sample = f"{folder}/{name.partition('.')[0]}".lstrip("/")
        label = labels.get(sample, (0, None))[1]
        part = FileStats.of_part(stats, offset, size)
        found.images.append(ImageEntry(path, label, None, None, part))
    _indexes[where] = TarIndex(stats, members, whole=True)
    return found


def find_in_index(where: Place, name: str) -> tuple[Any, tuple[int, int]] | None:
    """Give a tar's stats, and where an image lies in it; None of what was not listed here."""
    index = _indexes.get(where)
    return (index.stats, index.members[name]) if index and name in index.members else None


def learn_indexes(indexes: Mapping[Place, TarIndex]) -> None:
    """Know from another process where images lie, so that their tars are not listed again."""
    with _indexing:
        for where, index in indexes.items():
            here = _indexes.get(where)
            if here and FileStats.of(here.stats) == FileStats.of(index.stats):
                here.members.update(index.members)
            # readers compare files anyway, and another machine may see other stats of the same one
            elif not (here and here.whole and isinstance(where, Path)):
                _indexes[where] = index


def read_member(where: Place, name: str, largest: int) -> tuple[bytes, FileStats]:
    """Read one image of a tar.

    Raises
    ------
    OSError
        If there is none, it is larger than `largest` bytes, or it cannot be read.
    """
    if isinstance(where, ObjectPath):
        stats, (offset, size) = _place_of(where, name, largest)
        data = read_range(where, stats, offset, offset + size)
    else:
        with open_regular(where, 2**63) as (file, status):
            stats, (offset, size) = _place_of(where, name, largest, FileStats.of(status))
            file.seek(offset)
            data = file.read(size)
    if len(data) < size:
        raise OSError(errno.EIO, "the archive ends inside of it", name)
    return data, FileStats.of_part(stats, offset, size)


def _place_of(
    where: Place, name: str, largest: int, now: FileStats | None = None
) -> tuple[ObjectStats, tuple[int, int]]:
    """Give a tar's stats, and where in it a member begins and how long it is."""
    with _indexing:
        index = _indexes.get(where)
        if (
            index is None
            or (name not in index.members and not index.whole)
            or (now and FileStats.of(index.stats) != now)
        ):
            list_tar(where)
        stats, members, _ = _indexes[where]
    if name not in members:
        raise FileNotFoundError(errno.ENOENT, "no such member of the archive", name)
    if members[name][1] > min(largest, stats.st_size):
        raise OSError(errno.EFBIG, f"too large: {members[name][1]:,} bytes", name)
    return stats, members[name]


class _Headers:
    """A tar's bytes for ``tarfile``, which would read as much, or go as far, as a header says."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.tell, self._seek, self._read, self.size = file.tell, file.seek, file.read, size

    def seek(self, at: int) -> None:
        if at > self.size:
            raise tarfile.ReadError("it ends inside of a member")
        self._seek(at)

    def read(self, size: int) -> bytes:
        if size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=_Headers(file, size), mode="r:") as tar:  # type: ignore[call-overload]
        at = 0
        while (info := tar.next()) is not None:
            tar.members = []  # which would be kept
            # sizes may be negative, and lead back for ever
            if info.size < 0 or tar.offset <= at:
                raise tarfile.ReadError("a member of a negative size")
            at = tar.offset
            yield info
        # tarfile takes a damaged header for the end
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end of the archive at byte {tar.offset:,}")


def _label(file: BinaryIO, info: tarfile.TarInfo, extension: str) -> str | None:
    """Read the label of a sample; None where a member says none."""
    if extension not in _LABEL_SUFFIXES or info.size > _LARGEST_LABEL:
        return None
    file.seek(info.offset_data)
    try:
        text = file.read(info.size).decode("utf-8-sig").strip()
        if extension == "json":
            said = json.loads(text)
            values = [said.get(key) for key in _LABEL_KEYS] if isinstance(said, dict) else []
            known = (one for one in values if isinstance(one, str | int) and one is not True)
            text = str(next(known, "")).strip()
        elif text.isdecimal():
            text = str(int(text))
    except (ValueError, RecursionError):
        return None
    return composed(text) if text.isprintable() and 0 < len(text) <= _LONGEST_LABEL else None
