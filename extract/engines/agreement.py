"""Before another engine or version adds rows, some stored ones are computed again and compared."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.engines.base import Engine
from extract.errors import FxError
from extract.files import StorageFailure
from extract.images import (
    ImageSource,
    Preprocessing,
    Snapshot,
    UnreadableImage,
    batched,
    largest_file,
    mean_of_crops,
    read_image,
    read_pixels,
)
from extract.store import FeatureSet, FeatureStore, Spec

ROWS_COMPARED = 8
FILES_SEARCHED = 256


def find_stale_sets(
    specs: Sequence[Spec],
    backbone: Backbone,
    store: FeatureStore,
    source: ImageSource,
    engine: Engine,
    crops: int,
) -> set[str]:
    """Name the sets whose rows another engine or version made, and come out differently now."""
    ours = engine.name, engine.versions()
    edges = np.cumsum([0, *backbone.layers.values()])
    stale = set()
    for spec, start, stop in zip(specs, edges[:-1], edges[1:], strict=True):
        current = store.find(spec)
        if current is None or not current.runs:
            continue
        last = current.runs[-1]
        if (last.engine, last.versions) == ours:
            continue
        store.give_up_damaged_rows(current)
        keys, images = _some_stored_images(current, store, source, engine.preprocessing, crops)
        if not keys:
            # nothing to compare with can be reached; the run records what computed which rows
            continue
        batches = engine.run(batched(images, engine.batch_size))
        again = np.concatenate(list(mean_of_crops(batches, crops)))[:, start:stop]
        stored = current.features(keys)
        distance = np.linalg.norm(again - stored, axis=1)
        if (distance > engine.tolerance * np.linalg.norm(stored, axis=1)).any():
            stale.add(current.name)
    return stale


def _some_stored_images(
    current: FeatureSet,
    store: FeatureStore,
    source: ImageSource,
    preprocessing: Preprocessing,
    crops: int,
) -> tuple[list[bytes], list[NDArray[np.uint8]]]:
    """Read a few images that have rows: their keys and pixels."""
    found: dict[bytes, NDArray[np.uint8]] = {}
    silent = set[str]()
    for root, path in _where_stored_images_may_be(store, source):
        if root in silent:
            continue
        try:
            data = read_image(root, path, largest_file(source.max_image_mb))
            key = hashlib.sha256(data).digest()
            if key in current.rows and key not in found:
                found[key] = read_pixels(data, preprocessing, crops, source.max_image_mb)
        except StorageFailure:
            # each of its images would be asked for as long again
            silent.add(root)
        except (OSError, UnreadableImage):
            continue
        if len(found) == ROWS_COMPARED:
            break
    return list(found), list(found.values())


def _where_stored_images_may_be(
    store: FeatureStore, source: ImageSource
) -> Iterator[tuple[str, str]]:
    """Root and path of some of these images, then some of each snapshot, the last one first."""
    yield from ((str(source.root), entry.path) for entry in source.entries[:FILES_SEARCHED])
    for name in reversed(store.snapshots()):
        with suppress(FxError):  # a damaged snapshot is another command's matter
            snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
            for row in snapshot.rows[:FILES_SEARCHED]:
                yield snapshot.root, row.path
