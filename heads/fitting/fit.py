"""Fitting a head: folds, choice of C, calibration, refit; the training rows alone decide."""

from typing import Any

import numpy as np
from joblib import cpu_count, effective_n_jobs
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from extract.errors import FxError
from heads.calibration import Calibration
from heads.fitting.folds import make_folds
from heads.fitting.search import BLAS_THREADS, Progress, Search, search
from heads.head import Head, OutOfFoldPredictions, Source, checked_features, positions
from heads.kinds import HEADS
from heads.learner import Features, Fold, Labels

IMBALANCED = 10
BALANCED = "balanced class weights: probabilities are those of equally common classes"


def fit_head(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    kind: str,
    kernel: str = "rbf",
    normalize: str = "standard",
    class_weight: str | None = None,
    c: float | None = None,
    folds: int = 5,
    groups: ArrayLike | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    spec: dict[str, Any] | None = None,
    source: Source | None = None,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Head:
    """Fit a classifier on features, its C and its temperature chosen inside the training rows.

    C has the least log loss in stratified cross-validation, each fold standardised by its own
    fitting rows, and the temperature is fitted on the same held-out scores. The head is then
    refitted on all training rows.

    Where validation rows are given, C and temperature are chosen on those instead, and they stay
    out of the fit: the head that is delivered is the one that was measured on them, so that its
    temperature holds, and fine-tuning, which stops by the same rows, can start from it.

    Parameters
    ----------
    features : float32 array of shape (n, d)
    labels : str array of shape (n,)
    kind : name of a head in ``heads.kinds.HEADS``
    kernel : of the SVM: "rbf", "linear" (with too many rows for libsvm "linearsvc", one class
        against the others), "nystroem" (rbf, approximated), or "auto" for the better of the first
        two, and for the approximation where there are too many rows for those
    normalize : "standard" (mean 0, deviation 1), "l2" (rows of length 1), "none", or "auto"
    class_weight : "balanced" for classes that weigh the same however many rows they have; of
        logistic regression and the SVM
    c : float, optional; the inverse penalty, or the number of neighbours, searched where not given
    folds : int, at least 2; fewer where a class has fewer images, said in the head's notes
    groups : array of shape (n,), optional; rows of one value (copies, a patient) are never on
        both sides of a fold; a row on its own has a value of its own
    validation : (features (m, d), labels (m,)), optional
    spec : dict that JSON can hold, what the features mean, kept with the head
    source : Source, optional; how to compute such features anew, kept with the head
    seed : int, of the shuffling into folds
    jobs : int, threads; all cores where not given; -1, as joblib counts, for all, too
    progress : called with (done, total), in fits; the total grows where the grid is extended

    Returns
    -------
    head : Head

    Raises
    ------
    FxError
        Where there are fewer than two classes, a class with one image (or one group), features
        that are not finite or all the same, or choices that are not offered.

    Examples
    --------
    >>> import numpy as np
    >>> from heads.fitting import fit_head
    >>> features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    >>> labels = np.array(["cat", "dog"] * 20)
    >>> features[labels == "dog"] += 3
    >>> fit_head(features, labels, kind="logreg").predict(features[:2]).tolist()
    ['cat', 'dog']
    """
    rows, names = checked_features(features), np.asarray(labels, dtype=str)
    if folds < 2:
        raise FxError(f"cross-validation needs at least 2 folds; got {folds}; 5 is usual")
    classes, y = _numbered(rows, names)
    learners, notes = HEADS[kind].candidates(normalize, class_weight, kernel, rows=len(rows))
    if validation is None:
        seen, truth = rows, y
        splits, fewer = make_folds(y, classes=classes, folds=folds, groups=groups, seed=seed)
        notes += fewer
    else:
        seen, truth, splits = _beside_validation(rows, y, validation, classes)
    threads = cpu_count() if jobs is None else effective_n_jobs(jobs)
    found = search(learners, seen, truth, splits, c=c, jobs=threads, progress=progress)
    learner, c = found.learner, found.best.c
    with threadpool_limits(BLAS_THREADS):
        fitted = learner.fit(rows, names, c, jobs=threads)
    if progress:
        fits = len(found.curve) * len(splits) + 1
        progress(fits, fits)
    notes += [*_imbalance(y, classes), *([BALANCED] if class_weight else []), *found.notes]
    calibration, held_out = _calibrated(found, splits, truth)
    return Head(
        kind=kind,
        kernel=learner.kernel,
        normalize=learner.normalize,
        class_weight=class_weight,
        classes=classes,
        # as it is read back, so that a saved head predicts bitwise as this one
        pipeline=learner.rebuild(learner.state(fitted), classes, c),
        calibration=calibration,
        c=c,
        search=found.curve,
        folds=0 if len(splits) == 1 else len(splits),
        notes=tuple(notes),
        n_train=len(rows),
        spec=dict(spec or {}),
        source=source or Source(),
        held_out=held_out,
    )


def _calibrated(
    found: Search, splits: list[Fold], truth: Labels
) -> tuple[Calibration, OutOfFoldPredictions]:
    """Fit the temperature on the held-out rows' scores, and give their probabilities."""
    rows = np.concatenate([rest for _, rest in splits])
    labels, how = truth[rows], found.learner.class_weight
    weights = compute_sample_weight(how, labels) if how else None
    calibration = found.learner.calibrate(found.scores, labels, weights)
    probabilities = softmax(found.scores / calibration.temperature, axis=1)
    return calibration, OutOfFoldPredictions(splits, rows, labels, probabilities)


def _imbalance(labels: Labels, classes: tuple[str, ...]) -> list[str]:
    """Say where the commonest class has IMBALANCED times the rows of the rarest."""
    counts = np.bincount(labels)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] < IMBALANCED * counts[least]:
        return []
    return [
        f"class {classes[most]!r} has {counts[most]:,} training images and {classes[least]!r} "
        f"{counts[least]:,}: look at the balanced accuracy, and consider balanced class weights"
    ]


def _numbered(rows: Features, names: np.ndarray[Any, Any]) -> tuple[tuple[str, ...], Labels]:
    """Give the classes, sorted, and every row's position in them.

    Raises FxError where nothing can be learned from the rows.
    """
    if names.shape != (len(rows),):
        raise ValueError(f"labels must have shape {(len(rows),)}, got {names.shape}")
    found, y, counts = np.unique(names, return_inverse=True, return_counts=True)
    classes = tuple(found.tolist())
    if len(classes) < 2:
        raise FxError(
            "a classifier needs at least two classes; got "
            f"{', '.join(classes) or 'no labelled rows'}; add labelled images of another class"
        )
    if not np.ptp(rows, axis=0).any():
        raise FxError(
            "features are the same in every row; got nothing to tell classes by; check the weights "
            "of the backbone"
        )
    if counts.min() < 2:
        raise FxError(
            f"too few images of class {classes[counts.argmin()]!r}; got 1 for training; add "
            "images of it or leave it out"
        )
    return classes, y


def _beside_validation(
    rows: Features, y: Labels, validation: tuple[ArrayLike, ArrayLike], classes: tuple[str, ...]
) -> tuple[Features, Labels, list[Fold]]:
    """Put validation rows behind the training rows: all features and labels, and the one fold."""
    extra = checked_features(validation[0])
    labels = positions(validation[1], classes, of="validation rows")
    if not len(extra) or extra.shape != (len(labels), rows.shape[1]):
        raise ValueError(
            f"validation rows must be (m, {rows.shape[1]}) features with m labels, m > 0; "
            f"got {extra.shape} and {labels.shape}"
        )
    seen, truth = np.concatenate([rows, extra]), np.concatenate([y, labels])
    return seen, truth, [(np.arange(len(rows)), np.arange(len(rows), len(seen)))]
