"""What all cells of a comparison share, and the training subset of each: nested and balanced."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fx.options import Options, read_snapshot
from fx.output import Begin

if TYPE_CHECKING:
    from extract.images import ImageRow, Snapshot
    from extract.store import FeatureSet

AUTO = "auto"  # of the augmentation: still to be decided


@dataclass(frozen=True)
class ComparisonContext:
    """What all cells of a comparison share; it can be sent to another process.

    Attributes
    ----------
    options : of the network and the store, each of them said
    epochs : most epochs of a fine-tuning, None for the usual
    class_weight : ``balanced`` or None
    features : name of the feature set
    snapshot : name of the snapshot
    directory : of the comparison
    augment : of fine-tunings, once it has been decided
    """

    options: Options
    epochs: int | None
    class_weight: str | None
    features: str
    snapshot: str
    directory: Path
    augment: str = AUTO

    @property
    def cache(self) -> Path:
        """Folder of activations, which all cells share."""
        return self.directory / "cache"


@dataclass(frozen=True)
class DatasetSize:
    """How many images there are.

    Attributes
    ----------
    images : in all
    training, test, validation : of them; validation 0 where it is taken from the training rows
    classes : of their labels
    """

    images: int
    training: int
    test: int
    validation: int
    classes: int


@dataclass(frozen=True)
class OpenContext:
    """A context with its files open."""

    context: ComparisonContext
    features: FeatureSet
    snapshot: Snapshot
    begin: Begin


@dataclass(frozen=True)
class Subset:
    """Training rows of one cell.

    ``seed`` is that of the subset and of its fit; ``directory`` gets what the fit writes.
    """

    rows: list[ImageRow]
    seed: int
    directory: Path


def open_context(context: ComparisonContext, begin: Begin) -> OpenContext:
    """Open the store and read the snapshot."""
    from extract.store import FeatureStore

    store = FeatureStore(context.options.store)
    snapshot = read_snapshot(store, dataclasses.replace(context.options, snapshot=context.snapshot))
    return OpenContext(context, store.open_set(context.features), snapshot, begin)


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
