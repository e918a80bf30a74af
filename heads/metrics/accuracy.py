"""Accuracy: the share of rows whose most probable class is the true one."""

import numpy as np
from numpy.typing import NDArray

from heads.metrics import Metric


def _right(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(probabilities.argmax(axis=1) == labels, np.float64)


def _accuracy(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return float(_right(labels, probabilities).mean())


METRIC = Metric("accuracy", "accuracy", _accuracy, per_image=_right, is_share=True)
