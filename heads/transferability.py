"""Scores of how well features may serve labels, without a search: LogME and the H-score.

They rank; they promise no accuracy. Published comparisons disagree on how well they rank.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve
from sklearn.covariance import ledoit_wolf

MAX_ITER, TOLERANCE = 100, 1e-4  # of the fixed point, the latter relative


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log of the maximum evidence of a linear model, a row and class; higher is better.

    K. You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (2021):
    for each class, labels are 0 or 1 with normal noise of precision beta, weights normal of
    precision alpha, and both precisions are those of the greatest evidence.

    Parameters
    ----------
    features : float array of shape (n, d)
    labels : array of shape (n,)
    """
    X = np.asarray(features, np.float64)
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    u, s, _ = np.linalg.svd(X, full_matrices=False)
    evidences = [_evidence((y == k).astype(float), u, s**2, X.shape) for k in range(len(classes))]
    return float(np.mean(evidences))


def _evidence(
    y: NDArray[np.float64],
    u: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
    shape: tuple[int, ...],
) -> float:
    n, d = shape
    projected = (u.T @ y) ** 2
    outside = max(float(y @ y - projected.sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(MAX_ITER):
        ratio = alpha / beta
        gamma = (eigenvalues / (eigenvalues + ratio)).sum()
        weights = (eigenvalues * projected / (eigenvalues + ratio) ** 2).sum()
        residual = (projected * (ratio / (eigenvalues + ratio)) ** 2).sum() + outside
        alpha, beta = gamma / max(weights, 1e-12), (n - gamma) / max(residual, 1e-12)
        if abs(alpha / beta - ratio) <= TOLERANCE * ratio:
            break
    ratio = alpha / beta
    weights = (eigenvalues * projected / (eigenvalues + ratio) ** 2).sum()
    residual = (projected * (ratio / (eigenvalues + ratio)) ** 2).sum() + outside
    determinant = np.log(alpha + beta * eigenvalues).sum()
    determinant += (d - len(eigenvalues)) * np.log(alpha)
    total = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi)
    total -= beta * residual + alpha * weights + determinant
    return float(total / (2 * n))


def h_score(features: ArrayLike, labels: ArrayLike) -> float:
    """Trace of the features' inverse covariance times that of their class means; higher is better.

    Y. Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning"
    (2019), with the covariance shrunk by Ledoit and Wolf's rule, without which it means nothing for
    fewer rows than columns: S. Ibrahim et al., "Newer is not always better" (2021).

    Parameters
    ----------
    features : float array of shape (n, d)
    labels : array of shape (n,)
    """
    X = np.asarray(features, np.float64)
    y = np.unique(np.asarray(labels), return_inverse=True)[1]
    X = X - X.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(X, assume_centered=True)
    counts = np.bincount(y)
    means = np.stack([X[y == k].mean(axis=0) for k in range(len(counts))])
    # of the covariance of the means, the trace of the product takes its few vectors alone
    distances = (means * solve(covariance, means.T, assume_a="pos").T).sum(axis=1)
    # the means shrink as the covariance does, as in Ibrahim et al.
    return float((1 - shrinkage) * (distances @ counts) / len(y))
