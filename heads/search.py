"""The choice of C, by the log loss of rows that took no part in the fit that scores them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from heads.calibration import fit_temperature, log_losses
from heads.folds import Fold
from heads.learners import STEP, Features, Labels, Learner, Scores

Progress = Callable[[int, int], None]

EXTENSIONS = 2  # times that the grid grows where the best C is the first or last of it
BEYOND = 3  # values that it grows by
# Many small products: on two cores that others used too, two threads took sixty times as long.
BLAS_THREADS = 1
TIE = 1e-3  # nats, far below what held-out rows can tell; the smaller of two such C is taken


@dataclass(frozen=True)
class Candidate:
    """One value of C and what it reached on held-out rows.

    Attributes
    ----------
    c : float
    log_loss : float, mean over the folds: what C is chosen by
    log_loss_std : float, standard deviation over the folds; 0 for a single one
    accuracy : float, mean over the folds
    """

    c: float
    log_loss: float
    log_loss_std: float
    accuracy: float

    def as_dict(self) -> dict[str, float]:
        """Turn into what JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Search:
    """A chosen C, the curve it was chosen from, and its scores of the held-out rows.

    Attributes
    ----------
    c : float
    curve : tuple of Candidate, ascending in C
    scores : float64 array of shape (n_held_out, k)
    held_out : int array of shape (n_held_out,), the row that each of `scores` belongs to
    notes : tuple of str
    """

    c: float
    curve: tuple[Candidate, ...]
    scores: Scores
    held_out: NDArray[np.intp]
    notes: tuple[str, ...]


def search(
    learner: Learner,
    features: Features,
    labels: Labels,
    splits: Sequence[Fold],
    *,
    c: float | None,
    jobs: int,
    progress: Progress | None,
) -> Search:
    """Choose C over the learner's grid, extended where the best lies at its end.

    The criterion is log loss and not accuracy: with few rows accuracy moves in steps of a row and
    ties over wide ranges, and by it C came out worse in every measure (on 100 images in four
    classes, mean of eight draws: logistic regression 0.799 instead of 0.805, SVM 0.787 instead of
    0.794). A learner whose scores mean nothing before they have a temperature is given the best
    one for every C.

    Parameters
    ----------
    learner : Learner
    features : float32 array of shape (n, d)
    labels : int array of shape (n,)
    splits : the same folds for every candidate
    c : float, optional; the only candidate, where given
    jobs : int, threads
    progress : called with the fits done and the fits there are, a fold and a C each
    """
    truth = [labels[rows] for _, rows in splits]
    scores: dict[float, list[Scores]] = {}
    notes: list[str] = []
    done = total = 0

    def tick(fits: int) -> None:
        nonlocal done
        done += fits
        if progress:
            progress(done, total + 1)  # one more for the refit

    more: Sequence[float] = learner.grid if c is None else [c]
    for extension in range(EXTENSIONS + 1):
        total += len(splits) * len(more)
        with threadpool_limits(BLAS_THREADS):
            found = learner.held_out_scores(features, labels, splits, more, jobs=jobs, tick=tick)
        scores |= zip(more, found, strict=True)
        curve = [_candidate(learner, value, scores[value], truth) for value in sorted(scores)]
        best = _best(curve)
        more = _beyond([candidate.c for candidate in curve], best) if c is None else []
        if not more or extension == EXTENSIONS:
            break
        notes.append(
            f"the best C, {best:g}, lay at the grid's end: also tried {more[0]:g} to {more[-1]:g}"
        )
    if more:
        notes.append(f"the best C, {best:g}, is still the last one tried")
    held_out = np.concatenate([rows for _, rows in splits])
    return Search(best, tuple(curve), np.concatenate(scores[best]), held_out, tuple(notes))


def _candidate(learner: Learner, c: float, scores: list[Scores], truth: list[Labels]) -> Candidate:
    """Score one value of C, fold by fold."""
    temperature = 1.0
    if learner.calibrated_search:
        temperature = fit_temperature(np.concatenate(scores), np.concatenate(truth))
    folds = list(zip(scores, truth, strict=True))
    losses = [log_losses(score / temperature, y).mean() for score, y in folds]
    accuracies = [(score.argmax(axis=1) == y).mean() for score, y in folds]
    return Candidate(c, float(np.mean(losses)), float(np.std(losses)), float(np.mean(accuracies)))


def _best(curve: Sequence[Candidate]) -> float:
    """Take the smallest C whose log loss ties with the least."""
    least = min(candidate.log_loss for candidate in curve)
    return next(candidate.c for candidate in curve if candidate.log_loss <= least + TIE)


def _beyond(cs: Sequence[float], best: float) -> list[float]:
    """Values that continue the grid at the end where the best lies; none where it lies inside."""
    if best == cs[0]:
        return [best / STEP**step for step in range(BEYOND, 0, -1)]
    if best == cs[-1]:
        return [best * STEP**step for step in range(1, BEYOND + 1)]
    return []
