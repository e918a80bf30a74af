"""Folds: every class is among the fitting rows of each, and no group is on both of its sides."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold, StratifiedKFold

from extract.errors import FxError
from heads.learner import Fold

MAX_SHUFFLES = 10  # tried in turn where a grouped split leaves a class out of a training side
LEAVE_ONE_OUT_MAX = 30  # images (or groups), below which each may have a fold of its own
SMALL_GROUP = 0.02  # share of the rows up to which groups are dealt out like single images


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
    folds : int, how many; fewer where a class has fewer images (or groups) than that, and
        leave-one-out where there are few of all
    groups : array of shape (n,), optional; rows of one value stay together
    seed : int, of the shuffling

    Returns
    -------
    splits : list of (fitting rows, held-out rows), int arrays
    notes : list of str, why there are fewer folds than asked for, if there are

    Raises
    ------
    FxError
        Where a class has a single image, or a single group, so that it cannot be on both sides,
        or groups are not one a row.
    """
    units = "images" if groups is None else "groups"
    unit = np.arange(len(labels)) if groups is None else _numbered(groups)
    if unit.shape != labels.shape:
        raise FxError(f"groups must be one a row, {len(labels):,}; got {unit.shape}")
    # images, or distinct groups
    pairs = np.unique(np.stack([labels, unit]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(classes))
    rarest = int(counts.argmin())
    why = f"class {classes[rarest]!r} has {counts[rarest]} training {units}"
    if counts[rarest] < 2:
        raise FxError(
            f"class {classes[rarest]!r} cannot be cross-validated; got 1 of its training {units}; "
            f"add {units} of it, leave the class out, or give validation rows"
        )
    most = min(folds, int(counts[rarest]))
    if most < folds and unit.max() < LEAVE_ONE_OUT_MAX:
        each = list(LeaveOneGroupOut().split(labels, labels, unit))
        if all(_is_complete(labels, split) for split in each):
            return each, [f"leave-one-out instead of {folds} folds: {why}"]
    splits = _deal_out(labels, unit, most, seed)
    if len(splits) < most:
        why = "more would leave a class without fitting rows"
    return splits, [f"{len(splits)} folds instead of {folds}: {why}"] * (len(splits) < folds)


def _deal_out(
    labels: NDArray[np.intp], unit: NDArray[np.intp], folds: int, seed: int
) -> list[Fold]:
    """Split into so many folds, or, of few groups, into as many as leave every class complete."""
    first, sizes = np.unique(unit, return_index=True, return_counts=True)[1:]
    fewest = np.bincount(labels[first], minlength=int(labels.max()) + 1).min()
    if sizes.max() <= max(1, SMALL_GROUP * len(labels)) and fewest >= folds:
        # scikit-learn deals groups out one by one, which takes 7 s for 20,000 of them
        dealer = StratifiedKFold(folds, shuffle=True, random_state=seed)
        parts = [np.isin(unit, held_out) for _, held_out in dealer.split(first, labels[first])]
        splits = [(np.flatnonzero(~part), np.flatnonzero(part)) for part in parts]
        if all(_is_complete(labels, split) for split in splits):
            return splits
    for count in range(folds, 1, -1):
        for shuffle in range(MAX_SHUFFLES):
            grouped = StratifiedGroupKFold(count, shuffle=True, random_state=seed + shuffle)
            splits = list(grouped.split(labels, labels, unit))
            if all(_is_complete(labels, split) for split in splits):
                return splits
    raise FxError(
        "no grouped split keeps every class among the fitting rows; got "
        f"{len(first)} groups; add groups of the rarest class, or give validation rows"
    )


def _numbered(groups: ArrayLike) -> NDArray[np.intp]:
    """Number groups from 0, as they come: by any names the folds are the same."""
    first, numbers = np.unique(np.asarray(groups), return_index=True, return_inverse=True)[1:]
    return np.argsort(np.argsort(first))[numbers]


def _is_complete(labels: NDArray[np.intp], split: Fold) -> bool:
    """Whether the fitting side has every class, and the other side any row."""
    fitting, held_out = split
    return len(held_out) > 0 and len(np.unique(labels[fitting])) == len(np.unique(labels))
