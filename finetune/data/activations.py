"""Activations at the freezing boundary: the trunk sees every image once, not once an epoch."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from extract.engines import Engine
from extract.errors import FxError
from extract.files import Place, check_room, free_bytes, in_units, is_regular, reserve, whole_file
from extract.images import (
    MAX_IMAGE_MB,
    ImageEntry,
    ImageRow,
    ImageSource,
    Preprocessing,
    batched,
    image_place,
    load_images,
)
from finetune.data.augmentation import augmented, is_mirrored, mirrored, seed_of

Progress = Callable[[int, int], None]
Announce = Callable[[str], Progress | None]


class TooLarge(FxError):
    """The activations are more than may be kept."""


@dataclass(frozen=True)
class Views:
    """The augmented images of the images that train.

    Attributes
    ----------
    augment : a name of ``finetune.data.augmentation``
    count : images of each image that are kept, beside the one that is not augmented; 0 where
        pixels are kept, which are augmented anew in every epoch; 1 where they are flipped
    seed : what the images are drawn with
    """

    augment: str
    count: int
    seed: int


class Activations:
    """What the trained part of a network takes of each image, kept in a file.

    With a trunk the rows are its outputs in float16; without one they are the uint8 pixels.

    Attributes
    ----------
    array : float16 array of shape (m, …) or uint8 array of shape (m, size, size, 3), in a file;
        each image has one row, and further ones where augmented views of it are kept
    views : Views
    """

    def __init__(
        self, array: NDArray[Any], keys: Sequence[bytes], counts: Sequence[int], views: Views
    ) -> None:
        self.array = array
        self.views = views
        self._keys = list(keys)
        self._rows = {key: row for row, key in enumerate(keys)}
        self._counts = np.asarray(counts)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])

    def positions(self, rows: Sequence[ImageRow]) -> NDArray[np.int64]:
        """Number some images, as `take` and `draw` want them."""
        return np.array([self._rows[row.key] for row in rows], dtype=np.int64)

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """Read some images as they are: a tensor of shape (len(positions), …) of the dtype."""
        return torch.from_numpy(np.ascontiguousarray(self.array[self._starts[positions]]))

    def draw(self, positions: NDArray[np.int64], epoch: int) -> torch.Tensor:
        """Read some images as an epoch trains on them: augmented, the same for the same epoch."""
        if self.views.augment == "none":
            return self.take(positions)
        seeds = [seed_of(self.views.seed, self._keys[one], epoch) for one in positions]
        if self.views.count and self.views.augment == "flip":
            mirrored = np.array([is_mirrored(seed) for seed in seeds], dtype=np.int64)
            return torch.from_numpy(self.array[self._starts[positions] + mirrored])
        if self.views.count:
            # all views in turn, each image beginning with another
            turn = 1 + (epoch + positions) % (self._counts[positions] - 1)
            rows = self.array[self._starts[positions] + turn]
            return torch.from_numpy(np.ascontiguousarray(rows))
        return augmented(self.take(positions), self.views.augment, seeds)


def load_activations(
    rows: Sequence[ImageRow],
    root: Place,
    *,
    preprocessing: Preprocessing,
    trunk: Engine | None,
    identity: dict[str, Any],
    cache: Path,
    views: Views,
    training: Collection[bytes] = (),
    limit: int | None = None,
    max_image_mb: int = MAX_IMAGE_MB,
    reserved: int = 0,
    announce: Announce | None = None,
) -> Activations:
    """Compute the activations of some images, or find those that an interrupted run left.

    Parameters
    ----------
    rows : images of a snapshot, no two with one key
    root : folder that their paths are relative to
    preprocessing : of the pixels
    trunk : runs the frozen blocks; None keeps the pixels themselves, for a network that trains from
        its first layer
    identity : what, besides the images, decides the activations
    cache : folder for files of activations
    views : augmented images to keep too
    training : keys of the images that augmented images are wanted of
    limit : most bytes that the file may have; None for as many as the disk has room for
    max_image_mb : 2**20 bytes that an image may take as 8-bit RGB
    reserved : bytes that are to stay free on the disk
    announce : given what is being done and what it takes on the disk, returns a callback

    Raises
    ------
    TooLarge
        If the file would be larger than `limit`; without one, if a trunk's is larger than the disk
        has room for.
    NoRoom
        If the disk has no room for it.
    FxError
        If an image changed since the snapshot.
    """
    keys = [row.key for row in rows]
    wanted = set(training) if views.augment != "none" and views.count else set()
    counts = [1 + views.count * (key in wanted) for key in keys]
    about = identity | {"views": asdict(views) if wanted else None}
    if wanted and views.augment == "flip":
        # whatever the seed, they are the same two
        about["views"] = "flip"
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for key, count in zip(keys, counts, strict=True):
        digest.update(key + count.to_bytes(4, "big"))
    file = cache / f"{digest.hexdigest()[:16]}.npy"
    if not is_regular(file):
        found = pixels_of(rows, root, preprocessing, max_image_mb)
        seen = _with_views(found, rows, counts, views)
        parts: Iterator[NDArray[Any]] = seen
        if trunk is not None:
            parts = trunk.run(batched(seen, trunk.batch_size))
        first = next(parts)
        dtype = np.dtype(np.uint8 if trunk is None else np.float16)
        shape = (sum(counts), *first.shape[1:])
        size = math.prod(shape) * dtype.itemsize
        _check_room(file, size, trunk is not None, limit, reserved)
        what = "pixels" if trunk is None else "frozen blocks"
        progress = announce(f"{what}, {in_units(size)} in {cache}") if announce else None
        with whole_file(file, needs=size) as unfinished:
            array: np.memmap[Any, Any] = np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
            reserve(unfinished)
            _fill(array, itertools.chain([first], parts), progress)
    return Activations(np.load(file, mmap_mode="r"), keys, counts, views)


def _fill(
    array: np.memmap[Any, Any], parts: Iterable[NDArray[Any]], progress: Progress | None
) -> None:
    position = 0
    for part in parts:
        if array.dtype == np.float16 and np.abs(part).max() > np.finfo(np.float16).max:
            raise FxError(
                f"activations of {np.abs(part).max():.3g} do not fit the cache's float16; "
                "unfreeze another number of blocks"
            )
        array[position : position + len(part)] = part
        position += len(part)
        if progress:
            progress(position, len(array))
    array.flush()


def pixels_of(
    rows: Sequence[ImageRow], root: Place, preprocessing: Preprocessing, max_image_mb: int
) -> Iterator[NDArray[np.uint8]]:
    """Decode the images of rows: each a uint8 array of shape (1, size, size, 3).

    Raises
    ------
    FxError
        If an image changed since the snapshot.
    """
    entries = tuple(ImageEntry(row.path, row.label, row.split, row.group) for row in rows)
    source = ImageSource(root, "classes", entries, (), max_image_mb)
    for row, one in zip(rows, load_images(source, preprocessing), strict=True):
        if one.pixels is None or one.row.key != row.key:
            what = one.row.note or "its bytes changed"
            where = image_place(root, row.path)
            raise FxError(f"{where}: {what} since the snapshot; extract the images again")
        yield one.pixels


def _with_views(
    found: Iterator[NDArray[np.uint8]],
    rows: Sequence[ImageRow],
    counts: Sequence[int],
    views: Views,
) -> Iterator[NDArray[np.uint8]]:
    """Give each image's own image and its augmented ones: (count, size, size, 3)."""
    for pixels, row, count in zip(found, rows, counts, strict=True):
        yield pixels
        if count > 1 and views.augment == "flip":
            yield mirrored(pixels)
        elif count > 1:
            seeds = [seed_of(views.seed, row.key, view) for view in range(1, count)]
            same = torch.from_numpy(pixels).expand(count - 1, -1, -1, -1)
            yield augmented(same, views.augment, seeds).numpy()


def _check_room(file: Path, size: int, has_trunk: bool, limit: int | None, reserved: int) -> None:
    if limit is not None and size > limit:
        raise TooLarge(
            f"the activations need {in_units(size)}, and {in_units(limit)} are allowed; raise "
            "`cache_limit`, unfreeze fewer blocks, or take a smaller `size`"
        )
    # where a limit says what is kept, the disk does not: another time it may have more room
    if has_trunk and limit is None and free_bytes(file) < size + reserved:
        raise TooLarge(
            f"the activations need {in_units(size)} below {file.parent}, and the training "
            f"{in_units(reserved)}; {in_units(free_bytes(file))} are free"
        )
    check_room(file, size + reserved)
