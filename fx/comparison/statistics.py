"""How sure a mean over training runs and test images is, and a difference of two such means.

A table holds what every draw of a strategy (a training subset and a seed) scored on every test
image: x[d, i] = m + a[d] + b[i] + e[d, i]. Other test images would have other b, other draws other
a; e is the chance of a single image in a single draw. Intervals add both by their squares (G. Y.
Zou and A. Donner, "Construction of Confidence Limits about Effect Measures", 2008):

- over test images by a score interval, E. B. Wilson's of a share and T. Tango's of a difference of
  two (1998), which hold for few images too; of groups, as of so many images as they are worth;
- over draws by Student's t, with the mean square between the draws of this size and, until it has
  4 degrees of freedom, of the next smaller sizes, whose draws differ more rather than less.

Where few images are measured by outer folds, the means of the folds have both in them. Their
variance is corrected for the training images that the folds share (C. Nadeau and Y. Bengio,
"Inference for the Generalization Error", 2003).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from fx.records import Measurement
from heads.evaluation import FEWEST_GROUPS, by_group, wilson_interval, worth_of_groups
from heads.metrics import Metric

LEVEL = 0.95
LEAST_DF = 4
# Deviation between draws that is assumed where a comparison has one draw of everything, in parts
# of one: three times what logistic regression has with 180 training images.
ASSUMED_DEVIATION, ASSUMED_UP_TO = 0.025, 180

IMAGES = "other test images; not other training images or seeds"
SEEDS = "other seeds and test images; not other training images"
BOTH = "other training images, seeds and test images"
ASSUMED = "other test images, and draws with an assumed deviation of 2.5 points"

Floats = NDArray[np.float64]


def shared_level(count: int) -> float:
    """Level of one-sided bounds of which so many share an error of 5 % (Bonferroni)."""
    return 1 - 2 * (1 - LEVEL) / max(1, count)


@dataclass(frozen=True)
class Scores:
    """What every draw of every strategy scored on every test image, by one metric.

    Attributes
    ----------
    metric : what is averaged
    tables : strategy → training images → float64 array of shape (draws, images), the smallest
        size first
    groups : int array of shape (images,), numbered from 0; None where images stand alone
    folds : int array of shape (draws, images), the outer fold that an image was held out in;
        None where one split gave the test images
    whole : training images in all; draws of so many differ by their seeds alone
    """

    metric: Metric
    tables: Mapping[str, Mapping[int, Floats]]
    groups: NDArray[np.intp] | None = None
    folds: NDArray[np.intp] | None = None
    whole: int | None = None

    @classmethod
    def of(
        cls,
        metric: Metric,
        measurements: Iterable[tuple[Measurement, NDArray[np.floating[Any]]]],
        groups: NDArray[np.intp] | None = None,
        whole: int | None = None,
    ) -> Scores:
        """Score measurements.

        Parameters
        ----------
        metric : one with ``per_image``
        measurements : cells of a comparison, all of the same test images, each with its
            probabilities: a float array of shape (images, classes)
        groups, whole : see the attributes
        """
        assert metric.per_image is not None, "checked when it was chosen"
        found: dict[str, dict[int, list[tuple[int, Floats]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        folds: dict[int, list[int]] = {}
        for one, probabilities in measurements:
            if one.fold is not None:
                folds[one.seed] = one.fold
            values = metric.per_image(np.asarray(one.truth), probabilities.astype(np.float64))
            found[one.strategy][one.n_train].append((one.seed, values))
        tables = {
            strategy: {
                size: np.stack([values for _, values in sorted(draws, key=lambda draw: draw[0])])
                for size, draws in sorted(sizes.items())
            }
            for strategy, sizes in found.items()
        }
        of_draws = np.array([fold for _, fold in sorted(folds.items())])
        return cls(metric, tables, groups, of_draws if folds else None, whole)

    @property
    def sizes(self) -> list[int]:
        """Training images of any strategy, the fewest first."""
        return sorted({size for sizes in self.tables.values() for size in sizes})

    def at(self, size: int) -> dict[str, Floats]:
        """Tables of the strategies that were measured at a size."""
        return {name: sizes[size] for name, sizes in self.tables.items() if size in sizes}

    def mean_of(self, strategy: str, size: int) -> Mean:
        """The mean score of a strategy at a size."""
        sizes = self.tables[strategy]
        smaller = [sizes[n] for n in sorted(sizes, reverse=True) if n <= size]
        found = Mean.of(smaller, self.groups, self.folds, share=self.metric.is_share)
        return self._told(found, size, least=0)

    def gain_of(self, a: str, b: str, size: int) -> Mean:
        """How much better a strategy is than another at a size, over the draws that both have."""
        of_a, of_b = self.tables[a], self.tables[b]
        sign = 1 if self.metric.higher_is_better else -1
        paired = []
        for n in sorted(of_a.keys() & of_b.keys(), reverse=True):
            if n <= size:
                draws = min(len(of_a[n]), len(of_b[n]))
                paired.append(sign * (of_a[n][:draws] - of_b[n][:draws]))
        found = Mean.of(
            paired, self.groups, self.folds, share=self.metric.is_share, difference=True
        )
        least = -np.inf if self.metric.needs_probabilities else -1
        found = self._told(found, size, least)
        if found.df or self.metric.needs_probabilities:
            return found
        deviation = ASSUMED_DEVIATION * max(1, ASSUMED_UP_TO / size) ** 0.5
        return replace(found, assumed=2 * deviation**2, covers=ASSUMED)

    def _told(self, mean: Mean, size: int, least: float) -> Mean:
        """Add what the interval of a mean speaks of, and what it cannot leave."""
        covers = IMAGES
        if mean.df:
            seeds_alone = size == self.whole and self.folds is None and mean.df < mean.draws
            covers = SEEDS if seeds_alone else BOTH
        most = np.inf if self.metric.needs_probabilities else 1
        return replace(mean, covers=covers, least=least, most=most)


@dataclass(frozen=True)
class Mean:
    """A mean over draws and units, with what it takes to say how sure it is.

    Attributes
    ----------
    mean : over draws and units
    draws, units : test images, or groups of them
    unit_variance : variance of the mean over other units alone
    between : mean square between means of draws; it holds chance of single images too
    chance : that part of it
    df : degrees of freedom of `between`; 0 where no size has two draws
    grouped : whether the units are groups
    share, difference : whether scores are 0 or 1; whether they are differences of two such
    discordant : of differences of 0 and 1, the share of images in which the two differ
    worth : of scores of 0 and 1 and their differences, how many independent images there are
    unit_df : degrees of freedom of the quantile for the units
    assumed : variance between draws that is assumed where there are no two; 0 for none
    covers : the population that ``interval`` speaks of
    least, most : what the mean can be
    """

    mean: float
    draws: int
    units: int
    unit_variance: float
    between: float
    chance: float
    df: int
    grouped: bool
    share: bool
    difference: bool
    discordant: float
    worth: float
    unit_df: float
    assumed: float = 0.0
    covers: str = ""
    least: float = -np.inf
    most: float = np.inf

    @classmethod
    def of(
        cls,
        tables: Sequence[Floats],
        groups: NDArray[np.intp] | None = None,
        folds: NDArray[np.intp] | None = None,
        *,
        share: bool,
        difference: bool = False,
    ) -> Mean:
        """Estimate from tables.

        Parameters
        ----------
        tables : float arrays of shape (draws, images): the one of which the mean is asked, then
            those of smaller sizes, the next first
        groups : int array of shape (images,), numbered from 0; None where images stand alone
        folds : int array of shape (draws, images), outer folds; None without
        share, difference : see the attributes
        """
        x = tables[0] if groups is None else by_group(tables[0], groups)
        draws, units = x.shape
        squares, chances, df = 0.0, 0.0, 0
        for scores in tables:
            if df < LEAST_DF and len(scores) > 1:
                table = scores if groups is None else by_group(scores, groups)
                of_draw = table.mean(axis=1)
                rest = table - of_draw[:, None] - table.mean(axis=0) + table.mean()
                more = len(table) - 1
                squares += more * of_draw.var(ddof=1)
                chances += np.square(rest).sum() / (table.shape[1] - 1) / table.shape[1]
                df += more
        unit_variance = float(x.mean(axis=0).var(ddof=1) / units) if units > 1 else np.inf
        if folds is not None:
            # a mean over folds has all of the chance in it
            means = _means_of_folds(tables[0], folds[:draws])
            df = len(means) - 1
            overlap = 1 / (len(means) / draws - 1)
            squares = df * draws * (1 / len(means) + overlap) * float(means.var(ddof=1))
            chances = df * draws * unit_variance
        discordant = float(np.square(tables[0]).mean())
        unit_df = np.inf if share and groups is None else units - 1.0
        if share and not difference and groups is not None:
            worth, unit_df = worth_of_groups(tables[0].mean(axis=0), groups)
        else:
            single = discordant - x.mean() ** 2
            worth = float(single / unit_variance if unit_variance > 1e-12 else units)
        return cls(
            mean=float(x.mean()),
            draws=draws,
            units=units,
            unit_variance=unit_variance,
            between=squares / max(df, 1),
            chance=chances / max(df, 1),
            df=df,
            grouped=groups is not None,
            share=share,
            difference=difference,
            discordant=discordant,
            worth=worth,
            unit_df=unit_df,
        )

    @property
    def known(self) -> bool:
        """Whether there are enough units for an interval."""
        return self.units >= self.fewest

    @property
    def fewest(self) -> int:
        """Units that an interval takes."""
        return FEWEST_GROUPS if self.grouped else 2

    @property
    def unit(self) -> str:
        """What the units are, in words."""
        return "groups of test images" if self.grouped else "test images"

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Bounds, each missed with a chance of (1 - level) / 2; None of too few groups.

        Never narrower than over other units alone: few draws may agree by chance.
        """
        if not self.known:
            return None
        units, draws = self._shares(level)
        below, above = (abs(self.mean - bound) for bound in self._over_units(level))
        below, above = (max(one, np.sqrt(units * one**2 + draws)) for one in (below, above))
        low, high = np.clip((self.mean - below, self.mean + above), self.least, self.most)
        return float(low), float(high)

    def is_positive(self, level: float) -> bool:
        """Whether it is shown to be above 0."""
        bounds = self.interval(level)
        return bounds is not None and bounds[0] > 0

    def needed(self, level: float = LEVEL) -> tuple[int | None, int | None]:
        """Units, or else draws, with which the interval of such a mean would not reach 0.

        None where no number of them does it alone.
        """
        low, _ = self._over_units(level)
        units, draws = self._shares(level)
        over_units, whole = units * (self.mean - low) ** 2, self.mean**2
        more_units = more_draws = None
        if self.mean > 0 and over_units > 0 and whole > draws:
            more_units = ceil(self.units * over_units / (whole - draws))
        if self.mean > 0 and draws > 0 and whole > over_units:
            more_draws = ceil(self.draws * draws / (whole - over_units))
        return more_units, more_draws

    def _shares(self, level: float) -> tuple[float, float]:
        """Part of the units' variance that counts, and the draws' square of a half-width."""
        tail = (1 - level) / 2
        if not self.df:
            return 1.0, float(stats.norm.isf(tail) ** 2 * self.assumed / self.draws)
        draws = float(stats.t.isf(tail, self.df) ** 2 * self.between / self.draws)
        # what single images add to the difference of draws is in that already
        rest = self.unit_variance - self.chance / self.draws
        return max(0.0, rest / self.unit_variance) if self.unit_variance > 0 else 1.0, draws

    def _over_units(self, level: float) -> tuple[float, float]:
        """Bounds over other units alone."""
        quantile = stats.t.isf((1 - level) / 2, self.unit_df)
        if not self.share:
            half = quantile * np.sqrt(self.unit_variance)
            return self.mean - half, self.mean + half
        if self.difference:
            return tango_interval(self.mean, self.discordant, self.worth, quantile)
        low, high = wilson_interval(self.mean, self.worth, quantile)
        return float(low), float(high)


def _means_of_folds(scores: Floats, folds: NDArray[np.intp]) -> Floats:
    """Mean score of every fold of every draw, a float64 array of shape (draws * folds,)."""
    return np.array(
        [
            of_draw[fold == number].mean()
            for of_draw, fold in zip(scores, folds, strict=True)
            for number in range(fold.max() + 1)
        ]
    )


def tango_interval(
    difference: float, discordant: float, images: float, quantile: float
) -> tuple[float, float]:
    """Score interval of a difference of two shares that were measured on the same images.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design" (1998).

    Parameters
    ----------
    difference : of the two shares
    discordant : share of images in which the two differ
    images : how many, or how many independent ones they are worth
    quantile : standard errors to either side
    """
    n = images
    b, c = n * (discordant + difference) / 2, n * (discordant - difference) / 2

    def excess(delta: float) -> float:
        """Standard errors from the difference, its error being that of a true one of `delta`."""
        linear = -b - c + (2 * n - b + c) * delta
        constant = -c * delta * (1 - delta)
        only_c = (np.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)
        variance = n * (2 * only_c + delta * (1 - delta))
        return float((b - c - n * delta) / np.sqrt(max(variance, 1e-12)))

    # at either end the error is 0: what is looked for lies before it, or is the end
    low, high = -1.0, 1.0
    if difference > -1:
        low = brentq(lambda delta: excess(delta) - quantile, -1, difference)
    if difference < 1:
        high = brentq(lambda delta: excess(delta) + quantile, difference, 1)
    return float(low), float(high)
