"""Training subsets of a comparison: nested, balanced, spaced evenly in the logarithm."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extract.images import ImageRow


def nested_subset(rows: Sequence[ImageRow], size: int, seed: int) -> list[ImageRow]:
    """Choose a stratified training subset; a smaller one of the same seed lies within it.

    Each class's rows are ordered by hash, one of each group before the second of any, and rows are
    taken in the order of (position in the class + 1/2) / size of the class, so that every prefix
    is balanced as the whole is, and has as many groups as it can.

    Parameters
    ----------
    rows : training rows
    size : how many are wanted; at least one of each class is given
    seed : another order
    """
    from extract.images import position, unit_of

    by_class: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        by_class[str(row.label)].append(row)
    ranked = []
    for label, members in sorted(by_class.items()):
        turns: Counter[str] = Counter()
        keyed = []
        for row in sorted(members, key=lambda row: position(seed, f"row:{row.key.hex()}")):
            unit = unit_of(row)
            keyed.append((turns[unit], position(seed, f"subset:{unit}"), row.path, row))
            turns[unit] += 1
        for place, (*_, row) in enumerate(sorted(keyed, key=lambda one: one[:3])):
            # the first two of every class come first: a class needs two to be fitted
            ranked.append(((place + 0.5) / len(members) if place > 1 else place - 2, label, row))
    ranked.sort(key=lambda entry: (entry[0], entry[1]))
    return [row for _, _, row in ranked[: max(size, 2 * len(by_class))]]
