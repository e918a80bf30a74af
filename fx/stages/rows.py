"""Rows of a snapshot as heads and networks take them: keys, labels, and what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract.images import ImageRow, Snapshot
    from finetune.finetuning import TrainingData


# Below so many labelled images without a given test split, outer folds measure instead of one.
FEW = 1_000


def needs_folds(snapshot: Snapshot) -> bool:
    """Whether there are so few images that one split of them would say little.

    A test or validation split of the user's own is used as it is.
    """
    few = len(snapshot.split("train")) + len(snapshot.split("test")) < FEW
    return few and not snapshot.split("val") and not snapshot.test_was_given


def check_labelled(snapshot: Snapshot) -> None:
    """Refuse a snapshot from which nothing can be learned or measured.

    Raises
    ------
    FxError
        If it has fewer than two classes, or no training or test rows.
    """
    from extract.errors import FxError

    classes = snapshot.classes
    if not classes:
        raise FxError(
            f"no labelled images in snapshot {snapshot.name}; lay them out as one folder a class, "
            "then fx extract"
        )
    if len(classes) == 1:
        raise FxError(
            f"snapshot {snapshot.name} has one class, {classes[0]!r}; a classifier needs two"
        )
    for split in ("train", "test"):
        if not snapshot.split(split):
            raise FxError(
                f"snapshot {snapshot.name} has no {split} rows; "
                "give each class at least three images"
            )


def keys_of(rows: Sequence[ImageRow]) -> list[bytes]:
    """Keys of rows."""
    return [row.key for row in rows]


def used_rows(snapshot: Snapshot) -> list[ImageRow]:
    """Rows of a snapshot that are in a split."""
    return [row for row in snapshot.rows if row.split]


def labels_of(rows: Sequence[ImageRow]) -> list[str]:
    """Labels of rows that have one."""
    return [str(row.label) for row in rows]


def training_data(snapshot: Snapshot, rows: Sequence[ImageRow]) -> TrainingData:
    """Training rows, with the snapshot's that choose and measure, as a network takes them."""
    from finetune.finetuning import TrainingData

    validation, test = snapshot.split("val"), snapshot.split("test")
    return TrainingData(Path(snapshot.root), rows, validation, test, snapshot.fingerprint)


def given_groups(rows: Sequence[ImageRow]) -> NDArray[np.intp] | None:
    """Number the groups that rows were given with, from 0; None where every row stands alone."""
    import numpy as np

    from extract.images import unit_of

    groups = np.unique([unit_of(row) for row in rows], return_inverse=True)[1]
    return groups if len(groups) and groups.max() + 1 < len(rows) else None


def groups_of(rows: Sequence[ImageRow], hashes: NDArray[np.uint8]) -> NDArray[np.intp] | None:
    """Number what must not be torn apart in cross-validation: groups, and near-copies.

    Parameters
    ----------
    rows : n rows of a snapshot
    hashes : uint8 array of shape (n, 32), their perceptual hashes

    Returns
    -------
    int array of shape (n,), or None where every row stands alone
    """
    import numpy as np

    from extract.images import near_copy_groups, unit_of

    unit = np.unique([unit_of(row) for row in rows], return_inverse=True)[1]
    groups = near_copy_groups(hashes, unit)
    return groups if len(np.unique(groups)) < len(rows) else None
