"""What a classifier reached on rows that chose nothing: counts, losses, an interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.metrics import log_loss as mean_log_loss
from statsmodels.stats.proportion import proportion_confint

from extract.errors import FxError

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Measures of one set of predicted probabilities.

    Attributes
    ----------
    accuracy : float, share of rows whose most probable class is the true one
    accuracy_ci : list of two floats, Wilson's 95 % interval of the accuracy
    macro_f1 : float, mean F1 of the classes that have test rows or predictions
    log_loss : float, mean of -log(probability of the true class), in nats
    ece : float, expected calibration error
    n_test : int, rows
    confusion : list of lists of int, rows are true classes, columns predicted ones
    """

    accuracy: float
    accuracy_ci: list[float]
    macro_f1: float
    log_loss: float
    ece: float
    n_test: int
    confusion: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Turn into what JSON can hold."""
        return asdict(self)


def evaluate(
    probabilities: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]], classes: Sequence[str]
) -> Metrics:
    """Measure predicted probabilities against the true classes.

    Parameters
    ----------
    probabilities : float array of shape (n, k), rows summing to one
    y : int array of shape (n,), the true class of each row as a position in `classes`
    classes : k names; some may have no row

    Returns
    -------
    metrics : Metrics

    Raises
    ------
    FxError
        Where there is no row.
    """
    n, k = len(y), len(classes)
    if not n:
        raise FxError("no test rows; got 0 labelled images to test on; give a test split")
    if probabilities.shape != (n, k):
        raise ValueError(f"probabilities must have shape {(n, k)}, got {probabilities.shape}")
    # float64, since rows of float32 sum to one too coarsely for scikit-learn's log loss
    p = probabilities.astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    predicted = p.argmax(axis=1)
    correct = int((predicted == y).sum())
    low, high = proportion_confint(correct, n, alpha=0.05, method="wilson")
    return Metrics(
        accuracy=correct / n,
        accuracy_ci=[float(low), float(high)],
        macro_f1=float(f1_score(y, predicted, average="macro")),
        log_loss=float(mean_log_loss(y, p, labels=np.arange(k))),
        ece=expected_calibration_error(p, y),
        n_test=n,
        confusion=confusion_matrix(y, predicted, labels=np.arange(k)).tolist(),
    )


def expected_calibration_error(
    probabilities: NDArray[np.floating[Any]],
    y: NDArray[np.integer[Any]],
    *,
    bins: int = CALIBRATION_BINS,
) -> float:
    """Mean distance between confidence and accuracy, over bins of equally many rows.

    ECE = sum over bins b of |b| / n * |accuracy(b) - confidence(b)|, where a row's confidence is
    its largest probability (Naeini, Cooper and Hauskrecht, AAAI 2015), with bins of equal mass
    (Nixon et al., "Measuring Calibration in Deep Learning", 2019).

    Parameters
    ----------
    probabilities : float array of shape (n, k)
    y : int array of shape (n,)
    bins : int, at most; fewer where there are fewer rows
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(part) * abs(correct[part].mean() - confidence[part].mean()) for part in parts]
    return float(sum(gaps) / len(order))
