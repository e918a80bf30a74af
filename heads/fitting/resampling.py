"""Outer folds: a measurement for few images, in which every one of them is a test row once."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import softmax

from extract.errors import FxError
from heads.evaluation import Evaluation, accuracy_interval, evaluate
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

    Every outer fold makes the whole choice inside its own fitting rows. Every row is held out once
    in each repeat: metrics are means over the repeats, the confusion matrix and what it says of
    each class count the predictions of all of them; `n_test` is the number of rows.

    The accuracy's interval is Student's for the mean over the folds, its variance
    (1 / J + n_test / n_train) s^2 instead of s^2 / J, since the folds share most of their fitting
    rows (C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine Learning 52,
    2003). It reaches at least as far as Wilson's of as many rows or groups, see
    `heads.evaluation.accuracy_interval`: the folds of few rows may all agree by chance.

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
    repeats = [
        make_folds(y, classes=known, folds=OUTER_FOLDS, groups=groups, seed=seed + repeat)[0]
        for repeat in range(REPEATS)
    ]
    if len(repeats[0]) > OUTER_FOLDS:
        # one image, or group, is left out at a time: every repeat would be the same
        repeats = repeats[:1]
    total = sum(map(len, repeats))
    scores = np.zeros((len(repeats), len(rows), len(known)))
    calibrated = np.zeros_like(scores)
    accuracies, ratios = [], []
    for repeat, splits in enumerate(repeats):
        for fitting, rest in splits:
            head = fit_head(
                rows[fitting],
                names[fitting],
                groups=None if groups is None else member[fitting],
                seed=seed + repeat,
                **choices,
            )
            scores[repeat, rest] = head.scores(rows[rest])
            cooled = scores[repeat, rest] / head.calibration.temperature
            calibrated[repeat, rest] = softmax(cooled, axis=1)
            accuracies.append((calibrated[repeat, rest].argmax(axis=1) == y[rest]).mean())
            ratios.append(len(rest) / len(fitting))
            if progress:
                progress(len(accuracies), total)
    each = [evaluate(probabilities, y, known) for probabilities in calibrated]
    pooled = evaluate(
        np.concatenate(calibrated),
        np.tile(y, len(repeats)),
        known,
        uncalibrated=softmax(np.concatenate(scores), axis=1),
    )
    right = (calibrated.argmax(axis=2) == y).mean(axis=0)
    interval, n_groups = interval_of_folds(
        np.array(accuracies), float(np.mean(ratios)), right, groups
    )
    times = f"{len(repeats)} times " if len(repeats) > 1 else ""
    return msgspec.structs.replace(
        pooled,
        metrics={name: _mean([one.metrics[name] for one in each]) for name in pooled.metrics},
        accuracy_ci=interval,
        per_class=tuple(
            msgspec.structs.replace(one, n_test=one.n_test // len(repeats))
            for one in pooled.per_class
        ),
        n_test=len(rows),
        measured_by=f"{times}{total // len(repeats)} outer folds",
        n_groups=n_groups,
    )


def interval_of_folds(
    accuracies: NDArray[np.float64],
    ratio: float,
    correct: NDArray[np.float64],
    groups: ArrayLike | None,
) -> tuple[tuple[float, float] | None, int | None]:
    """Corrected interval of the mean over folds, as far as that of the rows at least.

    Parameters
    ----------
    accuracies, ratio : see `corrected_interval`
    correct, groups : see `heads.evaluation.accuracy_interval`, whose returns these are, too
    """
    of_rows, count = accuracy_interval(correct, groups)
    if of_rows is None:
        return None, count
    low, high = corrected_interval(accuracies, ratio)
    return (max(0.0, min(low, of_rows[0])), min(1.0, max(high, of_rows[1]))), count


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


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
