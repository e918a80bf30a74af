"""Expected calibration error: the mean distance between confidence and accuracy."""

import numpy as np
from numpy.typing import NDArray

from heads.calibration import expected_calibration_error
from heads.metrics import Metric


def _ece(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    return expected_calibration_error(probabilities, labels)


METRIC = Metric("ece", "calibration error", _ece, higher_is_better=False, needs_probabilities=True)
