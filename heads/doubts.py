"""Labels that may be wrong: what rows say that were held out, and those most like them."""

from dataclasses import dataclass, replace

import numpy as np
from joblib import cpu_count
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn import config_context
from threadpoolctl import threadpool_limits

from heads.head import Head, checked_features, positions
from heads.kinds import HEADS
from heads.learner import Labels, Trial

NEIGHBOURS = 20  # whose labels are counted
FIRST_ERROR_RATE = 0.03  # where the search for it begins
ROUNDS = 8  # of expectation and maximisation; the ranking stands still after five
SMALLEST = 1e-12  # probability

Probabilities = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Doubts:
    """Rows, the most doubtful label first.

    Attributes
    ----------
    rows : int array of shape (n,), positions among the training rows, then the validation rows
    margins : float64 array of shape (n,), ascending: the probability that the label is right less
        that of the likeliest other class
    suggested : int array of shape (n,), the likeliest other class
    contradicted : bool array of shape (n,), whether that class is likelier than the label
    expected : float, how many of as many right labels would be contradicted, by simulation
    """

    rows: NDArray[np.intp]
    margins: NDArray[np.float64]
    suggested: NDArray[np.intp]
    contradicted: NDArray[np.bool_]
    expected: float


def doubt_labels(head: Head, features: ArrayLike, labels: ArrayLike) -> Doubts:
    """Rank the rows that a head was chosen on by how likely their labels are to be wrong.

    A head that had not seen a row gives it one probability a class, and the labels of the nearest
    rows of other folds, without those that the head alone contradicts, give it another. Both are
    taken together with a table of how often a class is labelled as another (see `_Errors`), which
    tells mistakes of the labels, made however clear an image is, from those of a head. Measured
    by ``benchmarks/audit.py``.

    Parameters
    ----------
    head : that was just fitted
    features : float array of shape (l, d), of the training rows, then of the validation rows
    labels : str array of shape (l,), of those
    """
    held_out = head.held_out
    assert held_out is not None, "a head that was just fitted"
    rows, truth = checked_features(features), positions(labels, head.classes, of="rows")
    y, probabilities = held_out.labels, held_out.probabilities
    if head.class_weight:  # it was told that classes are equally frequent, which labels are not
        probabilities = probabilities * np.maximum(np.bincount(y, minlength=len(head.classes)), 1)
    trial = Trial(rows, truth, held_out.splits, cpu_count(), lambda fits: None)
    evidence = _evidence(trial, probabilities)
    errors = _Errors.of(evidence, y)
    posterior = errors.posterior(errors.classes_by(evidence), y)
    margins = _margins(posterior, y)
    order = np.argsort(margins, kind="stable")
    doubtful = np.zeros(len(truth), dtype=bool)
    doubtful[held_out.rows] = margins < 0
    return Doubts(
        rows=held_out.rows[order],
        margins=margins[order],
        suggested=_without(posterior, y).argmax(axis=1)[order],
        contradicted=margins[order] < 0,
        expected=_contradicted_if_right(head, trial, errors, doubtful),
    )


def _evidence(trial: Trial, probabilities: Probabilities) -> Probabilities:
    """Log probabilities by a head and by neighbours, of the held-out rows: (2, n_held_out, k).

    The rows that the head contradicts are no neighbours.
    """
    own = np.log(np.maximum(probabilities, SMALLEST))[None]
    rows = np.concatenate([rest for _, rest in trial.splits])
    y = trial.labels[rows]
    errors = _Errors.of(own, y)
    doubtful = np.zeros(len(trial.labels), dtype=bool)
    doubtful[rows] = _margins(errors.posterior(errors.classes_by(own), y), y) < 0
    splits = [(fitting[~doubtful[fitting]], rest) for fitting, rest in trial.splits]
    count = min(NEIGHBOURS, *(len(fitting) for fitting, _ in splits))
    neighbours = HEADS["knn"].learner("l2")
    (votes,) = neighbours.held_out_scores(replace(trial, splits=splits), [count])
    return np.concatenate([own, np.concatenate(votes)[None]])


def _contradicted_if_right(
    head: Head, trial: Trial, errors: "_Errors", doubtful: NDArray[np.bool_]
) -> float:
    """Simulate how many right labels would be contradicted.

    A row of a class is the class's mean and what some row differs from the mean of its own class,
    so that its label is right; means and differences are those of rows that are not doubtful. The
    same classifier is fitted in the same folds. Held-out labels are contradicted by the errors
    that were found, and by those found anew, which are fewer: the larger number counts.
    """
    labels, k = trial.labels, len(head.classes)
    known = ~doubtful | ~np.isin(labels, labels[~doubtful])
    rows, of_rows = trial.features[known], labels[known]
    indicator = np.eye(k, dtype=np.float32)[of_rows]
    counts = np.maximum(indicator.sum(axis=0), 1)
    means = indicator.T @ rows / counts[:, None]
    # a row is nearer to a mean that it is a part of
    apart = np.sqrt(counts / np.maximum(counts - 1, 1))[of_rows, None]
    differences = (rows - means[of_rows]) * apart
    drawn = np.random.default_rng(0).integers(len(differences), size=len(labels))
    simulated = replace(trial, features=means[labels] + differences[drawn])
    learner = HEADS[head.kind].learner(head.normalize, head.class_weight, head.kernel)
    with config_context(assume_finite=True), threadpool_limits(1):
        (by_fold,) = learner.held_out_scores(simulated, [head.c])
    scores, y = np.concatenate(by_fold), labels[np.concatenate([rest for _, rest in trial.splits])]
    temperature = learner.calibrate(scores, y, None).temperature
    evidence = _evidence(simulated, softmax(scores / temperature, axis=1))
    contradicted = [
        (_margins(one.posterior(one.classes_by(evidence), y), y) < 0).sum()
        for one in (errors, _Errors.of(evidence, y))
    ]
    return float(max(contradicted))


@dataclass(frozen=True)
class _Errors:
    """How often labels are wrong, and what rows are when nothing is known of their labels.

    The true class of a row has probabilities softmax(sum of w_j times the j-th log probabilities),
    and a row of class c is labelled d with probability confusion[c, d], however its image looks.
    Weights and confusion have the greatest likelihood of the labels, by expectation and
    maximisation (Dawid and Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the
    EM Algorithm", 1979, of one observer; the true classes have probabilities that depend on the
    image as in Raykar et al., "Learning From Crowds", 2010). Rows of the confusion are drawn, with
    the weight of as many images as a class has on average, to one rate at which all labels are
    wrong in the same way: a class may have few images.

    Attributes
    ----------
    weights : float64 array of shape (j,)
    confusion : float64 array of shape (k, k), of which every row sums to 1
    """

    weights: NDArray[np.float64]
    confusion: Probabilities

    @classmethod
    def of(cls, evidence: Probabilities, labels: Labels) -> "_Errors":
        """Estimate them from log probabilities of shape (j, n, k), and labels of shape (n,)."""
        n, k = evidence.shape[1:]
        weights, confusion = np.eye(len(evidence))[0], _alike(FIRST_ERROR_RATE, k)
        with threadpool_limits(1):  # small products, in which threads would wait for each other
            for _ in range(ROUNDS):
                weights = _weights(evidence, labels, confusion, weights)
                errors = cls(weights, confusion)
                posterior = errors.posterior(errors.classes_by(evidence), labels)
                counts = np.stack([posterior[labels == d].sum(axis=0) for d in range(k)], axis=1)
                counts += n / k * _alike(1 - np.trace(counts) / n, k)
                confusion = counts / counts.sum(axis=1, keepdims=True)
        return cls(weights, confusion)

    def classes_by(self, evidence: Probabilities) -> Probabilities:
        """Probabilities of the true classes of rows of which no label is known: shape (n, k)."""
        return np.asarray(softmax(np.tensordot(self.weights, evidence, axes=1), axis=1))

    def posterior(self, classes: Probabilities, labels: Labels) -> Probabilities:
        """The same of rows with such labels."""
        joint = classes * self.confusion[:, labels].T
        return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def _alike(rate: float, k: int) -> Probabilities:
    """A confusion of k classes at one rate, to every other class alike."""
    return np.where(np.eye(k, dtype=bool), 1 - rate, rate / (k - 1))


def _weights(
    evidence: Probabilities, labels: Labels, confusion: Probabilities, start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find weights of the greatest likelihood, none below 0, for evidence of shape (j, n, k)."""
    as_labelled = np.log(np.maximum(confusion[:, labels].T, SMALLEST))

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_classes = log_softmax(np.tensordot(weights, evidence, axes=1), axis=1)
        joint = log_classes + as_labelled
        log_posterior = log_softmax(joint, axis=1)
        # joint less its posterior is the label's log probability, in every column
        likelihood = (joint - log_posterior)[:, 0].mean()
        moved = np.exp(log_posterior) - np.exp(log_classes)
        return -likelihood, -np.einsum("jnk,nk->j", evidence, moved) / len(labels)

    bounds = [(0, None)] * len(start)
    found: NDArray[np.float64] = minimize(loss, start, jac=True, bounds=bounds).x
    return found


def _without(posterior: Probabilities, labels: Labels) -> Probabilities:
    """Probabilities, that of the label being -1."""
    others = posterior.copy()
    others[np.arange(len(labels)), labels] = -1
    return others


def _margins(posterior: Probabilities, labels: Labels) -> NDArray[np.float64]:
    own = posterior[np.arange(len(labels)), labels]
    return np.asarray(own - _without(posterior, labels).max(axis=1))
