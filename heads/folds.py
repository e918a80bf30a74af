"""Folds: every class is among the fitting rows of each, and no group is on both of its sides."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from extract.errors import FxError

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]  # rows that fit, rows that are held out

SHUFFLES = 10  # tried in turn where a grouped split leaves a class out of a training side


def make_folds(
    labels: NDArray[np.intp],
    *,
    classes: Sequence[str],
    folds: int,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[list[Fold], list[str]]:
    """Split rows into stratified folds; with `groups`, no group stands on both sides of one.

    Parameters
    ----------
    labels : int array of shape (n,), positions in `classes`, each class present
    classes : names of the classes, for what is said
    folds : int, how many; fewer where a class has fewer images (or groups) than that
    groups : array of shape (n,), optional; rows of one value stay together
    seed : int, of the shuffling

    Returns
    -------
    splits : list of (fitting rows, held-out rows), int arrays
    notes : list of str, why there are fewer folds than asked for, if there are

    Raises
    ------
    FxError
        Where a class has a single image, or a single group, so that it cannot be on both sides.
    """
    units = "images" if groups is None else "groups"
    counts = _units_per_class(labels, len(classes), groups)
    rarest = int(counts.argmin())
    if counts[rarest] < 2:
        raise FxError(
            f"class {classes[rarest]!r} cannot be cross-validated; got 1 of its training {units}; "
            f"add {units} of it, leave the class out, or give validation rows"
        )
    notes = []
    most = min(folds, int(counts[rarest]))
    if most < folds:
        notes.append(
            f"{most} folds instead of {folds}: class {classes[rarest]!r} has {counts[rarest]} "
            f"training {units}"
        )
    if groups is None:
        splitter = StratifiedKFold(most, shuffle=True, random_state=seed)
        return list(splitter.split(labels, labels)), notes
    for count in range(most, 1, -1):
        for shuffle in range(SHUFFLES):
            grouped = StratifiedGroupKFold(count, shuffle=True, random_state=seed + shuffle)
            splits = list(grouped.split(labels, labels, np.asarray(groups)))
            if all(_is_complete(labels, split) for split in splits):
                if count < most:
                    notes.append(f"{count} folds: more would leave a class without fitting rows")
                return splits, notes
    raise FxError(
        "no grouped split keeps every class among the fitting rows; got "
        f"{len(np.unique(np.asarray(groups)))} groups; add groups of class {classes[rarest]!r}, or "
        "give validation rows"
    )


def _units_per_class(
    labels: NDArray[np.intp], k: int, groups: ArrayLike | None
) -> NDArray[np.intp]:
    """Count images, or distinct groups, of every class: an int array of shape (k,)."""
    if groups is None:
        return np.bincount(labels, minlength=k)
    member: NDArray[Any] = np.unique(np.asarray(groups), return_inverse=True)[1]
    pairs = np.unique(np.stack([labels, member]), axis=1)
    return np.bincount(pairs[0], minlength=k)


def _is_complete(labels: NDArray[np.intp], split: Fold) -> bool:
    """Whether the fitting side has every class, and the other side any row."""
    fitting, held_out = split
    return len(held_out) > 0 and len(np.unique(labels[fitting])) == len(np.unique(labels))
