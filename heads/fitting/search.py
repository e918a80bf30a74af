"""The choice of a learner and its C, by the log loss of rows that no fit which scores them saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from threadpoolctl import threadpool_limits

from heads.calibration import fit_temperature, log_losses
from heads.learner import STEP, Candidate, Features, Fold, Labels, Learner, Scores, Trial

Progress = Callable[[int, int], None]

MAX_EXTENSIONS = 2  # times that the grid grows where the best C is the first or last of it
EXTENSION_STEPS = 3  # values that it grows by
# Many small products: on two cores that others used too, two threads took sixty times as long.
BLAS_THREADS = 1
TIE = 1e-3  # nats, far below what held-out rows can tell; the smaller of two such C is taken


@dataclass(frozen=True)
class Search:
    """A chosen learner and C, the curves they were chosen from, and scores of the held-out rows.

    Attributes
    ----------
    learner : Learner
    best : Candidate, the chosen one
    curve : tuple of Candidate, ascending in C, of one learner after the other
    scores : float64 array of shape (n_held_out, k), fold after fold
    notes : tuple of str
    """

    learner: Learner
    best: Candidate
    curve: tuple[Candidate, ...]
    scores: Scores
    notes: tuple[str, ...]


def search(
    learners: Sequence[Learner],
    features: Features,
    labels: Labels,
    splits: Sequence[Fold],
    *,
    c: float | None,
    jobs: int,
    progress: Progress | None,
) -> Search:
    """Choose a learner, and C over its grid, extended where the best lies at its end.

    The criterion is log loss and not accuracy: with few rows accuracy moves in steps of a row and
    ties over wide ranges, and by it C came out worse in every measure (on 100 images in four
    classes, mean of eight draws: logistic regression 0.799 instead of 0.805, SVM 0.787 instead of
    0.794). A learner whose scores mean nothing before they have a temperature is given the best
    one for every C.

    Parameters
    ----------
    learners : those to choose among; of two that tie the first
    features : float32 array of shape (n, d)
    labels : int array of shape (n,)
    splits : the same folds for every candidate
    c : float, optional; the only value, where given
    jobs : int, threads
    progress : called with the fits done and the fits there are, a fold and a C each
    """
    meter = _Meter(progress)
    trial = Trial(features, labels, splits, jobs, meter.tick)
    found = [_along_grid(learner, trial, c, meter) for learner in learners]
    least = min(one.best.log_loss for one in found)
    chosen = next(one for one in found if one.best.log_loss <= least + (len(found) > 1) * TIE)
    return replace(chosen, curve=tuple(candidate for one in found for candidate in one.curve))


class _Meter:
    """Counts fits, of which there turn out to be more where a grid is extended."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.done = self.total = 0

    def tick(self, fits: int) -> None:
        self.done += fits
        if self.progress:
            self.progress(self.done, self.total + 1)  # one more for the refit


def _along_grid(learner: Learner, trial: Trial, c: float | None, meter: _Meter) -> Search:
    """Choose one learner's C."""
    labels, splits = trial.labels, trial.splits
    truth = [labels[rows] for _, rows in splits]
    # classes may weigh the same in the log loss, too, however many rows they have
    balanced = learner.class_weight == "balanced"
    weights = len(labels) / np.bincount(labels) if balanced else np.ones(labels.max() + 1)
    scores: dict[float, list[Scores]] = {}
    notes: list[str] = []
    fewest = min(len(rows) for rows, _ in splits)
    if c is not None:
        learner.check_c(c, fewest)
    more = learner.grid(trial.features, fewest) if c is None else [c]
    for extension in range(MAX_EXTENSIONS + 1):
        meter.total += len(splits) * len(more)
        # what scikit-learn checks anew at every fit was checked before
        checked = config_context(assume_finite=True, skip_parameter_validation=True)
        with threadpool_limits(BLAS_THREADS), checked:
            found = learner.held_out_scores(trial, more)
        scores |= zip(more, found, strict=True)
        curve = [
            _candidate(learner, value, scores[value], truth, weights) for value in sorted(scores)
        ]
        best = _best(curve)
        tried = [candidate.c for candidate in curve]
        more = _beyond(tried, best.c) if c is None and learner.extensible else []
        if not more or extension == MAX_EXTENSIONS:
            break
        notes.append(
            f"the best C, {best.c:.3g}, lay at the grid's end: also tried {more[0]:.3g} to "
            f"{more[-1]:.3g}"
        )
    if more:
        notes.append(f"the best C, {best.c:.3g}, is still the last one tried")
    return Search(learner, best, tuple(curve), np.concatenate(scores[best.c]), tuple(notes))


def _candidate(
    learner: Learner,
    c: float,
    scores: list[Scores],
    truth: list[Labels],
    weights: NDArray[np.float64],
) -> Candidate:
    """Score one value of C, fold by fold; a row counts by the weight of its class."""
    temperature = 1.0
    if learner.calibrated_search:
        together = np.concatenate(scores), np.concatenate(truth)
        temperature = fit_temperature(*together, any_unit=True)
    folds = list(zip(scores, truth, strict=True))
    losses = [
        np.average(log_losses(score / temperature, y), weights=weights[y]) for score, y in folds
    ]
    accuracies = [np.average(score.argmax(axis=1) == y, weights=weights[y]) for score, y in folds]
    mean, deviation, accuracy = np.mean(losses), np.std(losses), np.mean(accuracies)
    return Candidate(
        c, float(mean), float(deviation), float(accuracy), learner.normalize, learner.kernel
    )


def _best(curve: Sequence[Candidate]) -> Candidate:
    """Take the smallest C whose log loss ties with the least."""
    least = min(candidate.log_loss for candidate in curve)
    return next(candidate for candidate in curve if candidate.log_loss <= least + TIE)


def _beyond(cs: Sequence[float], best: float) -> list[float]:
    """Values that continue the grid at the end where the best lies; none where it lies inside."""
    if best == cs[0]:
        return [best / STEP**step for step in range(EXTENSION_STEPS, 0, -1)]
    if best == cs[-1]:
        return [best * STEP**step for step in range(1, EXTENSION_STEPS + 1)]
    return []
