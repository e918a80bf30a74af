"""Logistic regression, multinomial, with an L2 penalty."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from heads.calibration import log_losses
from heads.learner import (
    STEP,
    Features,
    HeadKind,
    Labels,
    Learner,
    Scores,
    Trial,
    fit_normaliser,
    grid_of_c,
)
from heads.solver import BLOCK, Problems, along_path

Weights = NDArray[np.floating[Any]]

# held-out log loss near the best C is then right to about 0.001, to 0.01 with a few dozen rows
SEARCH_TOLERANCE = 0.01
FINAL_TOLERANCE = 5e-4
# What logits may still have to move. Above the best C weights grow without telling more, and to
# find them to SEARCH_TOLERANCE took 20,000 rows of four classes 227 s, where 9 s do.
LOGIT_TOL = 0.015
PRUNE_RATIO = 1.1  # times the least log loss; from there on C is solved roughly, for the plot alone
ROUGH_LOGIT_TOL = 0.1
# Iterations for a C: the hardest sets took 60, but where a plane tells all rows apart weights grow
# for ever, and float32 ends before they do.
SEARCH_MAX_ITER = 100


class Logistic(Learner):
    """Multinomial logistic regression, its folds solved together; its scores are its logits."""

    extensible = True
    is_linear = True
    # of the one set of features that a search and its refit are about
    _axes: tuple[Weights, Weights] | None = None

    def estimator(self, c: float) -> LogisticRegression:
        """Make scikit-learn's own classifier."""
        return LogisticRegression(C=c, class_weight=self.class_weight)

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

            def logit_tolerance() -> float:
                prune = bool(losses) and losses[-1] > PRUNE_RATIO * min(losses)
                return ROUGH_LOGIT_TOL if prune else LOGIT_TOL

            path = along_path(
                problems,
                scaled,
                tolerance=SEARCH_TOLERANCE,
                logit_tolerance=logit_tolerance,
                max_iterations=SEARCH_MAX_ITER,
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
            *_, near = along_path(
                problems, path, tolerance=SEARCH_TOLERANCE, max_iterations=SEARCH_MAX_ITER
            )
            double = problems.cast(np.float64)
            (weights,) = along_path(double, path[-1:], tolerance=FINAL_TOLERANCE, start=near)
        coefficients, intercepts = weights[0, :, :-1] / unit, weights[0, :, -1]
        normaliser = fit_normaliser(self.normalize, features)
        if self.normalize != "standard":  # these were centred to be solved
            intercepts = intercepts - coefficients @ normaliser.transform(features).mean(axis=0)
        if len(classes) == 2:  # scikit-learn keeps the one vector of the second class
            coefficients = coefficients[1:] - coefficients[:1]
            intercepts = intercepts[1:] - intercepts[:1]
        classifier = self.estimator(c)
        classifier.classes_ = classes
        classifier.coef_, classifier.intercept_ = coefficients, intercepts
        classifier.n_features_in_ = features.shape[1]
        return Pipeline([("normalize", normaliser), ("classify", classifier)])

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


HEAD = HeadKind("logreg", {None: Logistic}, takes_class_weight=True)
