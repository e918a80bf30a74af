"""Whether flips leave labels as they are, tried with the head that training starts from.

A mirrored cat is a cat, a mirrored digit is none. A head that has never seen a mirrored image
classifies it as well as the image itself where left and right mean nothing, and worse elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.backbones import Backbone
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
    ) -> FlipTrial:
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

    def as_dict(self) -> dict[str, Any]:
        """Turn into what JSON can hold."""
        return asdict(self)


def try_flips(
    head: Head,
    backbone: Backbone,
    features: Features,
    training: Sequence[ImageRow],
    validation: Sequence[ImageRow],
    root: Path,
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
    if len(validation) >= MIN_VALIDATION_ROWS:
        rows = validation[:: -(-len(validation) // MAX_ROWS)]
        names, seen = _names(rows), features([row.key for row in rows])
        of_mirrored = head.predict(_mirrored_features(backbone, rows, root, resources))
        right, mirrored_right = head.predict(seen) == names, of_mirrored == names
        return FlipTrial.of(right, mirrored_right, "validation images")
    assert head.held_out is not None, "a head that was just fitted"
    rows = by_path(training)
    names, seen = _names(rows), features([row.key for row in rows])
    tried = np.arange(len(rows))[:: -(-len(rows) // MAX_ROWS)]
    turned = _mirrored_features(backbone, [rows[i] for i in tried], root, resources)
    right, mirrored_right = np.zeros((2, len(tried)), dtype=np.bool_)
    learner = head.learner
    for fitting, rest in head.held_out.splits:
        fitted = learner.fit(seen[fitting], names[fitting], head.c, jobs=1)
        here = np.isin(tried, rest)
        right[here] = fitted.predict(seen[tried[here]]) == names[tried[here]]
        mirrored_right[here] = fitted.predict(turned[here]) == names[tried[here]]
    return FlipTrial.of(right, mirrored_right, "training images of held-out folds")


def _names(rows: Sequence[ImageRow]) -> NDArray[np.str_]:
    return np.array([str(row.label) for row in rows])


def _mirrored_features(
    backbone: Backbone, rows: Sequence[ImageRow], root: Path, resources: Resources
) -> NDArray[np.float32]:
    engine = resources.engine_of(backbone.module, backbone.preprocessing, backbone.identity)
    found = pixels_of(rows, root, backbone.preprocessing, resources.max_image_mb)
    turned = batched((mirrored(one) for one in found), engine.batch_size)
    return np.concatenate(list(engine.run(turned)))
