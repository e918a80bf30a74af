"""Principal axes of rows, along which a logistic regression's curvature is nearly diagonal."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Array = NDArray[Any]

AXES_ROWS = 2560  # that axes are estimated from, where any will do
LEAST_ENERGY = 1e-10  # of an axis that rows span, as a share of the largest
# by scipy's LAPACK, in half of the time that numpy's takes for the same routine
_eigh = partial(eigh, driver="evd", check_finite=False)


def principal_axes(rows: Array, *, complete: bool) -> Array:
    """Find the principal axes of rows.

    Parameters
    ----------
    rows : float array of shape (n, d), centred
    complete : whether to find d axes, though the rows span fewer: they are a sample of others

    Returns
    -------
    basis : float array of shape (d, r), orthonormal, r < n where it is not complete, else d
    """
    if complete:
        return np.asarray(_eigh(rows.T @ rows)[1])
    # in float64, since rounding would spoil axes of little energy
    double = rows.astype(np.float64)
    energy, left = _eigh(double @ double.T)
    spanned = energy > LEAST_ENERGY * energy[-1]
    basis = double.T @ (left[:, spanned] / np.sqrt(energy[spanned]))
    return np.asarray(basis.astype(rows.dtype))
