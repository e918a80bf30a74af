"""k-nearest neighbours, by Euclidean distance: a baseline that trains nothing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from extract.errors import FxError
from heads.learner import Features, HeadKind, Learner, Scores, Trial

NEIGHBOURS = (1, 2, 3, 5, 8, 13, 20, 30, 50)


class Neighbours(Learner):
    """The vote of the nearest training rows; the grid is how many."""

    calibrated_search = True
    grid_label = "neighbours"
    choice_text = "neighbours {:g}"
    weights = ("_fit_X",)
    fitted = ("classify._fit_X nd", "classify._y n")

    def estimator(self, c: float) -> KNeighborsClassifier:
        """Make scikit-learn's own classifier, of c neighbours."""
        return KNeighborsClassifier(int(c), algorithm="brute")

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Numbers of neighbours, no more than there are."""
        return [float(count) for count in NEIGHBOURS if count <= fewest]

    def check_c(self, c: float, fewest: int) -> None:
        """Neighbours are counted, and are no more than there are."""
        if not (1 <= c <= fewest and float(c).is_integer()):
            raise FxError(
                f"the number of neighbours must be a whole one, from 1 to the {fewest:,} images of "
                f"a fold; got {c:g}; leave it out to have it searched"
            )

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

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Logarithms of the shares of the votes, as if each class had a share of one vote more."""
        classifier = pipeline["classify"]
        votes = np.eye(len(classifier.classes_))[classifier._y[_nearest(pipeline, features)]]
        return _log_shares(votes.sum(axis=1))

    def complete(self, pipeline: Pipeline, classes: NDArray[np.str_]) -> None:
        """Fit the classifier, which keeps the rows, again."""
        classifier = pipeline["classify"]
        classifier.fit(classifier._fit_X, classes[classifier._y])


def _nearest(pipeline: Pipeline, features: Features) -> NDArray[np.intp]:
    """Positions of the nearest training rows, the nearest first: shape (m, n_neighbors)."""
    rows = pipeline["normalize"].transform(features)
    return np.asarray(pipeline["classify"].kneighbors(rows, return_distance=False))


def _log_shares(votes: NDArray[np.float64]) -> Scores:
    k = votes.shape[1]
    return np.asarray(np.log((votes + 1 / k) / (votes.sum(axis=1, keepdims=True) + 1)))


HEAD = HeadKind("knn", {None: Neighbours})
