"""Principal axes of rows, and how far each fold's rows are spread along and across them.

The curvature of a logistic regression is estimated from them. They only speed it up, so that a
sample of the rows and float32 will do.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Array = NDArray[Any]

MAX_ROWS = 2560  # that axes and spread are estimated from
MAX_DEVIATIONS = 20  # at which values are clipped: outliers say nothing of an axis


def principal_axes(rows: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Find the axes of the rows as most folds standardise them.

    Not as the fold of the least spread does: what is an outlier there would pass for an axis.

    Parameters
    ----------
    rows : float32 array of shape (n, d)
    scale, shift : float arrays of shape (q, 1, d), from `rows` to a fold's standardised rows

    Returns
    -------
    basis : float32 array of shape (d, r), orthonormal
    spread : float32 array of shape (1, 1, r), mean square of the rows along each axis
    """
    sample = _standardised(_some(rows), np.median(scale, axis=0), np.median(shift, axis=0))
    sample = sample.clip(-MAX_DEVIATIONS, MAX_DEVIATIONS)
    n, d = sample.shape
    if n < d:
        energy, left = _eigenvectors(sample @ sample.T)
        spanned = energy > 1e-6 * energy[-1]
        # largest first, then made orthonormal, which rounding has spoilt for the small ones
        energy, left = energy[spanned][::-1], left[:, spanned][:, ::-1]
        basis = np.linalg.qr(sample.T @ (left / np.sqrt(energy)))[0]
    else:
        energy, basis = _eigenvectors(sample.T @ sample)
    return basis, np.maximum(energy, 0)[None, None] / n


def spread_of_folds(
    rows: Array, fitting: Array, scale: Array, shift: Array, basis: Array
) -> tuple[Array, Array]:
    """Measure the spread of each fold's own rows.

    Parameters
    ----------
    rows, scale, shift : as in `principal_axes`
    fitting : float array of shape (q, 1, n), 0 where a row is held out
    basis : float32 array of shape (d, r), orthonormal

    Returns
    -------
    spread : float32 array of shape (q, 1, r), mean square along each axis
    across : float32 array of shape (q, 1, 1), mean square of what is left of the rows
    """
    spread, across = [], []
    for side, *fold in zip(fitting, scale, shift, strict=True):
        own = _standardised(rows[_some(np.flatnonzero(side[0]))], *fold)
        along = np.square(own @ basis).mean(axis=0, keepdims=True)
        whole = np.square(own).mean(axis=0).sum(keepdims=True)
        spread.append(along)
        across.append(np.maximum(whole - along.sum(axis=1, keepdims=True), 0))
    return np.stack(spread), np.stack(across)


def _some(rows: Array) -> Array:
    return rows[:: -(-len(rows) // MAX_ROWS)]


def _standardised(rows: Array, scale: Array, shift: Array) -> Array:
    return np.asarray((rows - shift.astype(rows.dtype)) * scale.astype(rows.dtype))


def _eigenvectors(symmetric: Array) -> tuple[Array, Array]:
    """Decompose by scipy's LAPACK, in half of the time that numpy's takes for the same routine."""
    energy, vectors = eigh(symmetric, driver="evd", check_finite=False)
    return energy, vectors
