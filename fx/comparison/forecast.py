"""Learning curves: what more images would bring, as far as the measured sizes can tell.

An accuracy of n training images is taken to be 1 - (floor + scale * n ** -exponent), a power law
with an asymptote: of the forms in use the one that fits learning curves of classifiers best (T.
Viering and M. Loog, "The Shape of Learning Curves: a Review", 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

FEWEST_SIZES = 5
RESAMPLES = 400
LEVEL = 0.9
AHEAD = (2, 5)  # times the most images that were measured
# Five accuracies hardly tell three parameters apart; curves of images on features of networks have
# exponents around a half.
USUAL_EXPONENT, ITS_DEVIATION = 0.5, 0.25

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Power laws fitted to resamples of the measured accuracies.

    Attributes
    ----------
    parameters : float array of shape (resamples, 3): floor, scale, exponent
    noise : float, deviation of a measured accuracy from its curve
    """

    parameters: Floats
    noise: float

    def accuracies(self, n: ArrayLike) -> Floats:
        """Accuracies at sizes: float array of shape (resamples, sizes)."""
        return 1 - _error_rate(self.parameters, np.atleast_1d(np.asarray(n, np.float64)))

    def at(self, n: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats, Floats]:
        """Predict measured accuracies at sizes: median and bounds, each of shape (sizes,)."""
        found = self.accuracies(n)
        noisy = found + np.random.default_rng(0).normal(0, self.noise, found.shape)
        low, high = np.quantile(noisy, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return np.median(found, axis=0), np.clip(low, 0, 1), np.clip(high, 0, 1)

    def images_for(self, accuracy: float, level: float = LEVEL) -> tuple[float, float, float]:
        """Images that an accuracy would take: median and bounds, infinite if it is not reached."""
        floor, scale, exponent = self.parameters.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            needed = (scale / (1 - accuracy - floor)) ** (1 / exponent)
        needed = np.where(1 - accuracy > floor, needed, np.inf)
        quantiles = [0.5, (1 - level) / 2, (1 + level) / 2]
        # of values, not between them: infinity has no neighbourhood
        median, low, high = np.quantile(needed, quantiles, method="inverted_cdf")
        return float(median), float(low), float(high)


def fit_curves(tables: Mapping[int, NDArray[np.int8]], seed: int = 0) -> Curves:
    """Fit power laws to resamples of seeds and images together.

    Parameters
    ----------
    tables : size → int8 array of shape (seeds, images), right or wrong, of the same images
    seed : of the resampling
    """
    sizes = np.array(sorted(tables), np.float64)
    stacked = [tables[int(size)] for size in sizes]
    images = stacked[0].shape[1]
    measured = np.array([table.mean() for table in stacked])
    rng = np.random.default_rng(seed)
    # of the seeds alone: all sizes are measured on the same images
    sigma = np.array([_deviation(table) for table in stacked])
    start = _fit(sizes, 1 - measured, sigma, None)
    resampled = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, images, images)
        accuracies = [
            table[rng.integers(0, len(table), len(table))][:, chosen].mean() for table in stacked
        ]
        noisy = np.array(accuracies) + rng.normal(0, sigma)
        resampled.append(_fit(sizes, 1 - noisy, sigma, start))
    return Curves(np.array(resampled), float(np.median(sigma)))


def forecast(
    strategy: str, tables: Mapping[int, NDArray[np.int8]], wanted: float | None = None
) -> dict[str, Any]:
    """Say what more images would bring to a strategy, or why that cannot be said.

    Parameters
    ----------
    strategy : its name
    tables : as in ``fit_curves``
    wanted : accuracy, optional

    Returns
    -------
    dict that JSON can hold: ``strategy``, ``sizes``, and either ``reason`` or ``curve`` (floor,
    scale, exponent), ``level``, ``at`` (records of ``n_train``, ``accuracy``, ``low``, ``high``)
    and, where asked for, ``wanted`` (``accuracy``, ``n_train``, ``low``, ``high``, null where
    it is not reached)
    """
    sizes = sorted(tables)
    record: dict[str, Any] = {"strategy": strategy, "sizes": sizes}
    if len(sizes) < FEWEST_SIZES:
        return record | {
            "reason": f"{len(sizes)} sizes were measured; a curve with an asymptote takes "
            f"{FEWEST_SIZES}"
        }
    curves = fit_curves(tables)
    ahead = [factor * sizes[-1] for factor in AHEAD]
    floor, scale, exponent = (float(value) for value in np.median(curves.parameters, axis=0))
    record["curve"] = {"floor": floor, "scale": scale, "exponent": exponent}
    record["level"] = LEVEL
    record["at"] = [
        {"n_train": n, "accuracy": float(a), "low": float(low), "high": float(high)}
        for n, a, low, high in zip(ahead, *curves.at(ahead), strict=True)
    ]
    if wanted is not None:
        names = ("n_train", "low", "high")
        found = [
            round(value) if np.isfinite(value) else None for value in curves.images_for(wanted)
        ]
        record["wanted"] = {"accuracy": wanted, **dict(zip(names, found, strict=True))}
    return record


def _error_rate(parameters: Floats, n: Floats) -> Floats:
    floor, scale, exponent = (parameters[..., k, None] for k in range(3))
    rate: Floats = floor + scale * n**-exponent
    return rate


def _deviation(table: NDArray[np.int8]) -> float:
    """Deviation of the mean accuracy over the seeds, never less than that of an image in each."""
    seeds, images = table.shape
    # of a single seed: its images' alone, which for models of one strategy is a little less
    if seeds == 1:
        accuracy = table.mean()
        deviation = np.sqrt(accuracy * (1 - accuracy) / images / 2)
    else:
        deviation = table.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
    return max(1.0 / float(images), float(deviation))


def _fit(sizes: Floats, errors: Floats, sigma: Floats, start: Floats | None) -> Floats:
    """Fit floor, scale and exponent, the latter drawn to what is usual."""

    def residuals(p: Floats) -> Floats:
        off = (_error_rate(p, sizes) - errors) / sigma
        return np.append(off, (p[2] - USUAL_EXPONENT) / ITS_DEVIATION)

    if start is None:
        start = np.array([errors.min() / 2, errors[0] * sizes[0] ** 0.5, USUAL_EXPONENT])
    low, high = [0, 0, 0.02], [1, np.inf, 3]
    found: Floats = least_squares(
        residuals, np.clip(start, np.array(low) + 1e-9, high), bounds=(low, high), x_scale="jac"
    ).x
    return found
