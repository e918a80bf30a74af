"""What can be a head: how it is searched over its one number, fitted once, and asked for scores.

That number is C, the inverse penalty; for nearest neighbours it is how many are asked. A learner's
scores have shape (m, k), and softmax of them, at a temperature, is its probabilities.
Normalisation belongs to the learner: it is fitted on the fitting rows alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from heads.calibration import log_losses
from heads.folds import Fold
from heads.scaling import fit_normaliser
from heads.solver import BLOCK, Problems, along_path

Features = NDArray[np.float32]
Labels = NDArray[np.intp]
Scores = NDArray[np.float64]
Weights = NDArray[np.floating[Any]]

STEP = float(np.sqrt(10))  # between neighbouring values of C
# held-out log loss near the best C is then right to about 0.001, to 0.01 with a few dozen rows
SEARCH_TOLERANCE = 0.01
FINAL_TOLERANCE = 5e-4
# What logits may still have to move. Above the best C weights grow without telling more, and to
# find them to SEARCH_TOLERANCE took 20,000 rows of four classes 227 s, where 9 s do.
LOGIT_TOL = 0.015
PRUNE_RATIO = 1.1  # times the least log loss: from there on C is only drawn, roughly
ROUGHLY = 0.1
# Iterations for a C: the hardest sets took 60, but where a plane tells all rows apart weights grow
# for ever, and float32 ends before they do.
SEARCH_MAX_ITER = 100


@dataclass(frozen=True)
class Trial:
    """Rows and folds that every candidate of a search is fitted and scored on.

    Attributes
    ----------
    features : float32 array of shape (n, d)
    labels : int array of shape (n,), every class in every fold's fitting side
    splits : the folds, the same for all candidates
    jobs : int, threads
    tick : called with the number of fits that are newly done
    """

    features: Features
    labels: Labels
    splits: Sequence[Fold]
    jobs: int
    tick: Callable[[int], None]


class Learner(ABC):
    """A kind of head, before it is fitted.

    Attributes
    ----------
    normalize : "standard", "l2" or "none"
    kernel : of an SVM, else None
    calibrated_search : whether scores mean nothing before they have a temperature
    extensible : whether the grid goes on where the best value lies at its end
    by_accuracy : whether the best value is that of the highest accuracy, not the least log loss
    """

    kernel: str | None = None
    calibrated_search = False
    extensible = False
    by_accuracy = False

    def __init__(self, normalize: str = "standard", class_weight: str | None = None) -> None:
        self.normalize = normalize
        self.class_weight = class_weight

    @abstractmethod
    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ascending values to try, of C in equal steps of its logarithm.

        Parameters
        ----------
        features : float32 array of shape (n, d)
        fewest : rows of the smallest fitting side
        """

    @abstractmethod
    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Fit every fold for every value, and score the rows that the fold holds out.

        Parameters
        ----------
        trial : Trial
        cs : ascending values of the grid

        Returns
        -------
        scores : for every value, for every fold, a float64 array of shape (n_held_out, k)
        """

    @abstractmethod
    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Fit the head that is delivered: a normaliser, then a plain scikit-learn classifier."""

    @abstractmethod
    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Score rows with a fitted pipeline: shape (m, k)."""


def grid_of_c(lowest: float, normalize: str, features: Features, *, count: int = 10) -> list[float]:
    """Values of C from 10 ** lowest up, moved to where they mean the same for other lengths of row.

    A penalty on weights weighs the more the smaller the features are: standardised rows have a
    squared length of about d, others are measured.
    """
    grid = 10**lowest * STEP ** np.arange(count)
    if normalize != "standard":
        rows = fit_normaliser(normalize, features).transform(features)
        variance = max(float(np.var(rows, axis=0, dtype=np.float64).sum()), 1e-12)
        grid *= STEP ** np.round(np.log(features.shape[1] / variance) / np.log(STEP))
    return list(map(float, grid))


class Logistic(Learner):
    """Multinomial logistic regression; its scores are its logits."""

    extensible = True
    # of the one set of features that a search and its refit are about
    _axes: tuple[Weights, Weights] | None = None

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ten values from 0.001 to 32, or as far for rows of another length."""
        return grid_of_c(-3, self.normalize, features)

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Solve all folds as one problem, in float32."""
        scores = []
        with ThreadPoolExecutor(trial.jobs) as pool:
            sides = [fitting for fitting, _ in trial.splits]
            problems, unit = self._problems(trial.features, trial.labels, sides, pool)
            self._axes = problems.basis, problems.spread
            scaled = [c * unit**2 for c in cs]
            held_out = [rows for _, rows in trial.splits]
            losses: list[float] = []

            def settling() -> float:
                # by accuracy, any C may turn out the best
                worse = bool(losses) and losses[-1] > PRUNE_RATIO * min(losses)
                hopeless = worse and not self.by_accuracy
                return ROUGHLY if hopeless else LOGIT_TOL

            path = along_path(
                problems,
                scaled,
                tolerance=SEARCH_TOLERANCE,
                settling=settling,
                most=SEARCH_MAX_ITER,
            )
            for weights in path:
                logits = problems.logits(weights, slice(None)).astype(np.float64)
                scores.append([of[:, rows].T for of, rows in zip(logits, held_out, strict=True)])
                truth = trial.labels[np.concatenate(held_out)]
                losses.append(float(log_losses(np.concatenate(scores[-1]), truth).mean()))
                trial.tick(len(trial.splits))
        return scores

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Solve to a relative error of the coefficients below FINAL_TOLERANCE, in float64."""
        classes, labels = np.unique(names, return_inverse=True)
        with ThreadPoolExecutor(jobs) as pool:
            problems, unit = self._problems(features, labels, [np.arange(len(labels))], pool)
            path = [c * unit**2 / STEP**step for step in (2, 1, 0)]
            *_, near = along_path(problems, path, tolerance=SEARCH_TOLERANCE, most=SEARCH_MAX_ITER)
            double = problems.cast(np.float64)
            (weights,) = along_path(double, path[-1:], tolerance=FINAL_TOLERANCE, start=near)
        coefficients, intercepts = weights[0, :, :-1] / unit, weights[0, :, -1]
        normaliser = fit_normaliser(self.normalize, features)
        if self.normalize != "standard":  # these were centred to be solved
            intercepts = intercepts - coefficients @ normaliser.transform(features).mean(axis=0)
        if len(classes) == 2:  # scikit-learn keeps the one vector of the second class
            coefficients = coefficients[1:] - coefficients[:1]
            intercepts = intercepts[1:] - intercepts[:1]
        classifier = LogisticRegression(C=c, class_weight=self.class_weight)
        classifier.classes_ = classes
        classifier.coef_, classifier.intercept_ = coefficients, intercepts
        classifier.n_features_in_ = features.shape[1]
        return Pipeline([("normalize", normaliser), ("classify", classifier)])

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Logits; of two classes, half the margin each way."""
        logits = np.asarray(pipeline.decision_function(features), dtype=np.float64)
        return np.stack([-logits / 2, logits / 2], axis=1) if logits.ndim == 1 else logits

    def _problems(
        self,
        features: Features,
        labels: Labels,
        sides: list[Labels],
        pool: ThreadPoolExecutor,
    ) -> tuple[Problems, float]:
        """Problems, and the unit in which their rows are given, so that a column is about 1.

        With x = unit x', w' = unit w: the penalty |w|^2 / (2 C) is |w'|^2 / (2 C unit^2).
        """
        unit = 1.0
        if self.normalize != "standard":
            rows = fit_normaliser(self.normalize, features).transform(features)
            unit = max(float(np.sqrt(np.var(rows, axis=0, dtype=np.float64).mean())), 1e-12)
            features = rows / np.float32(unit)
        problems = Problems.of(
            features,
            labels,
            sides,
            standardise=self.normalize == "standard",
            balanced=self.class_weight == "balanced",
            axes=self._axes,
            # of few rows threads cost more than they bring
            over=pool.map if len(features) > BLOCK else map,
        )
        return problems, unit
