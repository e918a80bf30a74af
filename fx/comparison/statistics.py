"""What measured accuracies allow to be said, of fitted models and of strategies.

Two questions, kept apart. *This fitted model*: which images another draw of test images would
have held is the only chance in it (Wilson's interval: ``heads.evaluation``; McNemar's test of two
models). *This strategy at n images*: another draw of training images, too, would have given
another model. Whether model s was right on image i is then a table of seeds by images, both of
them draws, crossed: x[s, i] = m + a[s] + b[i] + e[s, i].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fx.records import Measurement

FEWEST_SEEDS = 3  # of fewer, how much seeds differ is not known
LEVEL = 0.95

Floats = NDArray[np.float64]
# strategy → size → int8 array of shape (seeds, images), 1 where the true class was predicted
Tables = Mapping[str, Mapping[int, NDArray[np.int8]]]


@dataclass(frozen=True)
class CrossedEffects:
    """Mean of tables of seeds by images, and how sure it is.

    Attributes
    ----------
    mean : float array of the leading shape
    error : its standard error, over seeds and images together
    df : degrees of freedom of the error (Satterthwaite)
    images : in a table
    """

    mean: Floats
    error: Floats
    df: Floats
    images: int

    @classmethod
    def of(cls, table: ArrayLike) -> CrossedEffects:
        """Estimate from tables.

        The error is that of a mean in a random model of two crossed factors without replication:
        (MS_seeds + MS_images - MS_rest) / (seeds * images), and no less than either factor
        gives alone. Degrees of freedom after F. E. Satterthwaite, "An Approximate Distribution of
        Estimates of Variance Components" (1946).

        Parameters
        ----------
        table : float array of shape (..., seeds, images), of right (1) or wrong (0), or of
            differences of two such; at least 3 seeds and 2 images
        """
        x = np.asarray(table, np.float64)
        seeds, images = x.shape[-2:]
        if seeds < FEWEST_SEEDS or images < 2:
            raise ValueError(f"a table needs 3 seeds and 2 images, got {x.shape[-2:]}")
        mean = x.mean(axis=(-2, -1))
        of_seed, of_image = x.mean(axis=-1), x.mean(axis=-2)
        ms_seeds = images * of_seed.var(axis=-1, ddof=1)
        ms_images = seeds * of_image.var(axis=-1, ddof=1)
        rest = x - of_seed[..., None] - of_image[..., None, :] + mean[..., None, None]
        df_rest = (seeds - 1) * (images - 1)
        ms_rest = np.square(rest).sum(axis=(-2, -1)) / df_rest
        # a factor that seems to take chance away has none: what is left is the other alone
        both = np.maximum(ms_seeds + ms_images - ms_rest, np.maximum(ms_seeds, ms_images))
        squares = ms_seeds**2 / (seeds - 1) + ms_images**2 / (images - 1) + ms_rest**2 / df_rest
        with np.errstate(invalid="ignore", divide="ignore"):
            df = np.where(squares > 0, both**2 / squares, images - 1)
        variance = both / (seeds * images)
        return cls(mean, np.sqrt(variance), df, images)

    def quantile(self, level: float = LEVEL) -> Floats:
        """Return how many standard errors an interval reaches to either side."""
        quantile: Floats = stats.t.ppf((1 + level) / 2, self.df)
        return quantile

    def interval(self, level: float = LEVEL) -> tuple[Floats, Floats]:
        """Bounds of a mean difference: mean ± t * error."""
        half = self.quantile(level) * self.error
        return self.mean - half, self.mean + half

    def proportion_interval(self, level: float = LEVEL) -> tuple[Floats, Floats]:
        """Bounds of an accuracy: Wilson's, as of so many images as the error is worth.

        Where every answer was right, or wrong, the error is 0 and the images count as they are.
        After E. L. Korn and B. I. Graubard, "Confidence Intervals for Proportions with Small
        Expected Number of Positive Counts Estimated from Survey Data" (1998), who take the
        effective number in the same way.
        """
        variance = self.error**2
        with np.errstate(invalid="ignore", divide="ignore"):
            worth = np.where(variance > 0, self.mean * (1 - self.mean) / variance, self.images)
        z = self.quantile(level)
        centre = (self.mean + z**2 / (2 * worth)) / (1 + z**2 / worth)
        spread = self.mean * (1 - self.mean) / worth + (z / (2 * worth)) ** 2
        half = z / (1 + z**2 / worth) * np.sqrt(spread)
        return np.maximum(0, centre - half), np.minimum(1, centre + half)

    def p_value(self) -> Floats:
        """Two-sided probability of a mean as far from 0, if the true one is 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(self.error > 0, np.abs(self.mean) / self.error, 0)
        p: Floats = 2 * stats.t.sf(t, self.df)
        return p


def of_images(table: ArrayLike) -> CrossedEffects:
    """Estimate of one seed's model: over other images alone.

    Parameters
    ----------
    table : float array of shape (images,), as the rows of ``CrossedEffects.of``
    """
    x = np.asarray(table, np.float64)
    images = len(x)
    error = x.std(ddof=1) / np.sqrt(images)
    return CrossedEffects(np.asarray(x.mean()), np.asarray(error), np.asarray(images - 1.0), images)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (S. Holm, 1979)."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def simultaneous(level: float, count: int) -> float:
    """Level of each of several intervals that shall all hold at once (Bonferroni)."""
    return 1 - (1 - level) / max(1, count)


def tables_of(measurements: Iterable[Measurement]) -> dict[str, dict[int, NDArray[np.int8]]]:
    """Say of every strategy and size which images each seed got right, in the seeds' order."""
    found: dict[str, dict[int, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for one in measurements:
        found[one.strategy][one.n_train].append(one)
    return {
        strategy: {size: _right(of_size) for size, of_size in sorted(sizes.items())}
        for strategy, sizes in found.items()
    }


def _right(measurements: list[Measurement]) -> NDArray[np.int8]:
    ordered = sorted(measurements, key=lambda one: one.seed)
    right = [np.asarray(one.predicted) == np.asarray(one.truth) for one in ordered]
    return np.stack(right).astype(np.int8)
