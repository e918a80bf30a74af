"""A first look at some of the images: their features, and what is odd about them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fx.comparison.quadrant import SAMPLED_IMAGES, distance_of_source
from fx.output import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract.backbones import Backbone
    from extract.engines import Engine
    from extract.images import ImageEntry, ImageSource

HEADERS = 200  # images whose size in pixels is read


@dataclass(frozen=True)
class Sample:
    """Images that one network has seen.

    Attributes
    ----------
    labels : n of them, of the images that can be read and are no copies
    features : float32 array of shape (n, d)
    distance : see ``extract.domain_shift``
    seconds : that reading them and computing features took
    """

    labels: list[str]
    features: NDArray[np.float32]
    distance: float | None
    seconds: float


@dataclass(frozen=True)
class _Found:
    """What is found out while images are read.

    Attributes
    ----------
    kept : images that can be read and are no copies
    hashes : of each of those, its perceptual hash
    failed, copies : records of the others
    """

    kept: list[ImageEntry]
    hashes: list[NDArray[np.uint8]]
    failed: list[dict[str, str]]
    copies: list[dict[str, str]]

    def images(
        self, source: ImageSource, backbone: Backbone, tick: Progress
    ) -> Iterator[NDArray[np.uint8]]:
        """Read images; give the pixels of those that are kept."""
        from extract.images import load_images

        seen: dict[bytes, str] = {}
        loading = load_images(source, backbone.preprocessing, hashed=True)
        for number, (entry, loaded) in enumerate(zip(source.entries, loading, strict=True), 1):
            tick(number, len(source.entries))
            if loaded.pixels is None or loaded.perceptual is None:
                self.failed.append({"path": entry.path, "reason": loaded.row.note})
                continue
            if (other := seen.setdefault(loaded.row.key, entry.path)) != entry.path:
                self.copies.append({"path": entry.path, "copy_of": other})
                continue
            self.kept.append(entry)
            self.hashes.append(loaded.perceptual)
            yield loaded.pixels

    def facts(self, source: ImageSource) -> dict[str, Any]:
        """Say what is odd about the images, in values that JSON can hold."""
        import numpy as np

        from extract.images import near_copies

        hashes = np.stack(self.hashes)
        pairs = [(self.kept[i], self.kept[j]) for i, j in near_copies(hashes, hashes) if i < j]
        leaks = [(one, other) for one, other in pairs if one.split != other.split]
        return {
            "n": len(source.entries),
            "unreadable": self.failed,
            "copies": self.copies,
            "near_copies": [[one.path, other.path] for one, other in pairs],
            "near_copies_across_splits": [[one.path, other.path] for one, other in leaks],
            "shorter_side": _shorter_side(source),
        }


def sampled(source: ImageSource, count: int) -> ImageSource:
    """Take labelled images by a hash of their paths: any number of each class, the same again."""
    labelled = [entry for entry in source.entries if entry.label is not None]
    labelled.sort(key=lambda entry: hashlib.sha256(entry.path.encode(errors="replace")).digest())
    return replace(source, entries=tuple(labelled[:count]))


def look_at(
    source: ImageSource, backbone: Backbone, engine: Engine, tick: Progress
) -> tuple[Sample, dict[str, Any]]:
    """Compute features of a sample; say what is odd about its images."""
    import numpy as np

    from extract.errors import FxError
    from extract.images import batched

    begun = time.perf_counter()
    found = _Found([], [], [], [])
    images = found.images(source, backbone, tick)
    batches = list(engine.run(batched(images, engine.batch_size)))
    if not batches:
        first = found.failed[0]["reason"]
        raise FxError(f"none of {len(found.failed):,} images can be read; the first: {first}")
    features = np.concatenate(batches)
    seconds = time.perf_counter() - begun
    distance = distance_of_source(
        backbone, replace(source, entries=source.entries[:SAMPLED_IMAGES])
    )
    sample = Sample([str(e.label) for e in found.kept], features, distance, seconds)
    return sample, found.facts(source)


def _shorter_side(source: ImageSource) -> dict[str, int] | None:
    """Pixels of the images' shorter sides: least, median and greatest."""
    import numpy as np

    from extract.images import UnreadableImage, image_size

    sides = []
    for entry in source.entries[:HEADERS]:
        with suppress(OSError, UnreadableImage):
            sides.append(min(image_size(source.root / entry.path)))
    if not sides:
        return None
    least, median, greatest = np.quantile(sides, [0, 0.5, 1], method="inverted_cdf")
    return {"least": int(least), "median": int(median), "greatest": int(greatest)}
