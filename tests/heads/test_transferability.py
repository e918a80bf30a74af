"""Scores of features against independent references."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from heads.transferability import h_score, logme


def blobs(n: int, d: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return rng.normal(size=(n, d)) + apart * rng.normal(size=(3, d))[y], y


@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 50)])
def test_logme_is_the_greatest_evidence_of_a_normal_model(n: int, d: int) -> None:
    X, y = blobs(n, d, 0.5)

    def negative_evidence(logs: np.ndarray, target: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        covariance = np.eye(n) / beta + X @ X.T / alpha
        return -stats.multivariate_normal.logpdf(target, np.zeros(n), covariance)

    expected = []
    for k in range(3):
        target = (y == k).astype(float)
        starts = [minimize(negative_evidence, [a, 0.0], args=(target,)) for a in (-2.0, 1.0, 4.0)]
        expected.append(-min(found.fun for found in starts) / n)
    assert logme(X, y) == pytest.approx(np.mean(expected), abs=2e-3)


def test_the_h_score_is_its_formula_where_rows_are_plenty() -> None:
    X, y = blobs(5000, 6, 0.7)
    centred = X - X.mean(axis=0)
    means = np.stack([centred[y == k].mean(axis=0) for k in y])
    expected = np.trace(np.linalg.inv(np.cov(centred.T)) @ np.cov(means.T))
    assert h_score(X, y) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("score", [logme, h_score])
def test_features_that_tell_classes_apart_score_higher(score) -> None:
    scores = [score(*blobs(90, 40, apart)) for apart in (0.0, 0.5, 2.0)]
    assert scores == sorted(scores)
