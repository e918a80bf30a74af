"""Reading images: threads hash and decode a bounded number of files ahead, in order."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.decode import UnreadableImage, read_pixels
from extract.preprocessing import Preprocessing
from extract.snapshot import FileStamp, ImageRow
from extract.sources import ImageEntry, ImageSource


@dataclass(frozen=True, slots=True)
class Looked:
    """One image read: its row, and its pixels where they are needed."""

    row: ImageRow
    pixels: NDArray[np.uint8] | None = None


def look(
    source: ImageSource,
    preprocessing: Preprocessing,
    stored: Iterable[bytes] = (),
    known: dict[str, tuple[FileStamp, bytes]] | None = None,
) -> Iterator[Looked]:
    """Read images in threads, in order, a bounded number ahead.

    Parameters
    ----------
    source : the images
    preprocessing : what pixels are made into
    stored : keys whose pixels are not needed
    known : path → stamp and key, of files that need not be read if they still have that stamp
    """
    have = stored if isinstance(stored, set) else set(stored)
    stamps = known or {}
    workers = max(2, os.cpu_count() or 1)

    def work(entry: ImageEntry) -> Looked:
        return _look_at(entry, source.root, preprocessing, have, stamps)

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Looked]] = deque()
        try:
            for entry in source.entries:
                ahead.append(pool.submit(work, entry))
                if len(ahead) > 16 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _look_at(
    entry: ImageEntry,
    root: Path,
    preprocessing: Preprocessing,
    stored: set[bytes],
    known: dict[str, tuple[FileStamp, bytes]],
) -> Looked:
    def row(key: bytes, note: str, stamp: FileStamp | None) -> ImageRow:
        return ImageRow(
            entry.path, key, entry.label, entry.group, entry.split, note, not note, stamp
        )

    try:
        with (root / entry.path).open("rb") as file:
            status = os.fstat(file.fileno())
            stamp = FileStamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            before = known.get(entry.path)
            if before and before[0] == stamp and before[1] in stored:
                return Looked(row(before[1], "", stamp))
            data = file.read()
    except OSError as error:
        return Looked(row(b"", error.strerror or type(error).__name__, None))
    key = hashlib.sha256(data).digest()
    if key in stored:
        return Looked(row(key, "", stamp))
    try:
        pixels = read_pixels(data, preprocessing)
    except UnreadableImage as error:
        return Looked(row(key, str(error), stamp))
    return Looked(row(key, "", stamp), pixels)
