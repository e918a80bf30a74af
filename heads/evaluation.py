"""What a classifier reached on rows that chose nothing: every metric, an interval, counts."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.sparse import csr_array

from extract.errors import FxError
from heads.calibration import ReliabilityBin, reliability_bins
from heads.metrics import METRICS

# Raised when the same rows come to give another head, or other measures of it: what an earlier
# version made is not shown beside it.
VERSION = 4
NORMAL_95 = float(stats.norm.ppf(0.975))  # standard errors to either side of a 95 % interval
FEWEST_GROUPS = 20  # of test rows; of fewer, how much groups differ is not known


class ClassMetrics(msgspec.Struct, frozen=True):
    """What was reached on one class.

    Attributes
    ----------
    name : str, ``class`` in JSON
    precision, recall : float, None where nothing is to divide by
    n_test : int, its rows
    """

    name: str = msgspec.field(name="class")
    precision: float | None
    recall: float | None
    n_test: int


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Measures of one set of predicted probabilities.

    Attributes
    ----------
    metrics : the value of every metric by its name, None where it is not defined; in JSON they
        stand beside the other fields
    accuracy_ci : two floats, the accuracy's 95 % interval: see `accuracy_interval`, and of outer
        folds `heads.fitting.measure_by_resampling`; None where the rows are of too few groups
    majority : float, accuracy of always naming the class that most of the rows have
    per_class : ClassMetrics, in the order of the classes
    reliability : bins of equally many rows, after calibration
    reliability_uncalibrated : the same before calibration; empty where that is not known
    n_test : int, rows
    confusion : list of lists of int, rows are true classes, columns predicted ones; of repeated
        outer folds the predictions of all repeats, so that a row counts once in each
    measured_by : str, how the rows came to be ones that chose nothing
    n_groups : int, how many groups (patients, videos) the rows are of; None where each is its own
    """

    metrics: dict[str, float | None]
    accuracy_ci: tuple[float, float] | None
    majority: float
    per_class: tuple[ClassMetrics, ...]
    reliability: tuple[ReliabilityBin, ...]
    reliability_uncalibrated: tuple[ReliabilityBin, ...]
    n_test: int
    confusion: list[list[int]]
    measured_by: str = "test rows"
    n_groups: int | None = None

    def __getitem__(self, name: str) -> float:
        """Value of a metric: NaN where it is not defined, or was not there when it was measured."""
        value = self.metrics.get(name)
        return float("nan") if value is None else value

    def as_dict(self) -> dict[str, Any]:
        """Turn into what JSON can hold."""
        rest: dict[str, Any] = msgspec.to_builtins(self)
        return {**rest.pop("metrics"), **rest}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Evaluation":
        """Read what `as_dict` gave; whatever else is in it must be a metric of another version.

        Raises
        ------
        ValueError
            Where something is of another type, or missing that is not a metric.
        """
        metrics = {name: value for name, value in record.items() if name not in _FIELDS}
        rest = {name: value for name, value in record.items() if name in _FIELDS}
        return msgspec.convert({**rest, "metrics": metrics}, cls)


_FIELDS = frozenset(Evaluation.__struct_fields__) - {"metrics"}


def evaluate(
    probabilities: NDArray[np.floating[Any]],
    y: NDArray[np.integer[Any]],
    classes: Sequence[str],
    *,
    uncalibrated: NDArray[np.floating[Any]] | None = None,
    groups: ArrayLike | None = None,
) -> Evaluation:
    """Measure predicted probabilities against the true classes.

    Parameters
    ----------
    probabilities : float array of shape (n, k), rows summing to one
    y : int array of shape (n,), the true class of each row as a position in `classes`
    classes : k names; some may have no row
    uncalibrated : float array of shape (n, k), optional; the probabilities before calibration
    groups : array of shape (n,), optional; rows of one value (a patient, a video) are alike

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
    labels, p = y.astype(np.intp), probabilities.astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    said = p.argmax(axis=1)
    confusion = np.bincount(k * labels + said, minlength=k * k).reshape(k, k)
    correct, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    interval, n_groups = accuracy_interval(said == labels, groups)
    return Evaluation(
        metrics={name: _defined(METRICS[name].function(labels, p)) for name in METRICS},
        accuracy_ci=interval,
        majority=float(true.max() / n),
        per_class=tuple(
            ClassMetrics(name, _share(right, of_said), _share(right, of_true), int(of_true))
            for name, right, of_said, of_true in zip(classes, correct, predicted, true, strict=True)
        ),
        reliability=reliability_bins(p, labels),
        reliability_uncalibrated=()
        if uncalibrated is None
        else reliability_bins(uncalibrated, labels),
        n_test=n,
        confusion=confusion.tolist(),
        n_groups=n_groups,
    )


def accuracy_interval(
    correct: NDArray[Any], groups: ArrayLike | None = None
) -> tuple[tuple[float, float] | None, int | None]:
    """Wilson's 95 % interval of a mean over rows, of as many as they are worth.

    Simulated, with 20 to 400 groups of 5 or 20 rows, of one size or on average, it covers .90 to 1;
    .21 to .97 as if rows were independent (``benchmarks/statistics_heads.py``).

    Parameters
    ----------
    correct : array of shape (n,), 1 or 0 a row; means of several predictions of a row lie between
    groups : array of shape (n,), optional

    Returns
    -------
    the interval, None of fewer than FEWEST_GROUPS groups; and how many there are, None where every
    row is one of its own
    """
    worth, df, count = float(len(correct)), np.inf, None
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        if len(names) < len(correct):
            count = len(names)
            if count < FEWEST_GROUPS:
                return None, count
            worth, df = worth_of_groups(correct, member)
    low, high = wilson_interval(correct.mean(), worth, stats.t.ppf(0.975, df))
    return (float(low), float(high)), count


def worth_of_groups(correct: NDArray[Any], groups: NDArray[np.intp]) -> tuple[float, float]:
    """How many independent rows the rows of groups are worth, for the interval of their mean.

    As many as make the variance of the mean, as the groups differ, that of independent rows (Korn
    and Graubard, see `wilson_interval`). Few groups with a mistake tell little of it: one more is
    counted, all of whose rows are alike, so that where there is none a group is worth a row.
    Simulated, intervals cover .80 to .98 without that.

    Parameters
    ----------
    correct : array of shape (n,), as in `accuracy_interval`
    groups : int array of shape (n,), numbered from 0 without a gap

    Returns
    -------
    worth : rows
    df : degrees of freedom of Student's quantile, one less than there would be groups if all were
        of one size (L. Kish, "Survey Sampling", 1965)
    """
    n, share, sizes = len(correct), float(correct.mean()), np.bincount(groups)
    alike = n**2 / float(np.square(sizes).sum())  # worth of rows, if those of a group agree
    rarer = correct if share < 0.5 else 1 - correct
    telling, worth = np.count_nonzero(np.bincount(groups, rarer)), alike
    if telling:
        variance = by_group(correct, groups).var(ddof=1) / len(sizes)
        # never worth more than there are, as they seem where groups agree by chance
        one = max(variance / (share * (1 - share)), 1 / n)
        worth = (telling + 1) / (telling * one + 1 / alike)
    return float(worth), max(1.0, alike - 1)


def by_group(values: NDArray[np.floating[Any]], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """Turn values of rows into as many as there are groups, with the same mean.

    Rows of one group (a patient, a film) are alike, groups are not: the standard error of a mean
    over rows is that of the mean over these values. The linearised estimate of a mean over
    clusters of unequal size (W. G. Cochran, "Sampling Techniques", 1977, chapter 9A).

    Parameters
    ----------
    values : float array of shape (..., n)
    groups : int array of shape (n,), numbered from 0 without a gap

    Returns
    -------
    float64 array of shape (..., number of groups)
    """
    mean = values.mean(axis=-1, keepdims=True, dtype=np.float64)
    count = int(groups.max()) + 1
    members = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    sums = (members @ (values - mean).reshape(-1, len(groups)).T).T.reshape(*mean.shape[:-1], count)
    return np.asarray(mean + sums * (count / len(groups)))


def wilson_interval(
    share: ArrayLike, worth: ArrayLike, quantile: ArrayLike = NORMAL_95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval of a proportion.

    Parameters
    ----------
    share : float or array, the proportion
    worth : how many independent rows it is worth: where rows hang together, share * (1 - share)
        over the squared standard error (E. L. Korn and B. I. Graubard, "Confidence Intervals for
        Proportions with Small Expected Number of Positive Counts Estimated from Survey Data",
        1998)
    quantile : standard errors to either side
    """
    p, n, z = (np.asarray(value, np.float64) for value in (share, worth, quantile))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return np.maximum(0, centre - half), np.minimum(1, centre + half)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
