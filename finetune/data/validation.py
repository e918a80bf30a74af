"""Validation rows: a fifth of the training rows, set aside by hash before anything is fitted."""

from collections import defaultdict
from collections.abc import Sequence

from extract.errors import FxError
from extract.images import ImageRow, position, unit_of

VALIDATION_SHARE = 0.2
# A class with fewer training images gives none to validation: the head needs two to choose C.
SMALLEST_SHARED_CLASS = 3


def set_validation_aside(
    rows: Sequence[ImageRow], seed: int
) -> tuple[list[ImageRow], list[ImageRow]]:
    """Take a fifth of each class's units (groups, or images) for validation, by hash.

    Parameters
    ----------
    rows : training rows
    seed : draws another fifth

    Returns
    -------
    the rows that train, and those that choose

    Raises
    ------
    FxError
        If no class has three images of its own to share.
    """
    units: dict[str, set[str]] = defaultdict(set)
    classes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        units[str(row.label)].add(unit_of(row))
        classes[unit_of(row)].add(str(row.label))
    aside: set[str] = set()
    for label in sorted(units):
        # a salt: the same hash already chose the test rows
        ordered = sorted(units[label], key=lambda unit: position(seed, f"validation:{unit}"))
        wanted = max(1, round(VALIDATION_SHARE * len(ordered)))
        for unit in ordered:
            if len(units[label] & aside) >= wanted:
                break
            # a group may hold several classes: all of them must keep two units to be fitted
            if all(len(units[one] - aside) >= SMALLEST_SHARED_CLASS for one in classes[unit]):
                aside.add(unit)
    training = [row for row in rows if unit_of(row) not in aside]
    validation = [row for row in rows if unit_of(row) in aside]
    if not validation:
        raise FxError(
            f"too few images to fine-tune; got {len(rows)} training images in {len(units)} "
            f"classes, and no class has {SMALLEST_SHARED_CLASS} of different groups, of which one "
            "would choose the epoch; add images, or fit a head"
        )
    return training, validation
