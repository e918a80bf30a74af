"""Balanced accuracy: the mean recall of the classes that have rows."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import recall_score

from heads.metrics import Metric


def _balanced_accuracy(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    predicted, present = probabilities.argmax(axis=1), np.unique(labels)
    return float(recall_score(labels, predicted, labels=present, average="macro"))


METRIC = Metric("balanced_accuracy", "balanced accuracy", _balanced_accuracy)
