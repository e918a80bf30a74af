"""Learning curves: what more images would bring, and where fine-tuning overtakes heads.

An accuracy of n training images is taken to be 1 - (floor + scale * n ** -exponent), a power law
with an asymptote: of the forms in use the one that fits learning curves of classifiers best (T.
Viering and M. Loog, "The Shape of Learning Curves: a Review", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from fx.comparison.statistics import Tables
from fx.comparison.strategies import find_strategy
from fx.records import Crossover, Forecast, Needed, PowerLaw, Predicted

FEWEST_SIZES = 5
RESAMPLES, CROSSOVER_RESAMPLES = 400, 2_000
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
) -> Forecast:
    """Say what more images would bring to a strategy, or why that cannot be said.

    Parameters
    ----------
    strategy : its name
    tables : as in ``fit_curves``
    wanted : accuracy, optional; how many images it would take is said, too
    """
    sizes = tuple(sorted(tables))
    if len(sizes) < FEWEST_SIZES:
        reason = f"{len(sizes)} sizes were measured; a curve with an asymptote takes {FEWEST_SIZES}"
        return Forecast(strategy, sizes, reason)
    curves = fit_curves(tables)
    ahead = [factor * sizes[-1] for factor in AHEAD]
    needed = None
    if wanted is not None:
        images = [round(n) if math.isfinite(n) else None for n in curves.images_for(wanted)]
        needed = Needed(wanted, *images)
    return Forecast(
        strategy,
        sizes,
        curve=PowerLaw(*(float(value) for value in np.median(curves.parameters, axis=0))),
        level=LEVEL,
        at=tuple(
            Predicted(n, float(accuracy), float(low), float(high))
            for n, accuracy, low, high in zip(ahead, *curves.at(ahead), strict=True)
        ),
        wanted=needed,
    )


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


def crossover(tables: Tables, seed: int = 0) -> Crossover | None:
    """Find from which size on the best fine-tuning beats the best head, and how sure that is.

    Between two measured sizes the size is interpolated in its logarithm. Seeds and images are
    resampled together; bounds are those of 95 % of the resamples. None where there is nothing to
    compare or it does not happen.
    """
    known = [(find_strategy(name), sizes) for name, sizes in tables.items()]
    tuned = [sizes for one, sizes in known if one is not None and one.fine_tunes]
    heads = [sizes for one, sizes in known if one is not None and one.on_features]
    if not tuned or not heads:
        return None
    sizes = sorted(
        {size for one in heads for size in one} & {size for one in tuned for size in one}
    )
    if not sizes:
        return None
    measured = _crossing(sizes, _advantage(tuned, heads, sizes, None))
    if math.isinf(measured):
        return None
    rng = np.random.default_rng(seed)
    found = np.array(
        [_crossing(sizes, _advantage(tuned, heads, sizes, rng)) for _ in range(CROSSOVER_RESAMPLES)]
    )
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    return Crossover(
        round(measured),
        round(low) if math.isfinite(low) else None,
        round(high) if math.isfinite(high) else None,
        float(np.isfinite(found).mean()),
    )


def _advantage(
    tuned: Sequence[Mapping[int, NDArray[np.int8]]],
    heads: Sequence[Mapping[int, NDArray[np.int8]]],
    sizes: Sequence[int],
    rng: np.random.Generator | None,
) -> list[float]:
    """Accuracy of the best fine-tuning less that of the best head, at every size."""
    images = next(iter(heads[0].values())).shape[1]
    chosen = np.arange(images) if rng is None else rng.integers(0, images, images)
    found = []
    for size in sizes:
        both = [[one[size] for one in side if size in one] for side in (tuned, heads)]
        fewest = min(len(table) for side in both for table in side)
        # the same draws for all strategies: what they share is no difference
        seeds = np.arange(fewest) if rng is None else rng.integers(0, fewest, fewest)
        best = [max(float(t[seeds][:, chosen].mean()) for t in side) for side in both]
        found.append(best[0] - best[1])
    return found


def _crossing(sizes: Sequence[int], advantage: Sequence[float]) -> float:
    """Size from which on the advantage stays positive; infinite where it ends otherwise."""
    last = max((i for i, gain in enumerate(advantage) if gain <= 0), default=-1)
    if last == len(sizes) - 1:
        return math.inf
    if last < 0:
        return float(sizes[0])
    before, after = advantage[last], advantage[last + 1]
    share = -before / (after - before)
    return math.exp(math.log(sizes[last]) * (1 - share) + math.log(sizes[last + 1]) * share)
