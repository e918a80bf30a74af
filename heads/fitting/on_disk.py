"""Fitting a head on rows that are too many for memory."""

from dataclasses import replace
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from extract.errors import FxError
from heads.fitting.fit import fit_head
from heads.fitting.search import BLAS_THREADS
from heads.head import Head, checked_features
from heads.kinds import HEADS
from heads.learner import Labels, StreamingLearner
from heads.solver import RowsOnDisk

LEAST_OF_CLASS = 20  # rows of a class in the sample, as far as there are so many
# Rows that choose C and the temperature where no validation rows are given: this share of the
# sample's number, and at most this share of all.
ASIDE_OF_SAMPLE, ASIDE_OF_ALL = 0.25, 0.1

Rows = NDArray[np.intp]


def fit_head_on_disk(
    features: RowsOnDisk,
    labels: ArrayLike,
    *,
    sample_rows: int,
    kind: str,
    kernel: str = "rbf",
    groups: ArrayLike | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
    jobs: int | None = None,
    **choices: Any,
) -> tuple[Head, Rows, Rows]:
    """Fit a linear head on rows that are read chunk after chunk.

    Where no validation rows are given, a part of the rows, of whole groups, is set aside to be
    such. C and the normalisation are chosen on those by heads that are fitted on a sample which
    fits into memory: with a penalty on a sum over rows the best C hardly depends on their number.
    Then the rows are standardised in one pass, the head is fitted on all that are not set aside, in
    as many passes as the solver takes, beginning at the sample's head, and its temperature is
    fitted on the validation rows.

    Parameters
    ----------
    features : rows of shape (n, d)
    labels : str array of shape (n,)
    sample_rows : int, about how many rows choose; d + 1 at least do
    kind, kernel, groups, validation, seed, jobs : as in `fit_head`
    choices : what else `fit_head` takes

    Returns
    -------
    head : Head; in its `held_out`, rows are those of the sample, then the validation rows
    sample : int array, positions of the rows of the sample
    aside : int array, positions of the rows that were set aside; none where there are validation
        rows

    Raises
    ------
    FxError
        As `fit_head` does, and where the head is not linear: it needs all rows at once.
    """
    names = np.asarray(labels, dtype=str)
    n, d = features.shape
    if names.shape != (n,):
        raise ValueError(f"labels must have shape {(n,)}, got {names.shape}")
    if not can_stream(kind, kernel, n):
        raise FxError(
            f"{kind} needs the features of all {n:,} rows at once; fit logreg, or an SVM with "
            "`kernel=linearsvc`"
        )
    (kernel_of_all,), notes = HEADS[kind].kernels_for(kernel, n)
    y = np.unique(names, return_inverse=True)[1]
    aside = np.zeros(0, np.intp)
    if validation is None:
        count = int(min(ASIDE_OF_SAMPLE * sample_rows, ASIDE_OF_ALL * n))
        aside = _set_aside(y, count, groups, seed)
        validation = features[aside], names[aside]
    kept = np.setdiff1d(np.arange(n), aside)
    sample = kept[draw_sample(y[kept], max(sample_rows, d + 1), seed)]
    some = features[sample]
    head = fit_head(
        some,
        names[sample],
        kind=kind,
        kernel=kernel_of_all or kernel,
        validation=validation,
        seed=seed,
        jobs=jobs,
        **choices,
    )
    learner = head.learner
    assert isinstance(learner, StreamingLearner), "looked at above"
    with threadpool_limits(BLAS_THREADS):
        pipeline = learner.fit_on_disk(
            _Part(features, kept),
            y[kept],
            head.c,
            like=head.pipeline,
            sample=some,
            jobs=effective_n_jobs(-1 if jobs is None else jobs),
        )
    beside = np.shape(validation[1])[0]
    notes.append(
        f"features of {n:,} rows do not fit into memory: {len(sample):,} of them and {beside:,} "
        f"validation rows chose C; the head is fitted on {len(kept):,}, read again and again, and "
        "the validation rows gave its temperature"
    )
    fitted = replace(
        head,
        pipeline=learner.rebuild(learner.state(pipeline), head.classes, head.c),
        n_train=len(kept),
        notes=(*notes, *head.notes),
    )
    return _calibrated(fitted, validation[0]), sample, aside


def can_stream(kind: str, kernel: str, rows: int) -> bool:
    """Whether a head of so many rows is one that `fit_head_on_disk` fits; raises FxError."""
    machines = HEADS[kind]
    machines.learner(kernel=None if kernel == "auto" else kernel)
    kernels = machines.kernels_for(kernel if machines.kernels else None, rows)[0]
    return all(issubclass(machines.learners[one], StreamingLearner) for one in kernels)


def scores_on_disk(head: Head, features: RowsOnDisk) -> NDArray[np.float64]:
    """Score rows that are read chunk after chunk: float64 array of shape (n, k)."""
    scores = np.empty((features.shape[0], len(head.classes)))
    for chunk in features.chunks:
        scores[chunk] = head.scores(features[chunk])
    return scores


def draw_sample(labels: Labels, rows: int, seed: int) -> Rows:
    """Draw about so many rows, the same share of every class, in order: int array."""
    rank = np.random.default_rng(seed).permutation(len(labels))
    order = np.lexsort((rank, labels))
    counts = np.bincount(labels)
    share = min(1.0, rows / max(1, len(labels)))
    wanted = np.maximum(np.ceil(share * counts), np.minimum(LEAST_OF_CLASS, counts))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < wanted[labels[order]]])


def _set_aside(labels: Labels, rows: int, groups: ArrayLike | None, seed: int) -> Rows:
    """Draw about so many rows, of whole groups, and none of a class that would have none left."""
    member = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if len(np.unique(member)) > 1:
        share = GroupShuffleSplit(1, test_size=max(1, rows) / len(labels), random_state=seed)
        kept, aside = next(share.split(labels, groups=member))
        without = np.setdiff1d(labels, labels[kept])
        back = np.isin(member, member[np.isin(labels, without)])
        if not back[aside].all():
            return np.asarray(aside[~back[aside]])
    raise FxError("there are too few groups to set one aside; give validation rows")


def _calibrated(head: Head, features: ArrayLike) -> Head:
    """Fit the temperature of a head anew, on validation rows that were held out."""
    held_out = head.held_out
    assert held_out is not None, "of a head that was just fitted"
    scores, how = head.scores(features), head.class_weight
    weights = compute_sample_weight(how, held_out.labels) if how else None
    calibration = head.learner.calibrate(scores, held_out.labels, weights)
    probabilities = softmax(scores / calibration.temperature, axis=1)
    return replace(
        head, calibration=calibration, held_out=replace(held_out, probabilities=probabilities)
    )


class _Part:
    """Some of the rows on a disk, numbered anew, and refused where they are not finite."""

    def __init__(self, rows: RowsOnDisk, kept: Rows) -> None:
        number = np.full(rows.shape[0], -1)
        number[kept] = np.arange(len(kept))
        chunks = (number[chunk] for chunk in rows.chunks)
        self.chunks = [left for chunk in chunks if len(left := chunk[chunk >= 0])]
        self.rows, self.kept, self.shape = rows, kept, (len(kept), rows.shape[1])

    def __getitem__(self, positions: Rows) -> NDArray[np.float32]:
        return checked_features(self.rows[self.kept[positions]])
