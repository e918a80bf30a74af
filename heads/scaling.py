"""Normalisation of features, as plain scikit-learn transformers fitted on the fitting rows alone.

No feature is divided by less than the features' typical spread.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from extract.errors import FxError

NORMALISATIONS = ("standard", "l2", "none")


def fit_normaliser(
    name: str, features: NDArray[Any]
) -> StandardScaler | Normalizer | FunctionTransformer:
    """Fit a normalisation on rows of shape (n, d).

    ``standard`` is `standardiser`; ``l2`` gives every row the length 1; ``none`` changes nothing.

    Raises
    ------
    FxError
        Where the name is none of these.
    """
    if name == "standard":
        return standardiser(features)
    if name == "l2":
        return Normalizer().fit(features)
    if name == "none":
        return FunctionTransformer().fit(features)
    raise FxError(f"unknown normalisation {name!r}; choose {', '.join(NORMALISATIONS)} or auto")


def standardiser(features: NDArray[Any]) -> StandardScaler:
    """Fit a scaler whose scale is at least the root mean square of all standard deviations.

    A feature that is silent in all but a few training rows (many are, behind a ReLU) has next to
    no spread there, and by its own standard deviation a test row that it speaks in would be
    hundreds of deviations away. With 100 of scikit-learn's digits (efficientnet_lite0 at 96 pixels,
    best C, mean of three draws) the floor raised the RBF SVM's accuracy from 0.57 to 0.84 and
    lowered the log loss of logistic regression from 1.01 to 0.43; on 40 to 1,000 CIFAR-10 images
    of four classes (mobilenet_v2 at 224) it raised accuracies by 0 to 0.02.

    Parameters
    ----------
    features : float array of shape (n, d), the fitting rows alone

    Returns
    -------
    scaler : a plain StandardScaler, fitted
    """
    scaler = StandardScaler().fit(features)
    scaler.scale_ = np.maximum(scaler.scale_, np.sqrt(scaler.var_.mean()))
    return scaler
