"""Stage two as the command runs it: a head on stored features, measured, kept with its plots."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from extract.files import check_room, kept_at, write_whole
from extract.images import ImageRow, Snapshot, group_numbers
from extract.store import FeatureSet, FeatureStore
from fx.options import Options, choose_sets, read_snapshot
from fx.output import Begin
from fx.runs import Run
from fx.stages.card import CARD, data_used, model_card
from fx.stages.memory import free_memory
from fx.stages.records import DoubtfulLabels, HeadResult, NetworkUsed
from fx.stages.rows import (
    check_labelled,
    folds_of,
    keys_of,
    labels_of,
    near_copies_among,
    needs_folds,
    notes_on_untested,
)
from heads.doubts import doubt_labels
from heads.evaluation import Evaluation
from heads.files import save_head
from heads.fitting import (
    can_stream,
    fit_head,
    fit_head_on_disk,
    measure_by_resampling,
    scores_on_disk,
)
from heads.head import Head, Source
from heads.kinds import HEADS
from heads.limits import Limits
from heads.plots import write_plots

# Share of the free memory that features may take, with the copies that a search makes of them: some
# of all, and some for each fold that is fitted beside others.
MEMORY_SHARE, COPIES, COPIES_OF_FOLD = 0.8, 2, 4
AUDIT_VERSION = 3  # raised when the same head comes to doubt other labels


@dataclass(frozen=True)
class _Stored:
    """A snapshot and stored features of its images, those of several sets side by side."""

    store: FeatureStore
    sets: Sequence[FeatureSet]
    snapshot: Snapshot

    def features(self, rows: Sequence[ImageRow]) -> NDArray[np.float32]:
        """Features of rows, float32 array of shape (n, d)."""
        keys = keys_of(rows)
        return np.concatenate([one.features(keys) for one in self.sets], axis=1)

    def rows_in_memory(self, folds: int) -> int:
        """How many rows a head can be fitted on in memory; of joined sets all must fit."""
        if len(self.sets) > 1:
            return sys.maxsize
        copies = COPIES + COPIES_OF_FOLD * min(folds, cpu_count())
        return int(MEMORY_SHARE * free_memory() / (4 * self.sets[0].dim * copies))

    def tested(self, head: Head, rows: Sequence[ImageRow]) -> Head:
        """Measure a head on test rows."""
        labels, groups = labels_of(rows), group_numbers(rows)
        if len(rows) <= self.rows_in_memory(1):
            return head.tested(self.features(rows), labels, groups=groups)
        scores = scores_on_disk(head, self.sets[0].on_disk(keys_of(rows)))
        return head.measured(scores, labels, groups=groups)

    @property
    def backbone(self) -> str:
        """The networks' names."""
        return "+".join(dict.fromkeys(one.spec.backbone for one in self.sets))

    @property
    def spec(self) -> dict[str, Any]:
        """What the features mean."""
        specs = [one.spec.to_dict() for one in self.sets]
        return specs[0] if len(specs) == 1 else {"features": specs}

    @property
    def networks(self) -> tuple[NetworkUsed, ...]:
        """What made the features."""
        return tuple(
            NetworkUsed(
                one.spec.backbone, one.weights_source, one.spec.size, one.spec.layer, one.spec.crops
            )
            for one in self.sets
        )

    @property
    def source(self) -> Source:
        """How to compute such features anew."""
        weights = tuple(one.weights_source for one in self.sets)
        return Source(weights, self.snapshot.name, self.snapshot.fingerprint)


def fit_head_on_store(
    kind: str,
    options: Options,
    *,
    kernel: str = "rbf",
    normalize: str = "standard",
    class_weight: str | None = None,
    c: float | None = None,
    folds: int = 5,
    audit: bool = False,
    begin: Begin,
) -> HeadResult:
    """Fit a head on stored features and measure it on rows that chose nothing.

    Those are the test rows. Where there are few labelled images and the test split was not the
    user's, they are the held-out rows of repeated outer folds, and the head is fitted on all.

    Parameters are those of ``heads.fit_head``; ``options.features`` names several sets that are
    joined; ``audit`` lists the images whose labels are the most doubtful. Where there are
    validation rows, those alone are audited: only they were held out.

    Raises
    ------
    CannotWrite
        If there is no room for the head, or nothing can be written there.
    FxError
        If there is no store, too little that is labelled, or features are missing.
    """
    choices: dict[str, Any] = {
        "kind": kind,
        "kernel": kernel if HEADS[kind].kernels else None,
        "normalize": normalize,
        "class_weight": class_weight,
        "c": c and float(c),
        "folds": folds,
    }
    store = FeatureStore(options.store)
    stored = _Stored(store, choose_sets(store, options), read_snapshot(store, options))
    check_labelled(stored.snapshot)
    run = Run.of(
        options.out,
        f"{kind}-{stored.backbone}",
        stored.snapshot,
        stored.sets,
        **choices,
        seed=options.seed,
        near_copies=options.near_copies,
        # a number, since results of earlier audits say something else
        audit=AUDIT_VERSION if audit else None,
    )
    if options.fresh:
        run.forget()
    if run.finished:
        return run.result(HeadResult)
    begun = time.perf_counter()
    train, by_folds, notes = _rows_to_fit(stored, options.near_copies)
    # before the head is fitted, which may take hours
    check_room(run.directory, Limits.least_bytes(len(train), sum(one.dim for one in stored.sets)))
    validation, test = stored.snapshot.split("val"), stored.snapshot.split("test")
    metrics: Evaluation | None = None
    if by_folds:
        metrics = measure_by_resampling(
            stored.features(train),
            labels_of(train),
            groups=group_numbers(train),
            seed=options.seed,
            progress=begin("measuring on outer folds"),
            **choices,
        )
    head, rows, features = _fitted(
        stored,
        train,
        validation,
        seed=options.seed,
        progress=begin(f"choosing among heads: {kind}"),
        **choices,
    )
    if metrics is None:
        head = stored.tested(head, test)
    else:
        head = dataclasses.replace(head, metrics=metrics)
    head = dataclasses.replace(head, notes=(*notes, *head.notes))
    _keep(head, stored, run.directory, features, group_numbers(rows))
    seconds = time.perf_counter() - begun
    doubtful: DoubtfulLabels | UnsetType = UNSET
    if audit:
        # which loads what writes pages
        from fx.stages.doubtful_labels import write_doubtful_labels

        doubtful = write_doubtful_labels(
            run.directory,
            doubt_labels(head, features, labels_of(rows)),
            rows,
            stored.snapshot,
            head.classes,
        )
    assert head.metrics is not None, "measured just now"
    result = HeadResult(
        head=run.directory.name,
        kind=head.kind,
        kernel=head.kernel,
        normalize=head.normalize,
        path=kept_at(run.directory),
        backbone=stored.backbone,
        snapshot=stored.snapshot.name,
        classes=head.classes,
        n_train=head.n_train,
        n_validation=len(validation),
        evaluation=head.metrics,
        c=head.c,
        notes=head.notes,
        seconds=seconds,
        calibration=head.calibration,
        networks=stored.networks,
        data=data_used(stored.snapshot),
        audit=doubtful,
    )
    write_whole(run.directory / CARD, model_card(result))
    run.finish(result)
    return result


def _rows_to_fit(stored: _Stored, near_copies: str) -> tuple[list[ImageRow], bool, list[str]]:
    """Give the rows to fit on, whether outer folds of them measure, and notes on both."""
    snapshot, notes = stored.snapshot, list[str]()
    train, test = snapshot.split("train"), snapshot.split("test")
    by_folds = folds_of(snapshot) > 1
    if by_folds:
        train += test
    elif needs_folds(snapshot):
        notes.append(
            f"one split of {len(test)} test images says little, but a class has too few images "
            "for outer folds"
        )
    notes += [] if by_folds else notes_on_untested(snapshot.classes, test)
    found, said = near_copies_among(train, stored.sets[0], near_copies)
    return found.joined(train), by_folds, notes + said


def _fitted(
    stored: _Stored, train: Sequence[ImageRow], validation: Sequence[ImageRow], **choices: Any
) -> tuple[Head, list[ImageRow], NDArray[np.float32]]:
    """Fit a head; give it, the rows that it was chosen on, and their features."""
    choices |= {"spec": stored.spec, "source": stored.source}
    labels, groups, n = labels_of(train), group_numbers(train), len(train)
    most = stored.rows_in_memory(choices["folds"])
    if n + len(validation) <= most or not can_stream(choices["kind"], choices["kernel"], n):
        rows = [*train, *validation]
        features = stored.features(rows)
        if validation:
            choices["validation"] = features[n:], labels_of(validation)
        return fit_head(features[:n], labels, groups=groups, **choices), rows, features
    some = np.random.default_rng(choices["seed"]).permutation(len(validation))[: most // 5]
    if beside := [validation[at] for at in some]:
        choices["validation"] = stored.features(beside), labels_of(beside)
    on_disk = stored.sets[0].on_disk(keys_of(train))
    head, sample, aside = fit_head_on_disk(
        on_disk, labels, sample_rows=most - len(beside), groups=groups, **choices
    )
    rows = [*(train[at] for at in sample), *(beside or [train[at] for at in aside])]
    return head, rows, stored.features(rows)


def _keep(
    head: Head,
    stored: _Stored,
    directory: Path,
    features: NDArray[np.float32],
    groups: NDArray[np.intp] | None,
) -> None:
    save_head(head, directory)
    assert head.held_out is not None, "a head that was just fitted"
    Limits.of(features, head.held_out, groups=groups).save(directory)
    write_plots(head, directory)
    if network := stored.sets[0].spec.network:
        # predictions need the very network that made the features
        stored.store.read_network(network).write(directory)
