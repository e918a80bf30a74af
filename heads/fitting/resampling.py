"""Outer folds: a measurement for few images, in which every one of them is a test row once."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import softmax

from extract.errors import FxError
from heads.evaluation import Evaluation, evaluate
from heads.fitting.fit import fit_head
from heads.fitting.folds import make_folds
from heads.fitting.search import Progress
from heads.head import checked_features

OUTER_FOLDS, REPEATS = 5, 3
MIN_PER_CLASS = 3  # images (or groups) of a class: one to test on, and two for the folds within


def measure_by_resampling(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **choices: Any,
) -> Evaluation:
    """Measure a way of fitting heads on rows that are split anew again and again.

    Every outer fold makes the whole choice inside its own fitting rows. Measures are of all rows
    held out in all repeats; the confusion matrix and the numbers of rows are of the first repeat,
    in which every row is held out once.

    The accuracy's interval is Student's for the mean over the folds, its variance
    (1 / J + n_test / n_train) s^2 instead of s^2 / J, since the folds share most of their fitting
    rows (C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine Learning 52,
    2003). Where Wilson's, of as many independent rows, is wider, it is that: the folds of few
    rows may all agree by chance.

    Parameters
    ----------
    features : float32 array of shape (n, d)
    labels : str array of shape (n,)
    groups : array of shape (n,), optional; rows of one value are never on both sides
    seed : int, of the shuffling
    progress : called with (done, total), in outer folds
    choices : what `fit_head` takes beside these

    Returns
    -------
    metrics : Evaluation

    Raises
    ------
    FxError
        Where a class has fewer than MIN_PER_CLASS images (or groups).
    """
    rows, names = checked_features(features), np.asarray(labels, dtype=str)
    member = np.arange(len(rows)) if groups is None else np.asarray(groups)
    classes, y = np.unique(names, return_inverse=True)
    known = tuple(classes.tolist())
    for name in known:
        if len(np.unique(member[names == name])) < MIN_PER_CLASS:
            raise FxError(
                f"class {name!r} has too few images for outer folds; {MIN_PER_CLASS} are needed"
            )
    calibrated: list[NDArray[np.float64]] = []
    uncalibrated: list[NDArray[np.float64]] = []
    truth: list[NDArray[np.intp]] = []
    shares: list[float] = []
    for repeat in range(REPEATS):
        splits, _ = make_folds(
            y, classes=known, folds=OUTER_FOLDS, groups=groups, seed=seed + repeat
        )
        for fitting, rest in splits:
            head = fit_head(
                rows[fitting],
                names[fitting],
                groups=None if groups is None else member[fitting],
                seed=seed + repeat,
                **choices,
            )
            scores = head.scores(rows[rest])
            uncalibrated.append(softmax(scores, axis=1))
            calibrated.append(softmax(scores / head.calibration.temperature, axis=1))
            truth.append(y[rest])
            shares.append(len(rest) / len(fitting))
            if progress:
                progress(len(truth), REPEATS * len(splits))
    accuracies = np.array(
        [(p.argmax(axis=1) == of).mean() for p, of in zip(calibrated, truth, strict=True)]
    )
    once = len(truth) // REPEATS
    first = evaluate(np.concatenate(calibrated[:once]), np.concatenate(truth[:once]), known)
    pooled = evaluate(
        np.concatenate(calibrated),
        np.concatenate(truth),
        known,
        uncalibrated=np.concatenate(uncalibrated),
    )
    low, high = corrected_interval(accuracies, float(np.mean(shares)))
    return msgspec.structs.replace(
        pooled,
        accuracy_ci=(
            max(0.0, min(low, first.accuracy_ci[0])),
            min(1.0, max(high, first.accuracy_ci[1])),
        ),
        per_class=tuple(
            msgspec.structs.replace(of_all, n_test=of_first.n_test)
            for of_all, of_first in zip(pooled.per_class, first.per_class, strict=True)
        ),
        n_test=first.n_test,
        confusion=first.confusion,
        measured_by=f"{REPEATS} times {once} outer folds",
    )


def corrected_interval(accuracies: NDArray[np.float64], ratio: float) -> tuple[float, float]:
    """Nadeau and Bengio's 95 % interval of a mean over overlapping folds.

    Parameters
    ----------
    accuracies : float64 array of shape (j,), j > 1
    ratio : test rows over training rows of a fold
    """
    j = len(accuracies)
    width = stats.t.ppf(0.975, j - 1) * np.sqrt((1 / j + ratio) * accuracies.var(ddof=1))
    return float(accuracies.mean() - width), float(accuracies.mean() + width)
