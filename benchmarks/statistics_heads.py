"""Simulations of what heads say of themselves: intervals, sets of labels, calibration.

Each function draws data whose truth is known, asks fx's own functions, and returns a row a setting.
``python benchmarks/statistics_heads.py`` prints them as Markdown tables.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import norm

from heads.calibration import CALIBRATION_BINS, calibration_error, reliability_bins
from heads.evaluation import accuracy_interval
from heads.fitting import make_folds
from heads.fitting.resampling import OUTER_FOLDS, REPEATS, interval_of_folds
from heads.limits import Limits

Row = dict[str, Any]
Floats = NDArray[np.float64]
Integers = NDArray[np.intp]


def accuracy_intervals(repeats: int = 600, seed: int = 0) -> list[Row]:
    """Cover the true accuracy by the 95 % interval of test rows, in groups and alone.

    A group's own accuracy has a beta distribution whose intra-class correlation is `alike`; sizes
    are all the same, or geometric. `as_if_alone` is what the interval covers that knows no groups.
    """
    rows = []
    for groups, size, uneven in [(40, 1, False), (400, 1, False), *_groups_of_rows()]:
        for accuracy in (0.6, 0.8, 0.95):
            for alike in (0.0, 0.3, 0.8):
                if size == 1 and alike:
                    continue
                rng = np.random.default_rng(seed)
                held, alone, widths = [], [], []
                for _ in range(repeats):
                    member = _members(rng, groups, size, uneven)
                    shares = _beta(rng, accuracy, alike, groups)
                    correct = rng.random(len(member)) < shares[member]
                    found, _ = accuracy_interval(correct, member)
                    unaware, _ = accuracy_interval(correct)
                    assert found is not None
                    assert unaware is not None
                    held.append(found[0] <= accuracy <= found[1])
                    alone.append(unaware[0] <= accuracy <= unaware[1])
                    widths.append(found[1] - found[0])
                rows.append(
                    {
                        "groups": groups,
                        "rows a group": f"{size} on average" if uneven else size,
                        "accuracy": accuracy,
                        "alike": alike,
                        "covered": np.mean(held),
                        "as if alone": np.mean(alone),
                        "width": np.mean(widths),
                    }
                )
    return rows


def _groups_of_rows() -> Iterator[tuple[int, int, bool]]:
    for groups in (20, 40, 100, 400):
        for size, uneven in ((5, False), (20, False), (5, True), (20, True)):
            yield groups, size, uneven


def _members(rng: np.random.Generator, groups: int, size: int, uneven: bool) -> Integers:
    sizes = rng.geometric(1 / size, groups) if uneven else np.full(groups, size)
    return np.repeat(np.arange(groups), sizes)


def _beta(rng: np.random.Generator, mean: float, alike: float, count: int) -> Floats:
    if not alike:
        return np.full(count, mean)
    weight = 1 / alike - 1
    return rng.beta(mean * weight, (1 - mean) * weight, count)


def outer_fold_intervals(repeats: int = 300, seed: int = 0) -> list[Row]:
    """Cover the expected accuracy by the interval of repeated outer folds, in groups and alone.

    Rows are normal around the centre of their class, and around that of their group; the nearest
    mean classifies. `expected` is covered where the interval holds the mean over all data sets of
    what folds measure, `delivered` where it holds that of the classifier of all rows.
    """
    rows = []
    for groups, size in ((40, 1), (100, 1), (400, 1), (30, 5), (100, 5), (30, 20), (60, 20)):
        for spread in (0.7, 1.5):
            rng = np.random.default_rng(seed)
            draws = [_outer_folds(rng, groups, size, spread) for _ in range(repeats)]
            expected = np.mean([accuracy for accuracy, _, _, _ in draws])
            rows.append(
                {
                    "groups": groups,
                    "rows a group": size,
                    "accuracy": expected,
                    "expected": np.mean([low <= expected <= high for _, _, low, high in draws]),
                    "delivered": np.mean([low <= of <= high for _, of, low, high in draws]),
                    "width": np.mean([high - low for _, _, low, high in draws]),
                }
            )
    return rows


def _outer_folds(
    rng: np.random.Generator, groups: int, size: int, spread: float
) -> tuple[float, float, float, float]:
    """Measured accuracy, that of the classifier of all rows, and the interval's ends."""
    classes, width = 2, 8
    member = np.repeat(np.arange(groups), size)
    y = member % classes
    features = _rows_of_groups(rng, y, member, width, spread)
    correct, accuracies, ratios = np.zeros(len(y)), [], []
    for _ in range(REPEATS):
        splits, _ = make_folds(
            y,
            classes=["a", "b"],
            folds=OUTER_FOLDS,
            groups=member if size > 1 else None,
            seed=int(rng.integers(1 << 30)),
        )
        for fitting, rest in splits:
            right = _nearest_mean(features[fitting], y[fitting], features[rest]) == y[rest]
            correct[rest] += right / REPEATS
            accuracies.append(right.mean())
            ratios.append(len(rest) / len(fitting))
    found, _ = interval_of_folds(
        np.array(accuracies), float(np.mean(ratios)), correct, member if size > 1 else None
    )
    assert found is not None
    other = np.arange(4_000) % classes
    fresh = _rows_of_groups(rng, other, np.arange(4_000), width, spread)
    delivered = (_nearest_mean(features, y, fresh) == other).mean()
    return float(correct.mean()), float(delivered), *found


def _rows_of_groups(
    rng: np.random.Generator, y: Integers, member: Integers, width: int, spread: float
) -> Floats:
    centres = np.zeros((int(y.max()) + 1, width))
    centres[:, 0] = np.arange(len(centres)) * 2 - 1
    of_group = spread * rng.normal(size=(int(member.max()) + 1, width))
    return centres[y] + of_group[member] + 0.4 * rng.normal(size=(len(y), width))


def _nearest_mean(features: Floats, y: Integers, fresh: Floats) -> Integers:
    means = np.stack([features[y == label].mean(axis=0) for label in range(int(y.max()) + 1)])
    return np.asarray((fresh @ means.T - np.square(means).sum(axis=1) / 2).argmax(axis=1))


def sets_of_labels(repeats: int = 500, seed: int = 0) -> list[Row]:
    """Cover true labels by sets, of every class and of the rarest one, balanced and at 98 to 2.

    Scores are normal and calibrated; `one threshold` is what one for all classes covers of the
    rarest class. Coverage is that of fresh rows.
    """
    rows = []
    for shares in ((0.98, 0.02), (0.5, 0.5), (0.25, 0.25, 0.25, 0.25)):
        for n in (200, 700, 2_000):
            for coverage in (0.8, 0.9):
                rng = np.random.default_rng(seed)
                found = [_sets(rng, np.array(shares), n, coverage) for _ in range(repeats)]
                names = ("all", "rarest", "rarest, one threshold", "labels a set", "empty")
                rows.append(
                    {"classes": " : ".join(f"{one:g}" for one in shares), "held out": n}
                    | {"asked": coverage}
                    | dict(zip(names, np.nanmean(found, axis=0), strict=True))
                )
    return rows


def _sets(rng: np.random.Generator, shares: Floats, n: int, coverage: float) -> list[float]:
    k, fresh = len(shares), 2_000
    y = rng.choice(k, n + fresh, p=shares)
    scores = rng.normal(size=(n + fresh, k))
    scores[np.arange(n + fresh), y] += 2
    p = softmax(2 * scores + np.log(shares), axis=1)
    limits = _limits(1 - p[np.arange(n), y[:n]], y[:n], np.arange(n))
    least = limits.least_probabilities(coverage, k)
    sets, truth = p[n:] >= least, y[n:]
    of_truth = sets[np.arange(fresh), truth]
    rare = truth == shares.argmin()
    single = _limits(limits.nonconformity, np.zeros(n, np.intp), limits.groups)
    one = p[n:][rare, truth[rare]] >= single.least_probabilities(coverage, 1)[0]
    sizes = sets.sum(axis=1)
    return [
        of_truth.mean(),
        of_truth[rare].mean(),
        one.mean(),
        sizes.mean(),
        (sizes == 0).mean(),
    ]


def _limits(nonconformity: NDArray[Any], labels: Integers, groups: NDArray[Any]) -> Limits:
    scores = nonconformity.astype(np.float32)
    wholes = labels.astype(np.int32), groups.astype(np.int32)
    return Limits(np.zeros((1, 1), np.float32), scores, scores, *wholes)


def limits_of_groups(repeats: int = 2_000, seed: int = 0) -> list[Row]:
    """Cover a fresh group's labels, and reject its rows, as often as asked, in groups of rows.

    A row's score is normal, and mostly its group's. `as if alone` is what sets cover that know no
    groups. `least` is the share of draws (of what was held out) that cover nine tenths of what was
    asked for, seen by 1,000 fresh groups.
    """
    rows = []
    for groups in (12, 20, 40, 100):
        for size, uneven in ((1, False), (5, False), (20, False), (20, True)):
            rng = np.random.default_rng(seed)
            found = [_of_groups(rng, groups, size, uneven) for _ in range(repeats)]
            names = ("covered", "as if alone", "least", "rejected")
            rows.append(
                {"groups": groups, "rows a group": f"{size} on average" if uneven else size}
                | {"asked": 0.9}
                | dict(zip(names, np.mean(found, axis=0), strict=True))
            )
    return rows


def _of_groups(rng: np.random.Generator, groups: int, size: int, uneven: bool) -> list[float]:
    member = _members(rng, groups, size, uneven)
    hard = rng.normal(size=groups)[member] + 0.3 * rng.normal(size=len(member))
    scores = norm.cdf(hard)
    aware = _limits(scores, np.zeros(len(member), np.intp), member)
    alone = _limits(scores, np.zeros(len(member), np.intp), np.arange(len(member)))
    fresh = norm.cdf(rng.normal(size=1_000) + 0.3 * rng.normal(size=1_000))
    covered = (1 - fresh >= aware.least_probabilities(0.9, 1)).mean()
    return [
        covered,
        (1 - fresh >= alone.least_probabilities(0.9, 1)).mean(),
        covered >= 0.81,
        (fresh > aware.farthest(0.1)).mean(),
    ]


def calibration_errors(repeats: int = 100, seed: int = 0) -> list[Row]:
    """Bias and root mean squared error of estimators of the calibration error.

    Labels are drawn by probabilities whose scores are then divided by a temperature. The truth is
    that of 1,000 bins of 400,000 rows whose true probabilities are known: the mean distance, or the
    root mean squared one, each for the estimators of it.
    """
    rows = []
    for k in (2, 6, 100):
        for temperature in (1.0, 0.5, 2.0):
            rng = np.random.default_rng(seed)
            truth = _true_errors(*_confidences(rng, 400_000, k, temperature)[1:])
            for n in (50, 100, 400, 1_000, 4_000):
                drawn = []
                for _ in range(repeats):
                    p, _, right = _confidences(rng, n, k, temperature)
                    # where the likeliest class is not right, any other one is as good as another
                    wrong = rng.random(n) >= right
                    labels = (p.argmax(axis=1) + wrong) % k
                    drawn.append([of(p, labels) for of, _ in ESTIMATORS.values()])
                for place, (name, (_, root)) in enumerate(ESTIMATORS.items()):
                    off = np.array(drawn)[:, place] - truth[root]
                    rows.append(
                        {"classes": k, "temperature": temperature, "rows": n, "estimator": name}
                        | {"truth": truth[root], "bias": off.mean()}
                        | {"error": np.sqrt(np.square(off).mean())}
                    )
    return rows


def _confidences(
    rng: np.random.Generator, n: int, k: int, temperature: float
) -> tuple[Floats, Floats, Floats]:
    """Probabilities, the largest of each row, and how often that class is the true one."""
    scores = rng.normal(size=(n, k), scale=2.0 if k < 100 else 3.0)
    p = softmax(scores / temperature, axis=1)
    return p, p.max(axis=1), softmax(scores, axis=1).max(axis=1)


def _true_errors(confidence: Floats, right: Floats) -> dict[bool, float]:
    parts = np.array_split(np.argsort(confidence), 1_000)
    gaps = np.array([right[part].mean() - confidence[part].mean() for part in parts])
    return {False: float(np.abs(gaps).mean()), True: float(np.sqrt(np.square(gaps).mean()))}


def _mean_distance(p: Floats, labels: Integers) -> float:
    """Mean distance over bins of equally many rows, which chance adds to."""
    bins = reliability_bins(p, labels)
    return sum(rows * abs(right - sure) for sure, right, rows in bins) / len(labels)


def _mean_distance_debiased(p: Floats, labels: Integers) -> float:
    """The same less what normal errors of a bin's accuracy add to it (Kumar et al., 2019)."""
    sure, right, rows = np.array(reliability_bins(p, labels)).T
    error = np.maximum(np.sqrt(right * (1 - right) / np.maximum(rows - 1, 1)), 1e-12)
    gap = np.abs(right - sure)
    folded = error * np.sqrt(2 / np.pi) * np.exp(-((gap / error) ** 2) / 2)
    folded += gap * (1 - 2 * norm.cdf(-gap / error))
    return max(0.0, float(np.average(2 * gap - folded, weights=rows)))


def _sweep(p: Floats, labels: Integers) -> float:
    """The mean distance with the most bins whose accuracies rise (Roelofs et al., 2022)."""
    for bins in range(2, len(labels) + 1):
        right = [one for _, one, _ in reliability_bins(p, labels, bins=bins)]
        if np.any(np.diff(right) < 0):
            break
    found = reliability_bins(p, labels, bins=bins - 1)
    return sum(rows * abs(right - sure) for sure, right, rows in found) / len(labels)


# each with whether it is of the root mean squared distance
ESTIMATORS: dict[str, tuple[Callable[[Floats, Integers], float], bool]] = {
    f"mean, {CALIBRATION_BINS} bins": (_mean_distance, False),
    "mean, debiased": (_mean_distance_debiased, False),
    "mean, sweep": (_sweep, False),
    "root mean square, debiased (fx)": (calibration_error, True),
}

SIMULATIONS = (
    accuracy_intervals,
    outer_fold_intervals,
    sets_of_labels,
    limits_of_groups,
    calibration_errors,
)


def main() -> None:
    """Print the tables."""
    for simulate in SIMULATIONS:
        rows = simulate()
        print(f"\n## {str(simulate.__doc__).splitlines()[0]}\n")
        print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        for row in rows:
            cells = (f"{one:.3f}" if isinstance(one, float) else str(one) for one in row.values())
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
