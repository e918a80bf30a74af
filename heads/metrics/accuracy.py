"""Accuracy: the share of rows whose most probable class is the true one."""

import numpy as np
from numpy.typing import NDArray

from heads.metrics import Metric


def _accuracy(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


METRIC = Metric("accuracy", "accuracy", _accuracy)
