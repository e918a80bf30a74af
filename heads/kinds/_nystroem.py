"""Support vector machines for many rows: least squares on a Nyström map of the RBF kernel.

The kernel is approximated from `LANDMARKS` of the rows (C. Williams and M. Seeger, "Using the
Nyström Method to Speed Up Kernel Machines", 2000), and the machine's loss is the squared distance
to +1 and -1, one class against the others (J. Suykens and J. Vandewalle, "Least Squares Support
Vector Machine Classifiers", 1999), of which one decomposition solves all values of C.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.class_weight import compute_sample_weight

from heads.calibration import SHARPNESS
from heads.learner import (
    Features,
    Learner,
    Scores,
    State,
    Trial,
    fit_normaliser,
    grid_of_c,
    scale_gamma,
)

Solutions = list[tuple[NDArray[np.float64], NDArray[np.float64]]]

NYSTROEM = "nystroem"
# On 20,000 images of four CIFAR-10 classes 1,024 were no better than logistic regression (0.894
# against 0.895), 2,048 were (0.905, at a lower log loss too).
LANDMARKS = 2048
CHUNK_SIZE = 2048  # rows mapped at a time, so that memory stays flat


class NystroemMachine(Learner):
    """Least-squares support vector machine, one class against the others; see the module."""

    calibrated_search = True
    extensible = True
    fitted = (
        *("map.components_ md", "map.normalization_ mm", "map.gamma"),
        *("classify.coef_ vm", "classify.intercept_ v"),
    )

    def estimator(self, c: float) -> RidgeClassifier:
        """Make scikit-learn's own least squares, with alpha = 1 / C."""
        return RidgeClassifier(alpha=1 / c, class_weight=self.class_weight)

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ten values; the kernel's gamma minds the rows' length already."""
        return grid_of_c(-2.5, "standard", features)

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Decompose the covariance of each fold's mapped rows once, for all values of C."""
        signs = 2 * np.eye(int(trial.labels.max()) + 1)[trial.labels] - 1
        by_fold = []
        for fitting, rest in trial.splits:
            known, others = trial.features[fitting], trial.features[rest]
            mapping = self._mapping(known)
            weights = compute_sample_weight(self.class_weight, trial.labels[fitting])
            moments = _moments(mapping, known, signs[fitting], weights, trial.jobs)
            solutions = _solve(*moments, cs)

            def margins(
                block: slice,
                others: Features = others,
                mapping: Pipeline = mapping,
                solutions: Solutions = solutions,
            ) -> list[Scores]:
                rows = _mapped(mapping, others[block])
                return [
                    SHARPNESS * (rows @ coefficients + intercepts)
                    for coefficients, intercepts in solutions
                ]

            parts = _over_blocks(margins, len(others), trial.jobs)
            by_fold.append([np.concatenate(of_c) for of_c in zip(*parts, strict=True)])
            trial.tick(len(cs))
        return [list(of_c) for of_c in zip(*by_fold, strict=True)]

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Fit scikit-learn's own classes, with gamma="scale" as SVC has it and alpha = 1 / C."""
        mapping = self._mapping(features)
        machine = self.estimator(c)
        parts = _over_blocks(lambda at: _mapped(mapping, features[at]), len(features), jobs)
        machine.fit(np.concatenate(list(parts)), names)
        return Pipeline([*mapping.steps, ("classify", machine)])

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Signed distances, sharpened; of two classes, the one and its negative."""

        def margins(block: slice) -> Scores:
            rows = _mapped(pipeline[:-1], features[block])
            return SHARPNESS * np.asarray(pipeline[-1].decision_function(rows), dtype=np.float64)

        scores = np.concatenate(list(_over_blocks(margins, len(features), cpu_count())))
        return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores

    def unfitted(self, c: float) -> Pipeline:
        """Put the map between the normaliser and the classifier."""
        normalize, classify = super().unfitted(c).steps
        return Pipeline([normalize, ("map", Nystroem()), classify])

    def state(self, pipeline: Pipeline) -> State:
        """Of two classes, scikit-learn's versions have one vector or a row of it."""
        state = super().state(pipeline)
        return {**state, "classify.coef_": np.atleast_2d(state["classify.coef_"])}

    def complete(self, pipeline: Pipeline, classes: NDArray[np.str_]) -> None:
        """Count the landmarks, and name the classes as RidgeClassifier does."""
        kernel, machine = pipeline["map"], pipeline["classify"]
        machine.n_features_in_ = kernel.n_components = kernel._n_features_out = len(
            kernel.components_
        )
        kernel.component_indices_ = np.arange(kernel.n_components)
        machine._label_binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(classes)
        vars(machine)["classes_"] = classes  # a property of scikit-learn 1.8, which takes the above

    def _mapping(self, features: Features) -> Pipeline:
        """Normaliser and map, fitted; the landmarks are drawn from the rows."""
        normaliser = fit_normaliser(self.normalize, features)
        rows = normaliser.transform(features)
        kernel = Nystroem(
            gamma=scale_gamma(rows), n_components=min(LANDMARKS, len(rows)), random_state=0
        )
        return Pipeline([("normalize", normaliser), ("map", kernel.fit(rows))])


def _mapped(mapping: Pipeline, features: Features) -> Features:
    """Map rows as scikit-learn does, (n, d) to (n, m), but all of it in float32."""
    kernel = mapping[-1]
    rows, landmarks = mapping[0].transform(features), kernel.components_
    distances = -2 * rows @ landmarks.T
    distances += np.square(rows).sum(axis=1)[:, None]
    distances += np.square(landmarks).sum(axis=1)
    np.maximum(distances, 0, out=distances)  # a row from itself may round below zero
    distances *= np.float32(-kernel.gamma)
    np.exp(distances, out=distances)
    return np.asarray(distances @ kernel.normalization_.T.astype(np.float32))


def _moments(
    mapping: Pipeline,
    features: Features,
    signs: NDArray[np.float64],
    weights: NDArray[np.float64],
    jobs: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """With mapped rows F (n, m) and weights D, both less their weighted means: F' D F and
    F' D signs; then the means of F and of the signs (n, k) themselves.
    """
    everything = np.concatenate([signs, np.ones((len(signs), 1))], axis=1)

    def part(block: slice) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = _mapped(mapping, features[block])
        weighted = rows * weights[block, None].astype(np.float32)
        return weighted.T @ rows, weighted.T @ everything[block]

    m = len(mapping[-1].components_)
    gram, cross = np.zeros((m, m)), np.zeros((m, everything.shape[1]))
    for of_block in _over_blocks(part, len(features), jobs):
        gram, cross = gram + of_block[0].astype(np.float64), cross + of_block[1]
    total = weights.sum()
    mean, mean_sign = cross[:, -1] / total, np.average(signs, axis=0, weights=weights)
    gram -= total * np.outer(mean, mean)
    return gram, cross[:, :-1] - total * np.outer(mean, mean_sign), mean, mean_sign


def _solve(
    gram: NDArray[np.float64],
    cross: NDArray[np.float64],
    mean: NDArray[np.float64],
    mean_sign: NDArray[np.float64],
    cs: Sequence[float],
) -> Solutions:
    """Solve ridge regression for all C: coefficients (gram + I / C)^-1 cross, and intercepts.

    The intercept, which is not penalised, is what the means leave.
    """
    energy, axes = np.linalg.eigh(gram)
    inside = axes.T @ cross
    solutions = []
    for c in cs:
        coefficients = axes @ (inside / (np.maximum(energy, 0) + 1 / c)[:, None])
        solutions.append((coefficients, mean_sign - mean @ coefficients))
    return solutions


def _over_blocks(function: Callable[[slice], Any], rows: int, jobs: int) -> Iterator[Any]:
    """Apply to blocks of rows, in order, in threads: a few blocks' results are there at once."""
    blocks = (slice(at, at + CHUNK_SIZE) for at in range(0, rows, CHUNK_SIZE))
    yield from Parallel(jobs, backend="threading", return_as="generator")(
        delayed(function)(block) for block in blocks
    )
