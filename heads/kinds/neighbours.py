"""Baselines that cost nothing: k-nearest neighbours, and the nearest class centroid."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline

from heads.kinds.learners import Features, Learner, Scores, Trial
from heads.scaling import fit_normaliser

NEIGHBOURS = (1, 2, 3, 5, 8, 13, 20, 30, 50)


class Neighbours(Learner):
    """The vote of the nearest training rows, by Euclidean distance; the grid is how many."""

    calibrated_search = True

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Numbers of neighbours, no more than there are."""
        return [float(count) for count in NEIGHBOURS if count <= fewest]

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Find the most neighbours that are asked for once, and count votes for every number."""
        by_fold = []
        features, labels = trial.features, trial.labels
        one_hot = np.eye(int(labels.max()) + 1)
        for fitting, rest in trial.splits:
            pipeline = self.fit(features[fitting], labels[fitting], max(cs), jobs=trial.jobs)
            votes = one_hot[labels[fitting][_nearest(pipeline, features[rest])]].cumsum(axis=1)
            by_fold.append([_log_shares(votes[:, int(count) - 1]) for count in cs])
            trial.tick(len(cs))
        return [list(of_count) for of_count in zip(*by_fold, strict=True)]

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Keep the rows in scikit-learn's own classifier."""
        normaliser = fit_normaliser(self.normalize, features)
        classifier = KNeighborsClassifier(int(c), algorithm="brute")
        classifier.fit(normaliser.transform(features), names)
        return Pipeline([("normalize", normaliser), ("classify", classifier)])

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Logarithms of the shares of the votes, as if each class had a share of one vote more."""
        classifier = pipeline[-1]
        votes = np.eye(len(classifier.classes_))[classifier._y[_nearest(pipeline, features)]]
        return _log_shares(votes.sum(axis=1))


def _nearest(pipeline: Pipeline, features: Features) -> NDArray[np.intp]:
    """Positions of the nearest training rows, the nearest first: shape (m, n_neighbors)."""
    rows = pipeline[0].transform(features)
    found: NDArray[np.intp] = pipeline[-1].kneighbors(rows, return_distance=False)
    return found


def _log_shares(votes: NDArray[np.float64]) -> Scores:
    k = votes.shape[1]
    return np.asarray(np.log((votes + 1 / k) / (votes.sum(axis=1, keepdims=True) + 1)))


class Centroid(Learner):
    """The class whose mean is nearest, by Euclidean distance: nothing is chosen."""

    calibrated_search = True

    def grid(self, features: Features, fewest: int) -> list[float]:
        """One value, which means nothing."""
        return [1.0]

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Fit every fold once."""
        scores = []
        for fitting, rest in trial.splits:
            known, names = trial.features[fitting], trial.labels[fitting]
            pipeline = self.fit(known, names, 1.0, jobs=trial.jobs)
            scores.append(self.scores(pipeline, trial.features[rest]))
            trial.tick(1)
        return [scores]

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Fit scikit-learn's own classifier."""
        normaliser = fit_normaliser(self.normalize, features)
        with warnings.catch_warnings():  # of features that are silent in a class
            warnings.simplefilter("ignore")
            classifier = NearestCentroid().fit(normaliser.transform(features), names)
        return Pipeline([("normalize", normaliser), ("classify", classifier)])

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Log densities, but for a constant, of normal classes that all spread alike on all sides.

        The spread is that of the centroids themselves, so that it needs nothing but them.
        """
        centroids = pipeline[-1].centroids_.astype(np.float64)
        # a row's squared distance less its own squared length, which is the same for every class
        rows = pipeline[0].transform(features)
        distances = np.square(centroids).sum(axis=1) - 2 * rows @ centroids.T
        return np.asarray(-distances / (2 * max(centroids.var(axis=0).sum(), 1e-12)))
