"""Macro F1: the mean F1 of the classes that have rows or predictions."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from heads.metrics import Metric


def _macro_f1(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return float(f1_score(labels, probabilities.argmax(axis=1), average="macro"))


def _per_image(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value, and to first order what each image's presence adds to it.

    The infinitesimal jackknife (B. Efron, "The Jackknife, the Bootstrap and Other Resampling
    Plans", 1982, chapter 6): their mean varies as over the bootstrap's samples, without its noise.
    """
    n, k = probabilities.shape
    predicted, true = np.eye(k)[probabilities.argmax(axis=1)], np.eye(k)[labels]
    named = predicted + true
    known = named.sum(axis=0) > 0
    right, named = (predicted * true)[:, known], named[:, known]
    f1 = 2 * right.sum(axis=0) / named.sum(axis=0)
    influence = (2 * right - f1 * named) / named.sum(axis=0)
    return np.asarray(f1.mean() + n * influence.mean(axis=1))


METRIC = Metric("macro_f1", "macro F1", _macro_f1, per_image=_per_image)
