"""Images as records: before any is opened, read, and as the rows of a snapshot.

Entries of a source are sorted and none comes twice.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from extract.errors import FxError
from extract.files import ObjectStats, Place

Split = Literal["train", "val", "test"]
# of 2**20 bytes: what an image may take as 8-bit RGB, by default
MAX_IMAGE_MB = 512
# as Hugging Face's datasets finds splits by their names, which has seen most of them
_SPLIT_WORDS: dict[Split, str] = {
    "train": "train|training",
    "val": "val|valid|validation|dev",
    "test": "test|testing|eval|evaluation",
}
LAYOUTS = ("splits", "classes")
_READ = "jpg jpeg jpe jfif mpo png webp bmp tif tiff gif ppm pgm pbm pnm avif heic heif hif"
SUFFIXES = frozenset(_READ.split())
_LONGEST_NAME = 255  # of a folder; matching a cell of a megabyte would take days


def split_named(name: str) -> Split | None:
    """Say which split a name means: ``Training``, ``test_set``, ``val2017``; None for others."""
    return _split_matching(r"[^a-z]*(?:{})[^a-z]*(?:set|split|data|images)?[^a-z]*", name)


def split_within(name: str) -> Split | None:
    """Say which split a part of a name means, as in ``seg_train``; None for none, or several."""
    return _split_matching(r"(?:.*[^a-z])?(?:{})(?:[^a-z]?set)?(?:[^a-z].*)?", name)


def _split_matching(pattern: str, name: str) -> Split | None:
    tidy = name.strip().lower()
    if len(tidy) > _LONGEST_NAME:
        return None
    found = [
        split
        for split, words in _SPLIT_WORDS.items()
        if re.fullmatch(pattern.format(words), tidy, re.DOTALL)
    ]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Reading:
    """How a folder or a table of images is read.

    Parameters
    ----------
    path_column, label_column, split_column, group_column : str or None
        What a table calls these columns, in either case; by default ``path``, ``label``,
        ``split`` and ``group``.
    layout : {"splits", "classes"} or None
        What the first folders are; by default seen from their names.
    root : Path, ObjectPath or None
        Folder that a table's relative paths are relative to; by default the table's own.
    min_images : int
        Classes of fewer images (or groups, where they are given) are in no split. At 0, a class
        of none is an error.
    max_image_mb : int, of 2**20 bytes
        Images that would take more as 8-bit RGB are not decoded; see ``extract.images.decoding``.
    """

    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    root: Place | None = None
    layout: str | None = None
    min_images: int = 0
    max_image_mb: int = MAX_IMAGE_MB

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise FxError(f"`layout` must be {' or '.join(LAYOUTS)}; got {self.layout!r}")
        if self.min_images < 0:
            raise FxError(f"`min_images` must be at least 0; got {self.min_images}")

    def check_is_of_folders(self, images: Place) -> None:
        """Refuse what only tables have.

        Raises
        ------
        FxError
            If a column or a root is named.
        """
        for name in ("path_column", "label_column", "split_column", "group_column", "root"):
            if getattr(self, name) is not None:
                raise FxError(f"`{name}` is of tables; got {shown(images)}; leave it out")


@dataclass(frozen=True, slots=True)
class FileStats:
    """What shows that a file is unchanged without reading it (git's rule)."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result | ObjectStats) -> "FileStats":
        """Take them from what a disk or a storage says."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @classmethod
    def of_part(cls, status: os.stat_result | ObjectStats, at: int, size: int) -> "FileStats":
        """Make those of an image that lies in a file, which is unchanged where the file is."""
        about = hashlib.sha256(f"{status.st_ino} {status.st_size} {at}".encode()).digest()
        inode = int.from_bytes(about[:8], "big") >> 1
        return cls(inode, size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image file, or one image in a shard.

    Parameters
    ----------
    path : str
        Relative to the source's root, with ``/`` between its parts; absolute, or a URL, only where
        a table says so of a file outside of its folder. Bytes of a file name that are no UTF-8 are
        in it as surrogates (``os.fsdecode``), so that the file can be opened. What follows a shard
        is the member's name or the row's number: ``train.tar/cat/1.jpg``, ``train.parquet/17``.
    label, split, group : str or None
        None where nothing is said.
    stats : FileStats or None
        Where the listing has said them; of a file on a disk it does not.
    """

    path: str
    label: str | None
    split: Split | None
    group: str | None
    stats: FileStats | None = None


@dataclass
class Listing:
    """What is in a shard; paths are relative to it.

    Attributes
    ----------
    images : in the order in which they lie
    others : paths of what is no image
    skipped : paths of what cannot be read, with the reason; "" is the shard itself
    hidden : how many were passed over for their names
    columns : of Parquet, what the columns that were read mean, and are called
    """

    images: list[ImageEntry] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSource:
    """The images of a folder or a table.

    Parameters
    ----------
    root : Path or ObjectPath
        Absolute: the folder, or the folder that holds the table, the shard or the single image;
        or a place on object storage.
    kind : {"classes", "splits", "table", "unlabelled"}
    entries : tuple of ImageEntry
        Sorted by path, then by label, split and group; of a shard, in its order. A path comes
        twice only where a table lists it with different labels, splits or groups.
    skipped : tuple of (path, reason)
        What might have been images and cannot be opened, sorted.
    max_image_mb : int
        Larger images are not decoded; see ``extract.decode``.
    passed_over : tuple of (kind, count)
        What was there besides and is no labelled image, the commonest kind first: files by their
        suffixes, hidden ones, folders of the system, class folders without images, images or rows
        without a label where others have one.
    columns : tuple of (meaning, name)
        Columns of a table that were read, such as ``("path", "Filename")``.
    lost : tuple of (label, path, reason)
        Classes of which nothing is among the entries, sorted, with one of their files each.
    min_images : int
        As of ``Reading``; kept when the images have been read.
    """

    root: Place
    kind: Literal["classes", "splits", "table", "unlabelled"]
    entries: tuple[ImageEntry, ...]
    skipped: tuple[tuple[str, str], ...]
    max_image_mb: int = MAX_IMAGE_MB
    passed_over: tuple[tuple[str, int], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    lost: tuple[tuple[str, str, str], ...] = ()
    min_images: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels, sorted."""
        return tuple(sorted({entry.label for entry in self.entries if entry.label is not None}))

    def without_small_classes(self) -> "ImageSource":
        """Leave out classes of fewer than ``min_images``, as far as is known before any is read."""
        counts = Counter(entry.label for entry in self.entries)
        kept = [e for e in self.entries if e.label is None or counts[e.label] >= self.min_images]
        return replace(self, entries=tuple(kept))

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return any(entry.label is not None for entry in self.entries)


def composed(name: str) -> str:
    """Give the composed Unicode form: names that look alike are one name, whoever wrote them."""
    return unicodedata.normalize("NFC", name)


def shown(path: Place) -> str:
    """Quote a path for a message."""
    return repr(str(path))


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a snapshot.

    Attributes
    ----------
    path : relative to the snapshot's root
    key : SHA-256 of the file's bytes; empty where it could not be read
    label, group : as given; None where there is none
    split : ``train``, ``val``, ``test``, or None for a row in no split
    note : why it is in no split: the reason it cannot be read, ``copy of …``, ``conflicting
        labels``, or ``of a class of fewer than … images``
    readable : whether it has features
    stats : of the file, when it was read
    """

    path: str
    key: bytes
    label: str | None
    group: str | None
    split: Split | None
    note: str
    readable: bool
    stats: FileStats | None


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One image read: its row, and its pixels where they are needed.

    Attributes
    ----------
    row : ImageRow
    pixels : uint8 array of shape (crops, size, size, 3), or None
    perceptual : perceptual hash, uint8 array of shape (32,), where it is asked for, or None
    size : width and height of the file's image in pixels, where it was decoded, or None
    """

    row: ImageRow
    pixels: NDArray[np.uint8] | None = None
    perceptual: NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
