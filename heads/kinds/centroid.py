"""The class whose mean is nearest, by Euclidean distance: a baseline with nothing to choose."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline

from extract.errors import FxError
from heads.learner import Features, HeadKind, Learner, Scores


class Centroid(Learner):
    """scikit-learn's nearest centroid; the grid's one value means nothing."""

    calibrated_search = True
    choice_text = ""
    weights = ("centroids_",)
    fitted = (
        *("classify.centroids_ kd", "classify.class_prior_ k"),
        "classify.within_class_std_dev_ d",
    )

    def estimator(self, c: float) -> NearestCentroid:
        """Make scikit-learn's own classifier."""
        return NearestCentroid()

    def check_c(self, c: float, fewest: int) -> None:
        """Refuse a value, which would change nothing."""
        raise FxError(f"centroid has nothing to choose; got {c:g}; leave it out")

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Fit scikit-learn's own classifier."""
        with warnings.catch_warnings():  # of features that are silent in a class
            warnings.simplefilter("ignore")
            return super().fit(features, names, c, jobs=jobs)

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Log densities, but for a constant, of normal classes that all spread alike on all sides.

        The spread is that of the centroids themselves, so that it needs nothing but them.
        """
        centroids = pipeline["classify"].centroids_.astype(np.float64)
        # a row's squared distance less its own squared length, which is the same for every class
        rows = pipeline["normalize"].transform(features)
        distances = np.square(centroids).sum(axis=1) - 2 * rows @ centroids.T
        return np.asarray(-distances / (2 * max(centroids.var(axis=0).sum(), 1e-12)))


HEAD = HeadKind("centroid", {None: Centroid})
