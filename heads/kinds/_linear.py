"""Linear classifiers with an L2 penalty: one search, and a fit in memory or of rows on a disk.

Rows on a disk are read anew for every product with the weights: memory holds a chunk a thread.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from heads.calibration import log_losses
from heads.learner import (
    STEP,
    Features,
    Labels,
    Scores,
    StreamingLearner,
    Trial,
    fit_normaliser,
    standardiser,
)
from heads.solver import (
    AXES_ROWS,
    BLOCK,
    Map,
    Problem,
    RowsOnDisk,
    StreamedRows,
    along_path,
    blocks_of,
    principal_axes,
)

Weights = NDArray[np.floating[Any]]

# held-out log loss near the best C is then right to about 0.001, to 0.01 with a few dozen rows
SEARCH_TOLERANCE = 0.01
FINAL_TOLERANCE = 5e-4
FINAL_LOGIT_TOL = 3e-4  # as good: on all sets that were tried, coefficients had an error as small
NEAR_LOGIT_TOL = 2e-3  # at which float64 takes over
FIRST_C = 1e-3  # where a path begins: a leap takes more iterations, or has no end
# What logits may still have to move. Above the best C weights grow without telling more, and to
# find them to SEARCH_TOLERANCE took 20,000 rows of four classes 227 s, where 9 s do.
LOGIT_TOL = 0.015
PRUNE_RATIO = 1.1  # times the least log loss; from there on C is solved roughly, for the plot alone
ROUGH_LOGIT_TOL = 0.1
# Iterations for a C: the hardest sets took 60, but where a plane tells all rows apart weights grow
# for ever, and float32 ends before they do.
SEARCH_MAX_ITER = 100


@dataclass(frozen=True)
class _Rows:
    """How the rows of a problem are made of features: normalised, centred, scaled, along axes.

    The unit makes a column about 1. With x = unit x', w' = unit w: the penalty |w|^2 / (2 C) is
    |w'|^2 / (2 C unit^2).

    Attributes
    ----------
    normaliser : fitted on the features that the problem is about
    mean : float array of shape (d,), of their normalised rows
    unit : float
    axes : float32 array of shape (d, r), orthonormal
    """

    normaliser: BaseEstimator
    mean: Weights
    unit: float
    axes: Weights

    @classmethod
    def of(cls, features: Features, normalize: str, axes: Weights | None = None) -> "_Rows":
        """Learn it, and the axes where none are given."""
        n, d = features.shape
        normaliser = fit_normaliser(normalize, features)
        mean, unit = np.zeros(d, np.float32), 1.0
        if normalize != "standard":
            mean, unit = _mean_and_unit(normaliser, (features[one] for one in blocks_of(n, BLOCK)))
        rows = cls(normaliser, mean, unit, np.empty((d, 0), np.float32))
        if axes is None:
            some = features[:: -(-n // AXES_ROWS)] if n >= d else features
            axes = principal_axes(rows.prepared(some), complete=n >= d)
        return replace(rows, axes=axes)

    @classmethod
    def on_disk(cls, features: RowsOnDisk, normalize: str, axes: Weights) -> "_Rows":
        """Learn it from rows that are read once, a chunk at a time."""
        parts = (features[chunk] for chunk in features.chunks)
        if normalize == "standard":
            return cls(standardiser(parts), np.zeros(features.shape[1], np.float32), 1.0, axes)
        normaliser = fit_normaliser(normalize, features[features.chunks[0][:1]])
        return cls(normaliser, *_mean_and_unit(normaliser, parts), axes)

    def prepared(self, features: Features) -> Weights:
        """Normalise features (n, d), centre and scale them: float32 of the same shape."""
        return np.asarray((self.normaliser.transform(features) - self.mean) / np.float32(self.unit))

    def along_axes(self, features: Features, over: Map = map) -> Weights:
        """Make rows of features (n, d): float32 of shape (n, r + 1), the last column 1."""
        made = np.ones((len(features), self.axes.shape[1] + 1), np.float32)

        def part(block: slice) -> None:
            made[block, :-1] = self.prepared(features[block]) @ self.axes

        deque(over(part, blocks_of(len(features), BLOCK)), maxlen=0)
        return made

    def to_features(self, weights: Weights) -> tuple[Weights, Weights]:
        """Give weights (k, r + 1) as coefficients (k, d) of normalised features, and intercepts."""
        coefficients = weights[:, :-1] @ self.axes.T / self.unit
        return coefficients, weights[:, -1] - coefficients @ self.mean

    def from_features(self, coefficients: Weights, intercepts: Weights) -> Weights:
        """Give coefficients (k, d) and intercepts (k,) as weights (k, r + 1), along these axes."""
        along = coefficients @ self.axes * self.unit
        return np.column_stack([along, intercepts + coefficients @ self.mean])


@dataclass
class _Search:
    """What a search has solved: where a longer grid and the refit begin.

    Attributes
    ----------
    trial : Trial, that it is about
    axes : float32 array of shape (d, r), of all folds; None where each fold has its own
    latest : for every fold the last C, and the latest three solutions, the latest first
    first_fold : for every C the first fold's coefficients (k, d) and intercepts (k,)
    """

    trial: Trial
    axes: Weights | None
    latest: dict[int, tuple[float, list[Weights]]] = field(default_factory=dict)
    first_fold: dict[float, tuple[Weights, Weights]] = field(default_factory=dict)


class LinearLearner(StreamingLearner):
    """A linear classifier, folds side by side.

    Attributes
    ----------
    problem : its loss
    sharpness : factor of its scores that makes them about logits, while it is searched
    share : of two classes, the second one's coefficients over those that scikit-learn keeps; the
        first one has their negatives
    """

    extensible = True
    is_linear = True
    problem: ClassVar[type[Problem]]
    sharpness: ClassVar[float]
    share: ClassVar[float]
    # of the one search that it is in, and of the refit that follows
    _search: _Search | None = None

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Solve each fold along its path, in float32; a grid that is extended goes on there."""
        if self._search is None or self._search.trial is not trial:
            self._search = _Search(trial, self._common_axes(trial))
        side_by_side = min(trial.jobs, len(trial.splits))
        scores_of = partial(self._scores_of_fold, self._search, cs, trial.jobs // side_by_side)
        scores = []
        with ThreadPoolExecutor(side_by_side) as pool:
            for of_fold in pool.map(scores_of, range(len(trial.splits))):
                scores.append(of_fold)
                trial.tick(len(cs))
        return [list(of_c) for of_c in zip(*scores, strict=True)]

    def _common_axes(self, trial: Trial) -> Weights | None:
        """Give axes that span the rows of every fold, where any axes do."""
        first, d = trial.splits[0][0], trial.features.shape[1]
        if min(len(fitting) for fitting, _ in trial.splits) < d:
            return None
        some = trial.features[first[:: max(1, len(first) // max(AXES_ROWS, d))]]
        return _Rows.of(some, self.normalize).axes

    def _scores_of_fold(
        self, search: _Search, cs: Sequence[float], jobs: int, number: int
    ) -> list[Scores]:
        """Score the rows that a fold holds out, for every C."""
        trial = search.trial
        fitting, rest = trial.splits[number]
        scores: list[Scores] = []
        losses: list[float] = []

        def logit_tolerance() -> float:
            prune = bool(losses) and losses[-1] > PRUNE_RATIO * min(losses)
            return ROUGH_LOGIT_TOL if prune else LOGIT_TOL

        with _pool(jobs, len(fitting)) as over:
            rows, problem = self._problem(
                trial.features[fitting], trial.labels[fitting], search.axes, over
            )
            held_out = rows.along_axes(trial.features[rest])
            scaled = [c * rows.unit**2 for c in cs]
            last, latest = search.latest.get(number, (0.0, []))
            before: list[float] = []
            if not math.isclose(cs[0], last * STEP):
                before, latest = _up_to(scaled[0])[:-1], []
            path = along_path(
                problem,
                [*before, *scaled],
                tolerance=SEARCH_TOLERANCE,
                logit_tolerance=logit_tolerance,
                start=latest,
                max_iterations=SEARCH_MAX_ITER,
                precise=False,
            )
            for c, weights in zip([*[None] * len(before), *cs], path, strict=True):
                latest = [weights, *latest[:2]]
                if c is None:
                    continue
                found = (held_out @ weights.T).astype(np.float64)
                losses.append(float(log_losses(self.sharpness * found, trial.labels[rest]).mean()))
                # of two classes `Learner.scores` gives each half of what scikit-learn keeps
                scores.append(found / (2 * self.share) if len(weights) == 2 else found)
                if number == 0:
                    search.first_fold[c] = rows.to_features(weights)
            search.latest[number] = cs[-1], latest
        return scores

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Solve to a relative error of the coefficients of about FINAL_TOLERANCE, in float64."""
        classes, labels = np.unique(names, return_inverse=True)
        search, self._search = self._search, None
        axes = search.axes if search else None
        near = search.first_fold.get(c) if search else None
        with _pool(jobs, len(labels)) as over:
            rows, problem = self._problem(features, labels, axes, over)
            path = _up_to(c * rows.unit**2)[-1 if near else 0 :]
            tolerances = iter([*[LOGIT_TOL] * (len(path) - 1), NEAR_LOGIT_TOL])
            *_, single = along_path(
                problem,
                path,
                tolerance=FINAL_TOLERANCE,
                logit_tolerance=partial(next, tolerances),
                start=[rows.from_features(*near)] if near else (),
                max_iterations=SEARCH_MAX_ITER,
                precise=False,
            )
            double = problem.cast(np.float64)
            (weights,) = along_path(
                double,
                path[-1:],
                tolerance=FINAL_TOLERANCE,
                logit_tolerance=lambda: FINAL_LOGIT_TOL,
                start=[single],
            )
        return self._pipeline(rows, weights, classes, c)

    def fit_on_disk(
        self,
        features: RowsOnDisk,
        labels: Labels,
        c: float,
        *,
        like: Pipeline,
        sample: Features,
        jobs: int,
    ) -> Pipeline:
        """Solve in float32, the weights along axes and the rows as they are."""
        of_sample = _Rows.of(sample, self.normalize)
        along_axes = of_sample.along_axes(sample)
        rows = _Rows.on_disk(features, self.normalize, of_sample.axes)
        axes = np.pad(rows.axes, (0, 1))  # the last column, of ones, is as it is
        axes[-1, -1] = 1
        threads = Parallel(jobs, backend="threading", return_as="generator")
        problem = self.problem(
            StreamedRows(features, rows.prepared),
            labels,
            compute_sample_weight(self.class_weight, labels).astype(np.float32),
            np.square(along_axes).mean(axis=0),
            lambda part, blocks: threads(delayed(part)(block) for block in blocks),
            axes,
        )
        classifier = like["classify"]
        coefficients, intercepts = classifier.coef_, classifier.intercept_
        if len(coefficients) == 1:
            both = self.share * np.array([[-1], [1]])
            coefficients, intercepts = both * coefficients, both[:, 0] * intercepts
        (weights,) = along_path(
            problem,
            [c * rows.unit**2],
            tolerance=FINAL_TOLERANCE,
            logit_tolerance=lambda: NEAR_LOGIT_TOL,
            start=[rows.from_features(coefficients, intercepts)],
            max_iterations=SEARCH_MAX_ITER,
        )
        return self._pipeline(rows, weights.astype(np.float64), classifier.classes_, c)

    def _pipeline(
        self, rows: _Rows, weights: Weights, classes: NDArray[np.generic], c: float
    ) -> Pipeline:
        coefficients, intercepts = rows.to_features(weights)
        if len(classes) == 2:  # scikit-learn keeps one vector
            coefficients, intercepts = (
                (one[1:] - one[:1]) / (2 * self.share) for one in (coefficients, intercepts)
            )
        classifier = self.estimator(c)
        classifier.classes_ = classes
        classifier.coef_, classifier.intercept_ = coefficients, intercepts
        classifier.n_features_in_ = coefficients.shape[1]
        return Pipeline([("normalize", rows.normaliser), ("classify", classifier)])

    def _problem(
        self, features: Features, labels: Labels, axes: Weights | None, over: Map
    ) -> tuple[_Rows, Problem]:
        if axes is not None and len(features) < len(axes):
            axes = None
        rows = _Rows.of(features, self.normalize, axes)
        weights = compute_sample_weight(self.class_weight, labels)
        return rows, self.problem.of(rows.along_axes(features, over), labels, weights, over=over)


def _mean_and_unit(normaliser: BaseEstimator, parts: Iterable[Features]) -> tuple[Weights, float]:
    """Measure the mean of rows that are given in parts, and the unit that makes them about 1."""
    moments = StandardScaler()
    for part in parts:
        moments.partial_fit(normaliser.transform(part))
    return moments.mean_.astype(np.float32), max(float(np.sqrt(moments.var_.mean())), 1e-12)


def _up_to(c: float) -> list[float]:
    """Values in equal ratios from about FIRST_C to the one given."""
    steps = max(0, round(float(np.log(c / FIRST_C) / np.log(STEP))))
    return [c / STEP**step for step in range(steps, -1, -1)]


@contextmanager
def _pool(jobs: int, rows: int) -> Iterator[Map]:
    """Give what maps over blocks of so many rows, in threads where there are several of both."""
    if jobs == 1 or rows <= BLOCK:  # threads would cost more than they bring
        yield map
    else:
        with ThreadPoolExecutor(jobs) as pool:
            yield pool.map
