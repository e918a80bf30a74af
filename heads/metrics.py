"""What a classifier reached on rows that chose nothing: counts, losses, an interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.metrics import log_loss as mean_log_loss
from statsmodels.stats.proportion import proportion_confint

from extract.errors import FxError

CALIBRATION_BINS = 15


TOP = 5  # most probable classes, where there are more than TOP_AMONG
TOP_AMONG = 10


@dataclass(frozen=True)
class Metrics:
    """Measures of one set of predicted probabilities.

    Attributes
    ----------
    accuracy : float, share of rows whose most probable class is the true one
    accuracy_ci : list of two floats, its 95 % interval: Wilson's, or that of `measured_by`
    majority : float, accuracy of always naming the class that most of the rows have
    balanced_accuracy : float, mean recall of the classes that have test rows
    macro_f1 : float, mean F1 of the classes that have test rows or predictions
    top5 : float, share of rows with the true class among the five most probable; None for ten
        classes or fewer
    log_loss : float, mean of -log(probability of the true class), in nats
    ece : float, expected calibration error
    per_class : list of dicts: class, precision, recall (None where nothing is to divide by), n_test
    reliability : list of [mean confidence, accuracy, rows], of the bins of `ece`
    reliability_uncalibrated : the same before calibration; empty where that is not known
    n_test : int, rows
    confusion : list of lists of int, rows are true classes, columns predicted ones
    measured_by : str, how the rows came to be ones that chose nothing
    """

    accuracy: float
    accuracy_ci: list[float]
    majority: float
    balanced_accuracy: float
    macro_f1: float
    top5: float | None
    log_loss: float
    ece: float
    per_class: list[dict[str, str | int | float | None]]
    reliability: list[list[float]]
    reliability_uncalibrated: list[list[float]]
    n_test: int
    confusion: list[list[int]]
    measured_by: str = "test rows"

    def as_dict(self) -> dict[str, Any]:
        """Turn into what JSON can hold."""
        return asdict(self)


def evaluate(
    probabilities: NDArray[np.floating[Any]],
    y: NDArray[np.integer[Any]],
    classes: Sequence[str],
    *,
    uncalibrated: NDArray[np.floating[Any]] | None = None,
) -> Metrics:
    """Measure predicted probabilities against the true classes.

    Parameters
    ----------
    probabilities : float array of shape (n, k), rows summing to one
    y : int array of shape (n,), the true class of each row as a position in `classes`
    classes : k names; some may have no row
    uncalibrated : float array of shape (n, k), optional; the probabilities before calibration

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
    confusion = confusion_matrix(y, predicted, labels=np.arange(k))
    precision, recall, f1, support = precision_recall_fscore_support(
        y, predicted, labels=np.arange(k), zero_division=np.nan
    )
    top = np.argsort(-p, axis=1, kind="stable")[:, :TOP]
    return Metrics(
        accuracy=correct / n,
        accuracy_ci=[float(low), float(high)],
        majority=float(support.max() / n),
        balanced_accuracy=float(recall[support > 0].mean()),
        macro_f1=float(f1[(support > 0) | (confusion.sum(axis=0) > 0)].mean()),
        top5=float((top == y[:, None]).any(axis=1).mean()) if k > TOP_AMONG else None,
        log_loss=float(mean_log_loss(y, p, labels=np.arange(k))),
        ece=expected_calibration_error(p, y),
        per_class=[
            {"class": name, "precision": _known(one), "recall": _known(other), "n_test": int(rows)}
            for name, one, other, rows in zip(classes, precision, recall, support, strict=True)
        ],
        reliability=reliability_bins(p, y),
        reliability_uncalibrated=[] if uncalibrated is None else reliability_bins(uncalibrated, y),
        n_test=n,
        confusion=confusion.tolist(),
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


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
    found = reliability_bins(probabilities, y, bins=bins)
    return sum(rows * abs(accuracy - confidence) for confidence, accuracy, rows in found) / len(y)


def reliability_bins(
    probabilities: NDArray[np.floating[Any]],
    y: NDArray[np.integer[Any]],
    *,
    bins: int = CALIBRATION_BINS,
) -> list[list[float]]:
    """Mean confidence, accuracy and number of rows, of bins of equally many rows.

    Parameters are those of `expected_calibration_error`.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return [
        [float(confidence[part].mean()), float(correct[part].mean()), len(part)] for part in parts
    ]
