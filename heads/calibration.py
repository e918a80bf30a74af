"""One calibration for every head: scores divided by a temperature, fitted on held-out scores.

A temperature leaves the ranking of the classes as it is (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017), so that it changes no prediction and folds into linear weights.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from heads.metrics import expected_calibration_error

COOLEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """The temperature of a head, and what it did to the held-out rows it was fitted on.

    Attributes
    ----------
    temperature : float, what scores are divided by
    log_loss_before, log_loss_after, ece_before, ece_after : float, on the held-out rows
    method : str
    """

    temperature: float
    log_loss_before: float
    log_loss_after: float
    ece_before: float
    ece_after: float
    method: str = "temperature"

    def as_dict(self) -> dict[str, Any]:
        """Turn into what JSON can hold."""
        return asdict(self)


def log_losses(scores: NDArray[np.float64], labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """-log softmax(scores)[label] of every row: shapes (n, k) and (n,) to (n,)."""
    losses: NDArray[np.float64] = -log_softmax(scores, axis=1)[np.arange(len(labels)), labels]
    return losses


def fit_temperature(scores: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    """Find the temperature with the least log loss on held-out rows.

    Where the least lies at the end of the range, the rows do not determine it (none is mistaken,
    or none is told right), and the temperature stays 1.

    Parameters
    ----------
    scores : float64 array of shape (n, k), of rows that the scoring models were not fitted on
    labels : int array of shape (n,)
    """
    ends = np.log([COOLEST, HOTTEST])

    def loss(log_temperature: float) -> float:
        return float(log_losses(scores * np.exp(-log_temperature), labels).mean())

    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    if min(loss(end) for end in ends) <= found.fun + 1e-6:
        return 1.0
    return float(np.exp(found.x))


def calibrate(scores: NDArray[np.float64], labels: NDArray[np.intp]) -> Calibration:
    """Fit the temperature on held-out scores (n, k), and measure them before and after."""
    temperature = fit_temperature(scores, labels)
    cooled = scores / temperature
    return Calibration(
        temperature=temperature,
        log_loss_before=float(log_losses(scores, labels).mean()),
        log_loss_after=float(log_losses(cooled, labels).mean()),
        ece_before=expected_calibration_error(softmax(scores, axis=1), labels),
        ece_after=expected_calibration_error(softmax(cooled, axis=1), labels),
    )
