"""The rule of thumb that everybody is taught, and whether the measurement agrees with it.

Few or many images, like those that the network was trained on or not: four quadrants, each with a
strategy (as in A. Karpathy, "Transfer learning", notes to CS231n, Stanford). Neither border is in
the rule; those that are used here are said wherever a quadrant is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.comparison.verdict import kind_of
from heads.kinds import KINDS

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.images import ImageSource, Snapshot

MANY = 2_000  # training images
ALIKE = 0.5  # of ``extract.domain_shift``
SAMPLED_IMAGES = 64  # training images whose domain_distance is measured

_RULES = {
    (False, True): ("head", "a linear classifier on frozen features"),
    (False, False): ("head", "a classifier on frozen features, best of an earlier layer"),
    (True, True): ("network", "fine-tuning"),
    (True, False): ("network", "fine-tuning all of it, or training from scratch"),
}


def quadrant_of(
    backbone: Backbone, snapshot: Snapshot, recommended: str, max_image_mb: int
) -> dict[str, Any]:
    """Name the quadrant, what the rule says there, and whether the measurement agrees.

    Parameters
    ----------
    backbone : with its trained weights
    snapshot : of the images
    recommended : strategy that the measurement recommends
    max_image_mb : 2**20 bytes that an image may take as 8-bit RGB

    Returns
    -------
    dict that JSON can hold: ``many``, ``alike`` (None where it cannot be told), ``distance`` (see
    ``extract.domain_shift``), ``rule``, ``agrees`` and ``said``, a sentence or two
    """
    from extract.images import ImageEntry, ImageSource

    train = snapshot.split("train")
    # keys are hashes: the first of them are a sample, and the same one every time
    some = sorted(train, key=lambda row: row.key)[:SAMPLED_IMAGES]
    entries = tuple(ImageEntry(row.path, None, None, None) for row in some)
    source = ImageSource(Path(snapshot.root), "unlabelled", entries, (), max_image_mb)
    return describe_quadrant(len(train), distance_of_source(backbone, source), recommended)


def distance_of_source(backbone: Backbone, source: ImageSource) -> float | None:
    """Distance of images from those that the network was trained on; see ``extract.domain_shift``.

    They are seen at the size at which the network's statistics were taken.
    """
    from extract.domain_shift import domain_distance
    from extract.images import batched, load_images

    loaded = load_images(source, backbone.preprocessing.at_size(backbone.trained_size))
    pixels = (one.pixels for one in loaded if one.pixels is not None)
    return domain_distance(backbone, batched(pixels, 32))


def describe_quadrant(
    n_train: int, distance: float | None, recommended: str | None
) -> dict[str, Any]:
    """Name the quadrant of a data set; see ``quadrant_of``."""
    many = n_train >= MANY
    alike = None if distance is None else distance <= ALIKE
    # unlike ones do not change which family the rule names
    family, rule = _RULES[many, alike is not False]
    size = f"{'many' if many else 'few'} images ({n_train:,}; many from {MANY:,})"
    if distance is None:
        like = "how like they are to the network's own cannot be told (it has no batch norm)"
    else:
        like = (
            f"{'like' if alike else 'unlike'} those that the network was trained on "
            f"(distance {distance:.2f}; unlike above {ALIKE})"
        )
    said = f"By the rule of thumb: {size}, {like}: {rule}."
    agrees = None
    if recommended is not None:
        kind = kind_of(recommended)
        agrees = (kind in KINDS) == (family == "head")
        said += (
            " The measurement agrees." if agrees else f" The measurement contradicts it: {kind}."
        )
    return {
        "many": many,
        "alike": alike,
        "distance": distance,
        "rule": rule,
        "agrees": agrees,
        "said": said,
    }
