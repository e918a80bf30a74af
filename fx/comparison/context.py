"""What all cells of a comparison share, and the training subset of each: nested and balanced."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extract.images import ImageRow, NearCopies, Snapshot, group_numbers, position, unit_of
from extract.records import Record
from fx.options import Options, read_snapshot
from fx.output import Begin
from fx.stages.rows import labels_of, used_rows

if TYPE_CHECKING:
    from extract.store import FeatureSet

AUTO = "auto"  # of the augmentation: still to be decided
TIMED = 64  # test images whose prediction is timed


class NetworkCost(Record, frozen=True):
    """What a network takes: milliseconds for an image, decoding included, and bytes."""

    milliseconds: float
    bytes: int


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
    near_copies : images to fit on that are to stay together
    network : what the pretrained network takes, once it has been measured
    augment : of fine-tunings, once it has been decided
    folds : outer folds by which every image is a test image once; 1 for the snapshot's own split
    """

    options: Options
    epochs: int | None
    class_weight: str | None
    features: str
    snapshot: str
    directory: Path
    near_copies: NearCopies = dataclasses.field(default_factory=NearCopies)
    network: NetworkCost | None = None
    augment: str = AUTO
    folds: int = 1

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
    training, test, validation : of them in a fit; validation 0 where it is taken from the training
        rows
    classes : of their labels
    folds : outer folds, of which each is a fit
    """

    images: int
    training: int
    test: int
    validation: int
    classes: int
    folds: int = 1


@dataclass(frozen=True)
class OpenContext:
    """A context with its files open."""

    context: ComparisonContext
    features: FeatureSet
    snapshot: Snapshot
    begin: Begin

    @property
    def tested_rows(self) -> list[ImageRow]:
        """Rows that all cells are measured on, in the order of their probabilities."""
        return tested_rows(self.snapshot, self.context.folds)

    @property
    def trainable_rows(self) -> list[ImageRow]:
        """Rows that any cell may train on."""
        return used_rows(self.snapshot) if self.context.folds > 1 else self.snapshot.split("train")

    @property
    def training_rows(self) -> list[ImageRow]:
        """Rows to fit on, in groups that stay together, near-copies among them."""
        return self.context.near_copies.joined(self.snapshot.split("train"))

    def of_folds(self, seed: int) -> list[OpenContext]:
        """Split the images anew by outer folds: each is a test image in one of them.

        Groups and near-copies stay together.
        """
        from heads.fitting import make_folds

        rows = used_rows(self.snapshot)
        classes = self.snapshot.classes
        splits, _ = make_folds(
            np.array([classes.index(label) for label in labels_of(rows)]),
            classes=classes,
            folds=self.context.folds,
            groups=group_numbers(self.context.near_copies.joined(rows)),
            seed=seed,
        )
        found = []
        for _, held_out in splits:
            tested = {rows[place].path for place in held_out}
            split = tuple(
                dataclasses.replace(row, split="test" if row.path in tested else "train")
                if row.split
                else row
                for row in self.snapshot.rows
            )
            snapshot = dataclasses.replace(self.snapshot, rows=split)
            found.append(dataclasses.replace(self, snapshot=snapshot))
        return found


@dataclass(frozen=True)
class Subset:
    """Training rows of one cell.

    ``seed`` is that of the subset and of its fit; ``directory`` gets what the fit writes.
    """

    rows: list[ImageRow]
    seed: int
    directory: Path


def tested_rows(snapshot: Snapshot, folds: int) -> list[ImageRow]:
    """Test rows of a snapshot, or, with outer folds, all that are in a split."""
    return used_rows(snapshot) if folds > 1 else snapshot.split("test")


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
