"""Labels that may be wrong: what models that had not seen a row say against its label."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.head import OutOfFoldPredictions


@dataclass(frozen=True, eq=False)
class Doubts:
    """Rows, the most doubtful label first.

    Attributes
    ----------
    rows : int array of shape (n,), positions among the training rows, then the validation rows
    margins : float64 array of shape (n,), ascending
    suggested : int array of shape (n,), the most probable other class
    contradicted : bool array of shape (n,), whether the other class is convincing
    """

    rows: NDArray[np.intp]
    margins: NDArray[np.float64]
    suggested: NDArray[np.intp]
    contradicted: NDArray[np.bool_]


def doubt_labels(held_out: OutOfFoldPredictions) -> Doubts:
    """Rank rows by the probability of their label less that of the likeliest other class.

    A label is contradicted where another class reaches the mean probability that it has in rows
    labelled so, and the label does not reach its own (confident learning; C. Northcutt, L. Jiang
    and I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021).
    """
    p, labels = held_out.probabilities, held_out.labels
    n, k = p.shape
    own = p[np.arange(n), labels]
    others = p.copy()
    others[np.arange(n), labels] = -1
    suggested = others.argmax(axis=1)
    usual = np.array([p[labels == j, j].mean() if (labels == j).any() else 1 for j in range(k)])
    margins = own - others.max(axis=1)
    contradicted = (others.max(axis=1) >= usual[suggested]) & (own < usual[labels])
    order = np.argsort(margins, kind="stable")
    return Doubts(held_out.rows[order], margins[order], suggested[order], contradicted[order])
