"""Learning curves: what more images would bring, and where fine-tuning overtakes heads.

The error of n training images is taken to be floor + scale * n ** -exponent, a power law with an
asymptote: of the forms in use the one that fits learning curves of classifiers best (T.
Viering and M. Loog, "The Shape of Learning Curves: a Review", 2023).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fx.comparison.statistics import LEAST_DF, Mean, Scores, shared_level
from fx.comparison.strategies import strategy_of
from fx.records import Crossover, Forecast, Needed, PowerLaw, Predicted

FEWEST_SIZES = 5
RESAMPLES = 400
LEVEL = 0.9
MISFIT = 0.05  # chance to decline a curve that does follow the law
AHEAD = (2, 5)  # times the most images that were measured
# Five scores hardly tell three parameters apart; curves of images on features of networks have
# exponents around a half.
USUAL_EXPONENT, ITS_DEVIATION = 0.5, 0.25
EXPONENTS = np.linspace(0.02, 2, 100)

Floats = NDArray[np.float64]
Tables = Mapping[int, Floats]


@dataclass(frozen=True)
class Curves:
    """Power laws fitted to resamples of the measured scores.

    Attributes
    ----------
    parameters : float array of shape (resamples, 3): floor, scale, exponent
    noise : float array of shape (resamples,), deviation of a single run from its curve
    higher_is_better : False where the score itself follows the law, not 1 less it
    """

    parameters: Floats
    noise: Floats
    higher_is_better: bool = True

    def scores(self, n: ArrayLike) -> Floats:
        """Scores at sizes: float array of shape (resamples, sizes)."""
        errors = _error_rate(self.parameters, np.atleast_1d(np.asarray(n, np.float64)))
        return 1 - errors if self.higher_is_better else errors

    def at(self, n: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats, Floats]:
        """Predict what one run gives at sizes: median and bounds, each of shape (sizes,)."""
        found = self.scores(n)
        chance = np.random.default_rng(0).normal(size=found.shape)
        noisy = found + self.noise[:, None] * chance
        low, high = np.quantile(noisy, [(1 - level) / 2, (1 + level) / 2], axis=0)
        most = 1 if self.higher_is_better else None
        return np.median(found, axis=0), np.clip(low, 0, most), np.clip(high, 0, most)

    def images_for(self, score: float) -> tuple[float, float, float]:
        """Images that a score would take: median and bounds, infinite if it is not reached."""
        floor, scale, exponent = self.parameters.T
        error = 1 - score if self.higher_is_better else score
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            needed = (scale / (error - floor)) ** (1 / exponent)
        needed = np.where(error > floor, needed, np.inf)
        quantiles = [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2]
        # of values, not between them: infinity has no neighbourhood
        median, low, high = np.quantile(needed, quantiles, method="inverted_cdf")
        return float(median), float(low), float(high)


def fit_curves(tables: Tables, *, higher_is_better: bool = True) -> Curves | None:
    """Fit power laws to what other draws of the same sizes might have given.

    A mean of few draws is off by Student's t, not by a normal number: each resample draws the
    deviation between draws anew. Images are not resampled: later runs are measured on the same.

    Parameters
    ----------
    tables : size → float64 array of shape (draws, images), scores
    higher_is_better : False for a loss, which itself follows the law instead of 1 less the score

    Returns
    -------
    curves : None where no power law goes through what was measured
    """
    sizes = np.array(sorted(tables), np.float64)
    means = np.array([tables[int(size)].mean() for size in sizes])
    errors = 1 - means if higher_is_better else means
    draws = np.array([len(tables[int(size)]) for size in sizes])
    variance, df = _between_draws(tables)
    sigma = np.sqrt(variance / draws)
    fitted = _error_rate(_fit(sizes, errors[None], sigma), sizes)
    # of three parameters, the exponent is half known
    free = len(sizes) - 2
    known = int((draws - 1).sum()) or df
    if np.square((fitted - errors) / sigma).sum() > free * stats.f.isf(MISFIT, free, known):
        return None
    rng = np.random.default_rng(0)
    scale = np.sqrt(df / rng.chisquare(df, RESAMPLES))
    noisy = errors + scale[:, None] * sigma * rng.normal(size=(RESAMPLES, len(sizes)))
    return Curves(_fit(sizes, noisy, sigma), scale * np.sqrt(variance[-1]), higher_is_better)


def _between_draws(tables: Tables) -> tuple[Floats, int]:
    """Variance between single draws at every size, and its degrees of freedom.

    Of the size and the next smaller ones; of the smallest, of the next larger instead. Never less
    than that of a single image.
    """
    sizes = sorted(tables)
    found = [
        Mean.of([tables[n] for n in reversed(sizes[: place + 1])], share=False)
        for place in range(len(sizes))
    ]
    images = next(iter(tables.values())).shape[1]
    known = [one for one in found if one.df >= LEAST_DF] or [found[-1]]
    if not known[0].df:
        # one draw of every size: half of what single images of that accuracy vary by
        chance = [tables[n].var() / images / 2 for n in sizes]
        return np.maximum(chance, 1 / images**2), LEAST_DF
    variances = [one.between if one.df >= LEAST_DF else known[0].between for one in found]
    return np.maximum(variances, 1 / images**2), min(one.df for one in known)


def forecast(
    strategy: str, tables: Tables, wanted: float | None = None, *, higher_is_better: bool = True
) -> Forecast:
    """Say what more images would bring to a strategy, or why that cannot be said.

    Parameters
    ----------
    strategy : its name
    tables, higher_is_better : as in ``fit_curves``
    wanted : score, optional; how many images it would take is said, too
    """
    sizes = tuple(sorted(tables))
    if len(sizes) < FEWEST_SIZES:
        reason = f"{len(sizes)} sizes were measured; a curve with an asymptote takes {FEWEST_SIZES}"
        return Forecast(strategy, sizes, reason)
    curves = fit_curves(tables, higher_is_better=higher_is_better)
    if curves is None:
        reason = f"what was measured of {strategy} does not follow a power law"
        return Forecast(strategy, sizes, reason)
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
            Predicted(n, float(value), float(low), float(high))
            for n, value, low, high in zip(ahead, *curves.at(ahead), strict=True)
        ),
        wanted=needed,
    )


def _error_rate(parameters: Floats, n: Floats) -> Floats:
    floor, scale, exponent = (parameters[..., k, None] for k in range(3))
    return np.asarray(floor + scale * n**-exponent)


def _fit(sizes: Floats, errors: Floats, sigma: Floats) -> Floats:
    """Fit floor, scale and exponent, the latter drawn to what is usual.

    For every exponent of a grid the other two are found by linear least squares, neither below 0.

    Parameters
    ----------
    sizes, sigma : float arrays of shape (k,); sigma is the deviation of the errors
    errors : float array of shape (m, k)

    Returns
    -------
    float array of shape (m, 3)
    """
    weight = sigma**-2
    powers = sizes ** -EXPONENTS[:, None]
    of_one, of_power, of_both = weight.sum(), powers @ weight, powers**2 @ weight
    error = (errors @ weight)[:, None]
    product = (errors * weight) @ powers.T
    scale = (of_one * product - of_power * error) / (of_one * of_both - of_power**2)
    floor = (error - scale * of_power) / of_one
    scale = np.where(floor < 0, product / of_both, scale)
    floor = np.where(scale < 0, error / of_one, np.maximum(floor, 0))
    scale = np.maximum(scale, 0)
    off = floor[..., None] + scale[..., None] * powers - errors[:, None, :]
    loss = np.square(off / sigma).sum(axis=-1) + ((EXPONENTS - USUAL_EXPONENT) / ITS_DEVIATION) ** 2
    best = loss.argmin(axis=1)
    rows = np.arange(len(errors))
    return np.stack([floor[rows, best], scale[rows, best], EXPONENTS[best]], axis=1)


def crossover(scores: Scores) -> Crossover | None:
    """Find from which size on the best fine-tuning beats the best head.

    Only where it is shown at the largest size: a fine-tuning is better than every head, with an
    error of 5 % shared by the fine-tunings. Between two measured sizes the size is interpolated in
    its logarithm. None of a single size.
    """
    tuned = [name for name in scores.tables if strategy_of(name).fine_tunes]
    heads = [name for name in scores.tables if strategy_of(name).on_features]
    sizes = [
        size
        for size in scores.sizes
        if all(size in scores.tables[name] for name in (*tuned, *heads))
    ]
    if not tuned or not heads or len(sizes) < 2:
        return None
    ahead = [_is_ahead(scores, tuned, heads, size) for size in sizes]
    if not ahead[-1]:
        return None
    first = max((place + 1 for place, shown in enumerate(ahead) if not shown), default=0)
    behind = [n for n in sizes[:first] if _is_ahead(scores, heads, tuned, n)]
    sign = 1 if scores.metric.higher_is_better else -1

    def best(names: Sequence[str], size: int) -> float:
        return max(sign * float(scores.tables[name][size].mean()) for name in names)

    measured = _crossing(sizes, [best(tuned, size) - best(heads, size) for size in sizes])
    return Crossover(round(measured), behind[-1] if behind else None, sizes[first])


def _is_ahead(scores: Scores, some: Sequence[str], others: Sequence[str], size: int) -> bool:
    """Whether one of some strategies is shown to be better than every other one."""
    level = shared_level(len(some))
    return any(
        all(scores.gain_of(one, other, size).is_positive(level) for other in others) for one in some
    )


def _crossing(sizes: Sequence[int], advantage: Sequence[float]) -> float:
    """Size from which on the advantage stays positive."""
    last = max((i for i, gain in enumerate(advantage) if gain <= 0), default=-1)
    if last < 0:
        return sizes[0]
    around = slice(last, last + 2)
    return float(np.exp(np.interp(0, advantage[around], np.log(sizes[around]))))
