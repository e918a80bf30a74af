"""Whether flips leave labels as they are, tried with the head that training starts from.

A mirrored cat is a cat, a mirrored digit is none. A head that has never seen a mirrored image
classifies it as well as the image itself where left and right mean nothing, and worse elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.files import Place
from extract.images import ImageRow, batched
from finetune.data import mirrored, pixels_of
from finetune.split import Resources
from finetune.starting_head import Features, by_path
from heads.head import Head

# Where there are fewer validation rows, the training rows of held-out folds are used.
MIN_VALIDATION_ROWS = 50
MAX_ROWS = 1_000  # a standard error of one per cent at 90 %


@dataclass(frozen=True)
class FlipTrial:
    """How well a head classifies held-out images and their mirror images.

    Attributes
    ----------
    flips : whether they are used: the mirrored accuracy is within a standard error of the other,
        or above it
    accuracy, mirrored_accuracy : of the images, and of their mirror images
    standard_error : of the difference, image by image
    images : how many
    held_out : ``validation images``, or ``training images of held-out folds``
    """

    flips: bool
    accuracy: float
    mirrored_accuracy: float
    standard_error: float
    images: int
    held_out: str

    @classmethod
    def of(
        cls, right: NDArray[np.bool_], mirrored_right: NDArray[np.bool_], held_out: str
    ) -> "FlipTrial":
        """Compare which of n images, and which mirror images, were classified correctly: (n,)."""
        lost = right.astype(float) - mirrored_right
        error = float(lost.std(ddof=1) / np.sqrt(len(lost)))
        return cls(
            bool(lost.mean() <= error),
            float(right.mean()),
            float(mirrored_right.mean()),
            error,
            len(lost),
            held_out,
        )

    @property
    def augment(self) -> str:
        """The augmentation that follows from it."""
        return "flip" if self.flips else "none"

    @property
    def summary(self) -> str:
        """The decision in words, with its figures."""
        return (
            f"flips are {'used' if self.flips else 'not used'}: of {self.images:,} "
            f"{self.held_out} the head classifies {self.accuracy:.1%} correctly, and "
            f"{self.mirrored_accuracy:.1%} when they are mirrored (standard error of the "
            f"difference {self.standard_error:.1%})"
        )


def try_flips(
    head: Head,
    backbone: Backbone,
    features: Features,
    training: Sequence[ImageRow],
    validation: Sequence[ImageRow],
    root: Place,
    resources: Resources,
) -> FlipTrial:
    """Let a head classify mirrored images, or its folds' heads where there are few validation rows.

    Parameters
    ----------
    head : ``starting_head`` of the training rows
    backbone : gives the features of mirrored images
    features : gives those of the images
    training, validation : labelled rows; the validation rows fitted nothing
    root : folder that the rows' paths are relative to
    resources : where and with what the backbone runs
    """
    few = len(validation) < MIN_VALIDATION_ROWS
    rows = by_path(training) if few else validation
    names, seen = np.array([str(row.label) for row in rows]), features([row.key for row in rows])
    tried = np.arange(len(rows))[:: -(-len(rows) // MAX_ROWS)]
    engine = resources.engine_of(backbone.module, backbone.preprocessing, backbone.identity)
    some = [rows[i] for i in tried]
    found = pixels_of(some, root, backbone.preprocessing, resources.max_image_mb)
    turned = batched((mirrored(one) for one in found), engine.batch_size)
    shown = seen[tried], np.concatenate(list(engine.run(turned)))
    # heads, and the rows that did not fit them
    fitted: Iterable[tuple[Any, NDArray[np.intp]]] = [(head, np.arange(len(rows)))]
    if few:
        assert head.held_out is not None, "a head that was just fitted"
        fitted = (
            (head.learner.fit(seen[fitting], names[fitting], head.c, jobs=1), rest)
            for fitting, rest in head.held_out.splits
        )
    right = np.zeros((2, len(tried)), dtype=np.bool_)
    for one, rest in fitted:
        here = np.isin(tried, rest)
        for told, given in zip(right, shown, strict=True):
            told[here] = one.predict(given[here]) == names[tried[here]]
    what = "training images of held-out folds" if few else "validation images"
    return FlipTrial.of(right[0], right[1], what)
