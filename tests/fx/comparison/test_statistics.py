"""Intervals and choices of the comparison: simulations with known truth, and other libraries."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from fx.comparison.recommend import choose
from fx.comparison.statistics import Mean, Scores, tango_interval
from heads.metrics import METRICS

SIMULATIONS = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "simulations.py"))
World = SIMULATIONS["World"]
REPETITIONS = 100


def error(share: float) -> float:
    """Three Monte-Carlo errors of a share."""
    return 3 * (share * (1 - share) / REPETITIONS) ** 0.5


@pytest.mark.parametrize(
    ("world", "metric"),
    [
        (World(), "accuracy"),
        (World(draws=(3, 3, 3, 3, 1), deviation=0.01), "accuracy"),
        (World(draws=(2, 2, 2, 2, 2), deviation=0.02), "accuracy"),
        (World(draws=(3,), deviation=0.0), "accuracy"),
        (World(images=40), "accuracy"),
        (World(members=20), "accuracy"),
        (World(), "log_loss"),
        (World(images=400), "macro_f1"),
    ],
    ids=str,
)
def test_intervals_hold_the_truth(world, metric: str) -> None:
    found = SIMULATIONS["intervals"](world, REPETITIONS, metric)
    assert found["mean covered"] >= 0.93 - error(0.93)
    assert found["gain covered"] >= 0.93 - error(0.93)


@pytest.mark.parametrize(
    ("accuracies", "draws"),
    [
        ((0.9,) * 2, (3, 3, 3, 3, 3)),
        ((0.9,) * 2, (3,)),
        ((0.9,) * 3, (3, 3, 3, 1)),
        ((0.9,) * 3, (1, 1)),
        ((0.9,) * 5, (3, 3)),
    ],
)
def test_of_equal_strategies_the_cheapest_is_chosen_and_no_crossing_told(
    accuracies: tuple[float, ...], draws: tuple[int, ...]
) -> None:
    world = World(accuracies, draws, deviation=0.01)
    found = SIMULATIONS["choices"](world, REPETITIONS)
    assert found["not the cheapest"] <= 0.06 + error(0.06)
    assert found["a crossing told"] <= 0.05 + error(0.05)


def test_a_strategy_that_is_better_is_chosen() -> None:
    by_two = World((0.9, 0.92), images=4000)
    assert SIMULATIONS["choices"](by_two, REPETITIONS)["the last"] >= 0.95 - error(0.95)
    # three draws, and nothing else to tell how much draws differ
    for accuracy, power in ((0.92, 0.34), (0.95, 0.87)):
        world = World((0.9, accuracy), (3,), deviation=0.01)
        assert SIMULATIONS["choices"](world, REPETITIONS)["the last"] >= power - error(power)


def test_the_bounds_of_a_crossing_hold_it() -> None:
    world = World((0.9, 0.9, 0.93), steps=(0.0, 0.0, 0.02), images=1000)
    found = SIMULATIONS["crossings"](world, REPETITIONS)
    assert found["told"] > 0.5
    assert found["bounds hold it"] >= 0.93 - error(0.93)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200))
def test_tangos_interval_holds_zero_where_mcnemars_test_does_not_reject(
    b: int, c: int, rest: int
) -> None:
    images = b + c + rest
    low, high = tango_interval((b - c) / images, (b + c) / images, images, stats.norm.isf(0.025))
    assert -1 <= low <= (b - c) / images <= high <= 1
    if b + c:
        # the score test of no difference is McNemar's, without a correction for continuity
        p = mcnemar([[0, b], [c, rest]], exact=False, correction=False).pvalue
        assert (low > 0 or high < 0) == (p < 0.05)


def test_tangos_interval_is_the_published_one() -> None:
    # Tango (1998), example 2: 43 and 1 of 44 pairs of cross-over soft-lens solutions agree
    low, high = tango_interval(1 / 44, 1 / 44, 44, stats.norm.isf(0.025))
    assert (low, high) == pytest.approx((-0.0594, 0.1181), abs=1e-4)


def test_where_all_answers_are_right_the_interval_is_wilsons() -> None:
    low, high = Mean.of([np.ones((3, 200))], share=True).interval()
    z = stats.norm.isf(0.025)
    assert low == pytest.approx(200 / (200 + z**2))
    assert high == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(5, 40))
def test_mean_squares_are_those_of_the_textbooks_sums(seed: int, draws: int, images: int) -> None:
    x = np.random.default_rng(seed).integers(0, 2, (draws, images)).astype(float)
    total = x.sum() ** 2 / x.size
    between_draws = (x.sum(axis=1) ** 2).sum() / images - total
    between_images = (x.sum(axis=0) ** 2).sum() / draws - total
    rest = (x**2).sum() - total - between_draws - between_images
    found = Mean.of([x], share=True)
    assert found.between == pytest.approx(between_draws / (draws - 1) / images, abs=1e-12)
    assert found.chance == pytest.approx(rest / (draws - 1) / (images - 1) / images, abs=1e-12)
    assert found.unit_variance == pytest.approx(x.mean(axis=0).var(ddof=1) / images)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 6))
def test_scores_of_images_average_to_the_metric(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, p = rng.integers(0, classes, images), rng.dirichlet(np.ones(classes), images)
    deciding = [METRICS[name] for name in METRICS if METRICS[name].per_image]
    assert {one.name for one in deciding} == {"accuracy", "log_loss", "macro_f1"}
    for one in deciding:
        values = one.per_image(labels, p)
        assert values.shape == (images,)
        assert values.mean() == pytest.approx(one.function(labels, p))


def test_the_spread_of_macro_f1_is_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    labels, p = rng.choice(3, 600, p=(0.7, 0.2, 0.1)), rng.dirichlet(np.ones(3), 600)
    p[np.arange(600), labels] += 0.4
    metric = METRICS["macro_f1"]
    values = metric.per_image(labels, p)
    resampled = [metric.function(labels[i], p[i]) for i in rng.integers(0, 600, (500, 600))]
    assert values.std() / 600**0.5 == pytest.approx(np.std(resampled), rel=0.15)


def test_more_draws_or_images_than_are_needed_show_a_gain() -> None:
    world = World((0.9, 0.91), images=1000)
    scores = world.scores(np.random.default_rng(1))
    gain = scores.gain_of("svm", "logreg", scores.sizes[-1])
    assert gain.interval()[0] <= 0
    images, _ = gain.needed()
    assert images > 1000
    # the same means, of so many images
    times = 2 * images // 1000
    tables = {
        name: {size: np.tile(table, times) for size, table in sizes.items()}
        for name, sizes in scores.tables.items()
    }
    assert (
        Scores(scores.metric, tables).gain_of("svm", "logreg", scores.sizes[-1]).interval()[0] > 0
    )


def test_the_best_mean_is_chosen_where_that_is_asked_for() -> None:
    scores = World((0.9, 0.904), images=400).scores(np.random.default_rng(3))
    seconds = {"logreg": 1.0, "svm": 20.0}
    assert choose(scores, seconds).strategy == "logreg"
    means = {name: sizes[scores.sizes[-1]].mean() for name, sizes in scores.tables.items()}
    best = max(means, key=lambda name: means[name])
    assert choose(scores, seconds, "best").strategy == best
    # what costs about the same is not dearer
    assert choose(scores, {"logreg": 1.0, "svm": 2.0}).strategy == best
