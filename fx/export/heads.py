"""Heads as torch modules: features to calibrated probabilities, as scikit-learn computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import nn
from torch.nn import functional

from extract.errors import FxError
from heads.calibration import SHARPNESS, pair_weights
from heads.head import Head


class HeadModule(nn.Module):
    """A fitted head: features (n, d) to calibrated probabilities (n, k).

    In float64 they are scikit-learn's within 1e-5, and so those of ``Head.predict_proba``, but for
    the Nyström map, which that computes in float32. Nearest neighbours are others where training
    rows are equally far.

    Parameters
    ----------
    head : of a kind that fx has
    dtype : of its numbers, and of what it takes and gives

    Raises
    ------
    FxError
        If the head is of another kind.
    """

    def __init__(self, head: Head, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        normaliser, *steps = head.pipeline
        self.steps = nn.Sequential(_normalisation(normaliser), *map(_scoring, steps)).to(dtype)
        self.temperature = head.calibration.temperature

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (n, d) to probabilities (n, k)."""
        return torch.softmax(self.steps(features) / self.temperature, dim=1)


class _Arrays(nn.Module):
    """Has arrays for buffers."""

    def __init__(self, **arrays: ArrayLike) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))

    # of nn.Module's attributes, these have buffers alone
    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class _Standardise(_Arrays):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.div(rows - self.mean, self.scale)


class _ToUnitLength(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows / torch.where(lengths == 0, torch.ones_like(lengths), lengths)


class _Linear(_Arrays):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, self.weight, self.bias)


class _RbfKernel(_Arrays):
    """exp(-gamma |x - v|^2) of rows x and vectors v."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.exp(-self.gamma * _squared_distances(rows, self.vectors))


class _PairwiseScores(_Arrays):
    """``heads.calibration.pairwise_scores``, of margins of shape (n, k (k - 1) / 2)."""

    def __init__(self, classes: int) -> None:
        first, second = np.triu_indices(classes, 1)
        super().__init__(first=first, second=second)
        self.classes = classes

    def forward(self, margins: torch.Tensor) -> torch.Tensor:
        none = margins.new_zeros(len(margins), self.classes)
        won = none.index_add(1, self.first, functional.logsigmoid(SHARPNESS * margins))
        return won.index_add(1, self.second, functional.logsigmoid(-SHARPNESS * margins))


class _Votes(_Arrays):
    """Logarithms of the shares of the nearest rows' labels, as ``heads.kinds.knn`` smooths them."""

    def __init__(self, neighbours: int, **arrays: ArrayLike) -> None:
        super().__init__(**arrays)
        self.neighbours = neighbours

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        distances = _squared_distances(rows, self.known)
        nearest = torch.topk(distances, self.neighbours, dim=1, largest=False, sorted=False).indices
        # rows of 1 at the label, and 0 elsewhere
        votes = self.labels[nearest].sum(dim=1)
        return torch.log((votes + 1 / votes.shape[1]) / (self.neighbours + 1))


def _squared_distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Squared distances of rows (n, d) and others (m, d): shape (n, m)."""
    squares = rows.square().sum(dim=1, keepdim=True) + others.square().sum(dim=1)
    # a row from itself may round below zero
    return torch.clamp(squares - 2 * rows @ others.T, min=0)


def _normalisation(step: object) -> nn.Module:
    if isinstance(step, StandardScaler):
        return _Standardise(mean=step.mean_, scale=step.scale_)
    return _ToUnitLength() if isinstance(step, Normalizer) else nn.Identity()


def _scoring(step: object) -> nn.Module:
    """Make of a fitted map, or classifier, what gives its map, or the head's scores."""
    if isinstance(step, Nystroem):
        kernel = _RbfKernel(gamma=step.gamma, vectors=step.components_)
        projection = _Linear(weight=step.normalization_, bias=np.zeros(len(step.normalization_)))
        return nn.Sequential(kernel, projection)
    if isinstance(step, LogisticRegression | LinearSVC):
        return _of_both_signs(step.coef_, step.intercept_, 1 / 2)
    if isinstance(step, RidgeClassifier):
        coefficients = np.atleast_2d(step.coef_)
        return _of_both_signs(coefficients, step.intercept_, 1, SHARPNESS)
    if isinstance(step, SVC):
        return _machine(step)
    if isinstance(step, NearestCentroid):
        # a row's squared distance less its own squared length, over the variance of the centroids
        centroids = step.centroids_.astype(np.float64)
        spread = max(centroids.var(axis=0).sum(), 1e-12)
        return _Linear(weight=centroids / spread, bias=-np.square(centroids).sum(1) / (2 * spread))
    if isinstance(step, KNeighborsClassifier):
        labels = np.eye(len(step.classes_))[step._y]
        return _Votes(step.n_neighbors, known=step._fit_X, labels=labels)
    raise FxError(f"a head of {type(step).__name__} cannot be exported")


def _of_both_signs(
    weight: ArrayLike, bias: ArrayLike, share: float, sharpness: float = 1
) -> nn.Module:
    """Make a linear layer; of two classes scikit-learn has one vector, whose share is each way."""
    weight, bias = sharpness * np.asarray(weight), sharpness * np.atleast_1d(bias)
    if len(weight) == 1:
        weight, bias = (share * np.concatenate([-one, one]) for one in (weight, bias))
    return _Linear(weight=weight, bias=bias)


def _machine(machine: SVC) -> nn.Module:
    classes = len(machine.n_support_)
    # of two classes a positive margin is the second one's
    sign = -1 if classes == 2 else 1
    weights = sign * pair_weights(machine)
    margins = _Linear(weight=weights.T, bias=sign * machine.intercept_)
    scores = _PairwiseScores(classes)
    vectors = machine.support_vectors_
    if machine.kernel == "linear":
        folded = _Linear(weight=weights.T @ vectors, bias=margins.bias.numpy())
        return nn.Sequential(folded, scores)
    return nn.Sequential(_RbfKernel(gamma=machine._gamma, vectors=vectors), margins, scores)
