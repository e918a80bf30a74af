"""The head that training starts from, and its weights in a linear layer."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extract.images import ImageRow, group_numbers
from heads.fitting import fit_head
from heads.head import Head

Features = Callable[[Sequence[bytes]], NDArray[np.float32]]


def starting_head(
    features: Features,
    rows: Sequence[ImageRow],
    *,
    class_weight: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Head:
    """Fit logistic regression on stored features, as stage two does.

    Parameters
    ----------
    features : gives the stored features of keys, float32 array of shape (len(keys), dim)
    rows : training rows
    class_weight : ``balanced`` or None
    seed : of the folds
    progress : called with fits done and in all
    """
    rows = by_path(rows)
    return fit_head(
        features([row.key for row in rows]),
        np.array([row.label for row in rows]),
        kind="logreg",
        class_weight=class_weight,
        groups=group_numbers(rows),
        seed=seed,
        progress=progress,
    )


def by_path(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Order rows as a snapshot has them, so that the folds are those of stage two."""
    return sorted(rows, key=lambda row: row.path)


def fold_into_classifier(head: Head, classifier: nn.Linear) -> None:
    """Write a head's standardisation, weights and temperature into a linear layer."""
    weight, bias = head.as_linear()
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(np.asarray(weight)))
        classifier.bias.copy_(torch.from_numpy(np.asarray(bias)))


def apply_temperature(classifier: nn.Linear, temperature: float) -> None:
    """Divide a linear layer's logits by a temperature, which changes no label."""
    with torch.no_grad():
        for tensor in classifier.parameters():
            tensor.div_(temperature)
