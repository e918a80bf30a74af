"""Rows of a snapshot: what was found out of one image at one time, and what was decided of it."""

from dataclasses import dataclass

from extract.image_source import Split


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file is unchanged without reading it (git's rule)."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a snapshot.

    Attributes
    ----------
    path : relative to the snapshot's root
    key : SHA-256 of the file's bytes; empty where it could not be read
    label, group : as given; None where there is none
    split : ``train``, ``val``, ``test``, or None for a row in no split
    note : why it is in no split: the reason it cannot be read, ``copy of …``, or
        ``conflicting labels``
    readable : whether it has features
    stamp : of the file, when it was read
    """

    path: str
    key: bytes
    label: str | None
    group: str | None
    split: Split | None
    note: str
    readable: bool
    stamp: FileStamp | None
