"""Reading images: a bounded number of files is hashed and decoded ahead, in order."""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from extract.errors import one_line
from extract.files import ObjectPath, Place, StorageFailure
from extract.images.decoding import MB, UnreadableImage, read_pixels_and_size
from extract.images.decoding_memory import BYTES_AT_ONCE, memory_for
from extract.images.entries import FileStats, ImageEntry, ImageRow, ImageSource, LoadedImage
from extract.images.near_duplicates import perceptual_hash
from extract.images.preprocessing import Preprocessing
from extract.images.shards import is_streamed, open_image
from extract.images.workers import MAX_WORKERS, readers

# Bytes: as many as the largest image that is let in has with three samples of 16 bits a pixel.
# Files are read as a whole, and a film or a disk image named .jpg would fill the memory.
LARGEST_FILE = 2**30
# of a file that is read and decoded while no other image is
LARGE_FILE = 2**26
# of decoded images that wait for the engine: as many as there should be, and as there may be
BYTES_AHEAD, MOST_BYTES_AHEAD = 2**25, 2**28


def load_images(
    source: ImageSource,
    preprocessing: Preprocessing,
    stored: Container[bytes] = (),
    known: dict[str, tuple[FileStats, bytes]] | None = None,
    *,
    crops: int = 1,
    hashed: bool = False,
) -> Generator[LoadedImage]:
    """Read images, in order, a bounded number ahead. One thread has to ask for them all.

    Parameters
    ----------
    source : the images, and the memory that each may take
    preprocessing : what pixels are made into
    stored : keys whose pixels are not needed
    known : path → stats and key, of files that need not be read if they still have those stats
    crops : squares cut from each image: 1, 5 or 10
    hashed : whether perceptual hashes are wanted of what is decoded
    """
    known = known or {}
    shape = (crops, preprocessing.size, preprocessing.size, 3)
    # here: it imports asyncio and multiprocessing, which reading a snapshot does not need
    from joblib import cpu_count

    cores = max(2, cpu_count())
    # far enough that decoding goes on while an engine is made ready
    most = max(4 * min(cores, MAX_WORKERS), min(256, BYTES_AHEAD // math.prod(shape)))
    most = min(most, max(2, MOST_BYTES_AHEAD // math.prod(shape)))

    def work(entry: ImageEntry) -> LoadedImage:
        return _load_image(entry, source, preprocessing, stored, crops, hashed)

    ahead: deque[LoadedImage | Callable[[], LoadedImage]] = deque()
    streamed = any(is_streamed(source.root, entry.path) for entry in source.entries)
    with readers(work, cores, most + 1, shape, len(source.entries), streamed=streamed) as read:
        for entry in source.entries:
            # at once: handing it to another thread would take longer than looking
            ahead.append(unchanged(entry, source.root, stored, known) or read(entry))
            if len(ahead) > most:
                yield _of(ahead.popleft())
        while ahead:
            yield _of(ahead.popleft())


def _of(one: LoadedImage | Callable[[], LoadedImage]) -> LoadedImage:
    return one if isinstance(one, LoadedImage) else one()


def unchanged(
    entry: ImageEntry,
    root: Place,
    stored: Container[bytes],
    known: dict[str, tuple[FileStats, bytes]],
) -> LoadedImage | None:
    """Give the row of an image that need not be read; None of others.

    Parameters are those of ``load_images``.
    """
    before = known.get(entry.path)
    if before is None or before[1] not in stored:
        return None
    try:
        # not of a Path, which takes as long again
        stats = entry.stats or FileStats.of(os.stat(f"{root}/{entry.path}"))  # noqa: PTH116
    except OSError:  # reported when it is opened
        return None
    return LoadedImage(_row(entry, before[1], "", stats)) if stats == before[0] else None


def _row(entry: ImageEntry, key: bytes, note: str, stats: FileStats | None) -> ImageRow:
    return ImageRow(entry.path, key, entry.label, entry.group, entry.split, note, not note, stats)


def largest_file(max_image_mb: int) -> int:
    """Bytes that an image's file may have."""
    return max(LARGEST_FILE, 2 * max_image_mb * MB)


def _load_image(
    entry: ImageEntry,
    source: ImageSource,
    preprocessing: Preprocessing,
    stored: Container[bytes],
    crops: int,
    hashed: bool,
) -> LoadedImage:
    largest = largest_file(source.max_image_mb)
    with ExitStack() as memory:
        # what is in no file is in memory once it is opened
        if alone := entry.stats is not None and entry.stats.size > LARGE_FILE:
            memory.enter_context(memory_for(BYTES_AT_ONCE))
        try:
            with open_image(source.root, entry.path, largest) as (file, stats):
                if stats.size > LARGE_FILE and not alone:
                    alone = True
                    memory.enter_context(memory_for(BYTES_AT_ONCE))
                data = file.read(largest)
        except OSError as error:
            silent = isinstance(error, StorageFailure) and not isinstance(error, PermissionError)
            # of all images, most likely: a snapshot without them would look like a whole one
            if silent and isinstance(source.root, ObjectPath) and "://" not in entry.path:
                raise
            return LoadedImage(_row(entry, b"", one_line(error), None))
        except MemoryError:
            return LoadedImage(_row(entry, b"", "not enough memory to read it", None))
        key = hashlib.sha256(data).digest()
        if key in stored:
            return LoadedImage(_row(entry, key, "", stats))
        try:
            limits = source.max_image_mb, alone
            pixels, size = read_pixels_and_size(data, preprocessing, crops, *limits)
        except UnreadableImage as error:
            return LoadedImage(_row(entry, key, str(error), stats))
        except MemoryError:
            return LoadedImage(_row(entry, b"", "not enough memory to decode it", None))
    perceptual = perceptual_hash(pixels[0]) if hashed else None
    return LoadedImage(_row(entry, key, "", stats), pixels, perceptual, size)


def batched(images: Iterable[NDArray[np.uint8]], batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """Join images into batches, in order.

    Parameters
    ----------
    images : uint8 arrays of shape (crops, size, size, 3)
    batch_size : squares in a batch

    Yields
    ------
    uint8 array of shape (batch_size, size, size, 3), the last one of at most that many
    """
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for image in images:
        waiting.append(image)
        count += len(image)
        while count >= batch_size:
            joined = np.concatenate(waiting)
            yield joined[:batch_size]
            waiting = [joined[batch_size:]]
            count -= batch_size
    if count:
        yield np.concatenate(waiting)


def mean_of_crops(
    batches: Iterator[NDArray[np.float32]], crops: int
) -> Iterator[NDArray[np.float32]]:
    """Average the features of each image's crops, which may lie in two batches."""
    rest: list[NDArray[np.float32]] = []
    for features in batches:
        joined = np.concatenate([*rest, features])
        whole = len(joined) // crops * crops
        rest = [joined[whole:]]
        if whole:
            yield joined[:whole].reshape(-1, crops, joined.shape[1]).mean(axis=1)
