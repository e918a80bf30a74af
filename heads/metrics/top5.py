"""Top 5: the share of rows with the true class among the five most probable, of more than ten."""

import numpy as np
from numpy.typing import NDArray

from heads.metrics import Metric

TOP = 5
TOP_AMONG = 10  # classes, up to which it is not defined


def _top5(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    if probabilities.shape[1] <= TOP_AMONG:
        return float("nan")
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return float((top == labels[:, None]).any(axis=1).mean())


METRIC = Metric("top5", "top 5", _top5, needs_probabilities=True)
