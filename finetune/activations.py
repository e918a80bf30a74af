"""Activations at the freezing boundary: the trunk sees every image once, not once an epoch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from extract import Engine, FxError, ImageEntry, ImageRow, ImageSource, batched, look

Progress = Callable[[int, int], None]
# Space left free on the disk, bytes.
MARGIN = 1 << 30


class Activations:
    """What the trained part of a network sees of each image, kept in a file.

    With a trunk the rows are its outputs in float16; without one they are the uint8 pixels.

    Attributes
    ----------
    array : float16 array of shape (n, …) or uint8 array of shape (n, size, size, 3), in a file
    """

    def __init__(self, array: NDArray[Any], keys: Sequence[bytes]) -> None:
        self.array = array
        self._rows = {key: row for row, key in enumerate(keys)}

    def positions(self, rows: Sequence[ImageRow]) -> NDArray[np.int64]:
        """Find the places of images in ``array``."""
        return np.array([self._rows[row.key] for row in rows], dtype=np.int64)

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """Read some rows: a tensor of shape (len(positions), …) of the array's dtype."""
        return torch.from_numpy(np.ascontiguousarray(self.array[positions]))


def load_activations(
    rows: Sequence[ImageRow],
    root: Path,
    *,
    engine: Engine,
    has_trunk: bool,
    identity: dict[str, Any],
    cache: Path,
    progress: Progress | None = None,
) -> Activations:
    """Compute the activations of some images, or find those that an interrupted run left.

    Parameters
    ----------
    rows : images of a snapshot, no two with one key
    root : folder that their paths are relative to
    engine : runs the trunk
    has_trunk : False keeps the pixels themselves, for a network that trains from its first layer
    identity : what, besides the images, decides the activations
    cache : folder for files of activations
    progress : called with images done and in all

    Raises
    ------
    FxError
        If an image changed since the snapshot, or the disk has no room.
    """
    keys = [row.key for row in rows]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for key in keys:
        digest.update(key)
    folder = cache / digest.hexdigest()[:16]
    file, done = folder / "activations.npy", folder / "done"
    if not done.exists():
        _fill(file, rows, root, engine, has_trunk, progress)
        done.touch()
    return Activations(np.load(file, mmap_mode="r"), keys)


def _fill(
    file: Path,
    rows: Sequence[ImageRow],
    root: Path,
    engine: Engine,
    has_trunk: bool,
    progress: Progress | None,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    array: NDArray[Any] | None = None
    position = 0
    batches = batched(_pixels(rows, root, engine), engine.batch_size)
    for part in engine.run(batches) if has_trunk else batches:
        if array is None:
            dtype = np.dtype(np.float16 if has_trunk else np.uint8)
            shape = (len(rows), *part.shape[1:])
            _check_room(file.parent, int(np.prod(shape)) * dtype.itemsize)
            array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
        if has_trunk and np.abs(part).max() > np.finfo(np.float16).max:
            raise FxError(
                f"activations of {np.abs(part).max():.3g} do not fit the cache's float16; "
                "unfreeze another number of blocks"
            )
        array[position : position + len(part)] = part
        position += len(part)
        if progress:
            progress(position, len(rows))
    if array is not None:
        array.flush()  # type: ignore[attr-defined]  # a memmap


def _pixels(rows: Sequence[ImageRow], root: Path, engine: Engine) -> Iterator[NDArray[np.uint8]]:
    entries = tuple(ImageEntry(row.path, row.label, row.split, row.group) for row in rows)
    source = ImageSource(root, "classes", entries, ())
    for row, looked in zip(rows, look(source, engine.preprocessing), strict=True):
        if looked.pixels is None or looked.row.key != row.key:
            what = looked.row.note or "its bytes changed"
            raise FxError(f"{root / row.path}: {what} since the snapshot; run fx extract again")
        yield looked.pixels


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        raise FxError(
            f"the activations need {needed / 1e9:.1f} GB below {folder}; {free / 1e9:.1f} GB are "
            "free; unfreeze fewer blocks, take a smaller --size, or give another --out"
        )
