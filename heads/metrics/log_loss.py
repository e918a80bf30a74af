"""Log loss: the mean of -log(probability of the true class), in nats."""

import numpy as np
from numpy.typing import NDArray

from heads.metrics import Metric


def _log_loss(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return float(_per_image(labels, probabilities).mean())


def _per_image(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    true = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(true, np.finfo(probabilities.dtype).eps)), np.float64)


METRIC = Metric(
    "log_loss",
    "log loss",
    _log_loss,
    higher_is_better=False,
    needs_probabilities=True,
    per_image=_per_image,
)
