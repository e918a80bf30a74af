"""Macro F1: the mean F1 of the classes that have rows or predictions."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from heads.metrics import Metric


def _macro_f1(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return float(f1_score(labels, probabilities.argmax(axis=1), average="macro"))


METRIC = Metric("macro_f1", "macro F1", _macro_f1)
