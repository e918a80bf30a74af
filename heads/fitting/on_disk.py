"""Fitting a head on rows that are too many for memory."""

from dataclasses import replace
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from extract.errors import FxError
from heads.fitting.fit import fit_head
from heads.fitting.search import BLAS_THREADS
from heads.head import Head, checked_features
from heads.kinds import HEADS
from heads.learner import Labels
from heads.solver import RowsOnDisk

LEAST_OF_CLASS = 20  # rows of a class in the sample, as far as there are so many


def fit_head_on_disk(
    features: RowsOnDisk,
    labels: ArrayLike,
    *,
    sample_rows: int,
    kind: str,
    groups: ArrayLike | None = None,
    seed: int = 0,
    jobs: int | None = None,
    **choices: Any,
) -> tuple[Head, NDArray[np.intp]]:
    """Fit a linear head on rows that are read chunk after chunk.

    C, the normalisation and the temperature are chosen on a sample that fits into memory, as
    `fit_head` chooses them: with a penalty on a sum over rows, the best C hardly depends on their
    number. Then the rows are standardised in one pass, and the head is fitted on all of them in as
    many passes as the solver takes, beginning at the sample's head.

    Parameters
    ----------
    features : rows of shape (n, d)
    labels : str array of shape (n,)
    sample_rows : int, about how many rows of every class together choose; at least d
    kind, groups, seed, jobs : as in `fit_head`
    choices : what else `fit_head` takes

    Returns
    -------
    head : Head; what was held out are rows of the sample
    sample : int array of shape (m,), positions of the rows that chose

    Raises
    ------
    FxError
        As `fit_head` does, and where the head is not linear: it needs all rows at once.
    """
    names = np.asarray(labels, dtype=str)
    n, d = features.shape
    if names.shape != (n,):
        raise ValueError(f"labels must have shape {(n,)}, got {names.shape}")
    if not can_stream(kind, choices.get("kernel"), n):
        raise FxError(
            f"{kind} needs the features of all {n:,} rows at once; fit logreg, or an SVM with "
            "`kernel=linear`"
        )
    (choices["kernel"],), notes = HEADS[kind].kernels_for(choices.get("kernel"), n)
    y = np.unique(names, return_inverse=True)[1]
    sample = draw_sample(y, max(sample_rows, d + 1), groups, seed)
    some = checked_features(features[sample])
    head = fit_head(
        some,
        names[sample],
        kind=kind,
        groups=None if groups is None else np.asarray(groups)[sample],
        seed=seed,
        jobs=jobs,
        **choices,
    )
    learner = head.learner
    with threadpool_limits(BLAS_THREADS):
        pipeline = learner.fit_on_disk(
            _Checked(features), y, head.c, like=head.pipeline, sample=some, jobs=jobs or cpu_count()
        )
    notes.append(
        f"{n:,} rows of {d:,} features do not fit into memory: C and temperature were chosen on "
        f"{len(sample):,} of them, and the head is fitted on all, read again and again"
    )
    fitted = learner.rebuild(learner.state(pipeline), head.classes, head.c)
    return replace(head, pipeline=fitted, n_train=n, notes=(*notes, *head.notes)), sample


def can_stream(kind: str, kernel: str | None, rows: int) -> bool:
    """Whether a head of so many rows is one that `fit_head_on_disk` fits."""
    machines = HEADS[kind]
    kernels = machines.kernels_for(kernel if machines.kernels else None, rows)[0]
    return all(machines.learners[one].streams for one in kernels)


def scores_on_disk(head: Head, features: RowsOnDisk) -> NDArray[np.float64]:
    """Score rows that are read chunk after chunk: float64 array of shape (n, k)."""
    scores = np.empty((features.shape[0], len(head.classes)))
    for chunk in features.chunks:
        scores[chunk] = head.scores(features[chunk])
    return scores


def draw_sample(labels: Labels, rows: int, groups: ArrayLike | None, seed: int) -> NDArray[np.intp]:
    """Draw so many rows, about, whole groups first, the same share of every class; in order."""
    rng = np.random.default_rng(seed)
    unit = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    rank = rng.permutation(unit.max() + 1)[unit]
    order = np.lexsort((rank, labels))
    counts = np.bincount(labels)
    share = min(1.0, rows / len(labels))
    wanted = np.maximum(np.ceil(share * counts), np.minimum(LEAST_OF_CLASS, counts))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < wanted[labels[order]]])


class _Checked:
    """Rows on a disk, refused where they are not finite."""

    def __init__(self, rows: RowsOnDisk) -> None:
        self.rows, self.shape, self.chunks = rows, rows.shape, rows.chunks

    def __getitem__(self, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        return checked_features(self.rows[positions])
