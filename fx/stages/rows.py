"""Rows of a snapshot as heads and networks take them: keys, labels, and what belongs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from extract.errors import FxError, listed
from extract.files import place
from extract.images import ImageRow, NearCopies, Snapshot, units_of_classes
from fx.options import NEAR_COPIES

if TYPE_CHECKING:
    from extract.store import FeatureSet
    from finetune.finetuning import TrainingData


# Below so many labelled images without a given test split, outer folds measure instead of one.
FEW = 1_000
LEAST_TRAINING = 2  # images, or groups, of a class: the folds of cross-validation need two


def needs_folds(snapshot: Snapshot) -> bool:
    """Whether there are so few images that one split of them would say little.

    A test or validation split of the user's own is used as it is.
    """
    few = len(snapshot.split("train")) + len(snapshot.split("test")) < FEW
    return few and not snapshot.split("val") and not snapshot.test_was_given


def folds_of(snapshot: Snapshot) -> int:
    """Decide by how many outer folds to measure; 1 for the snapshot's own split."""
    from heads.fitting import MIN_PER_CLASS, OUTER_FOLDS

    rarest = min(units_of_classes(used_rows(snapshot)).values(), default=0)
    return OUTER_FOLDS if needs_folds(snapshot) and rarest >= MIN_PER_CLASS else 1


def check_labelled(snapshot: Snapshot) -> None:
    """Refuse a snapshot from which nothing can be learned or measured.

    Raises
    ------
    FxError
        If it has fewer than two classes, no training or test rows, or a class with fewer than two
        images (or groups) to train on.
    """
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
                "give each class at least three images (where there are groups, of three of them)"
            )
    if folds_of(snapshot) > 1:
        return
    training = snapshot.split("train")
    units = units_of_classes(training)
    if snapshot.split("val"):
        # which stand in the place of folds: groups need not be told apart
        units = Counter(labels_of(training))
    few = [label for label in classes if units[label] < LEAST_TRAINING]
    if few:
        more = f", and {len(few) - 1:,} other classes have as few" if few[1:] else ""
        elsewhere = units_of_classes(used_rows(snapshot))[few[0]] >= LEAST_TRAINING
        raise FxError(
            f"class {few[0]!r} has too few images to train on: {_places_of(snapshot, few[0])}{more}"
            f"; {LEAST_TRAINING} are needed, of different groups; add images, or "
            + (
                "move some of the others to training"
                if elsewhere
                else "leave small classes out with fx extract --min-images"
            )
        )


def _places_of(snapshot: Snapshot, label: str) -> str:
    """Say where the images of a class are: in which splits, and in none for which reasons."""
    rows = [row for row in snapshot.rows if row.label == label]
    places = Counter(row.split or why_in_none(row) for row in rows)
    groups = len({row.group for row in rows if row.split == "train"})
    said = [f"{places.pop(split, 0):,} {split}" for split in ("train", "val", "test")]
    said[0] += " of one group" if groups == 1 and not said[0].startswith("1 ") else ""
    said += [f"{count:,} {place}" for place, count in places.most_common()]
    return ", ".join(one for one in said if not one.startswith("0 ") or one == said[0])


def why_in_none(row: ImageRow) -> str:
    """Say why an image is in no split."""
    if not row.readable:
        return "unreadable"
    return "copy of another" if row.note.startswith("copy of") else row.note or "without a label"


def notes_on_untested(classes: Sequence[str], tested: Sequence[ImageRow]) -> list[str]:
    """Name the classes without a test image, of which no figure says anything."""
    have = set(labels_of(tested))
    if not (some := listed(repr(label) for label in classes if label not in have)):
        return []
    return [f"no test image is of {some}: the figures say nothing of such classes"]


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
    return TrainingData(place(snapshot.root), rows, validation, test, snapshot.fingerprint)


def near_copies_among(
    rows: Sequence[ImageRow], features: FeatureSet, mode: str
) -> tuple[NearCopies, list[str]]:
    """Find the near-copies among rows that are to stay together; say what was found.

    Parameters
    ----------
    rows : labelled rows that a model may be fitted on
    features : with their perceptual hashes
    mode : a name of ``fx.options.NEAR_COPIES``

    Raises
    ------
    FxError
        If it is none.
    """
    if mode not in NEAR_COPIES:
        raise FxError(f"`near_copies` must be one of {', '.join(NEAR_COPIES)}; got {mode!r}")
    if mode == "ignore":
        return NearCopies(), []
    found = NearCopies.among(rows, features.hashes(keys_of(rows)))
    if not found.images:
        return found, []
    said = f"{found.images:,} of {len(rows):,} images to fit on are near-copies of others"
    if mode == "warn":
        return NearCopies(), [f"{said}, which may be in other folds: figures may be too good"]
    notes = [f"{said}; those stay in one fold"] if found.groups else []
    if found.apart:
        notes.append(
            f"near-copies of {listed(map(repr, found.apart))} do not stay in one fold: they are "
            "most of the images, so that too few groups would be left"
        )
    return found, notes
