"""Calibration error: how far confidence and accuracy lie apart."""

import numpy as np
from numpy.typing import NDArray

from heads.calibration import calibration_error
from heads.metrics import Metric


def _ece(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return calibration_error(probabilities, labels)


METRIC = Metric("ece", "calibration error", _ece, higher_is_better=False, needs_probabilities=True)
