"""Intervals and tests of the comparison: simulations with known truth, and other libraries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fx.comparison.statistics import CrossedEffects, holm, simultaneous

RUNS = 5_000
BATCH = 250  # of runs simulated at once, for the memory's sake
SETTINGS = [  # seeds, images, accuracy, deviation of the seeds' true accuracies
    (3, 400, 0.9, 0.005),
    (3, 1000, 0.85, 0.005),
    (5, 1000, 0.9, 0.01),
    (3, 400, 0.97, 0.003),
    (5, 2000, 0.7, 0.01),
]


def simulated(
    rng: np.random.Generator, seeds: int, images: int, accuracy: float, deviation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw tables of two equally good strategies.

    An image has a difficulty, a seed its own accuracy; the two strategies share the difficulty.
    """
    alike = 1 / 0.6 - 1  # 0.6 of what two seeds do on an image is the image's
    ease = rng.beta(accuracy * alike, (1 - accuracy) * alike, (BATCH, 1, images))
    shift = rng.normal(0, deviation, (2, BATCH, seeds, 1))
    # moved on the scale of the uniform draws, so that an image of any ease is moved
    p = np.clip(ease + shift, 0, 1)
    tables = (rng.random((2, BATCH, seeds, images)) < p).astype(np.int8)
    return tables[0], tables[1]


@pytest.fixture(scope="module", params=SETTINGS)
def drawn(request: pytest.FixtureRequest) -> dict[str, np.ndarray | float]:
    rng = np.random.default_rng(7)
    of_a, difference = [], []
    for _ in range(RUNS // BATCH):
        a, b = simulated(rng, *request.param)
        of_a.append(CrossedEffects.of(a))
        difference.append(CrossedEffects.of(a.astype(float) - b))
    seeds = request.param[0]
    return {"a": joined(of_a), "difference": joined(difference), "seeds": seeds}


def joined(parts: list[CrossedEffects]) -> CrossedEffects:
    return CrossedEffects(
        np.concatenate([one.mean for one in parts]),
        np.concatenate([one.error for one in parts]),
        np.concatenate([one.df for one in parts]),
        parts[0].images,
    )


def test_intervals_of_a_strategy_cover_the_truth_and_are_not_wide(drawn: dict) -> None:
    a: CrossedEffects = drawn["a"]
    # of so many runs, the mean and the deviation are the truth to within a fiftieth
    truth, deviation = a.mean.mean(), a.mean.std()
    low, high = a.proportion_interval()
    assert ((low <= truth) & (truth <= high)).mean() >= 0.93
    best = 2 * stats.norm.ppf(0.975) * deviation
    assert (high - low).mean() <= 1.3 * best


def test_equal_strategies_are_rarely_called_different(drawn: dict) -> None:
    p = drawn["difference"].p_value()
    assert (p < 0.05).mean() <= 0.06
    low, high = drawn["difference"].interval()
    assert ((low <= 0) & (high >= 0)).mean() >= 0.93


def test_three_points_are_found_with_the_power_of_the_theory(drawn: dict) -> None:
    difference: CrossedEffects = drawn["difference"]
    moved = CrossedEffects(
        difference.mean + 0.03, difference.error, difference.df, difference.images
    )
    found = (moved.p_value() < 0.05).mean()
    # paired t-test over the seeds, all that is left of chance where images cancel: the power is
    # of its noncentral distribution (three seeds find few differences: the theory, not the code)
    df, z = drawn["seeds"] - 1, 0.03 / difference.mean.std()
    bound = stats.t.ppf(0.975, df)
    theory = stats.nct.sf(bound, df, z) + stats.nct.cdf(-bound, df, z)
    assert found >= theory - 0.05


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(3, 6), st.integers(2, 40))
def test_mean_squares_are_those_of_the_textbooks_sums(seed: int, seeds: int, images: int) -> None:
    x = np.random.default_rng(seed).integers(0, 2, (seeds, images)).astype(float)
    total = x.sum() ** 2 / x.size
    between_seeds = (x.sum(axis=1) ** 2).sum() / images - total
    between_images = (x.sum(axis=0) ** 2).sum() / seeds - total
    rest = (x**2).sum() - total - between_seeds - between_images
    ms_seeds, ms_images = between_seeds / (seeds - 1), between_images / (images - 1)
    ms_rest = rest / ((seeds - 1) * (images - 1))
    variance = max(ms_seeds + ms_images - ms_rest, ms_seeds, ms_images) / x.size
    found = CrossedEffects.of(x)
    assert found.mean == pytest.approx(x.mean())
    assert found.error**2 == pytest.approx(variance, abs=1e-12)


def test_where_all_answers_are_right_the_interval_is_wilsons_of_the_images() -> None:
    low, high = CrossedEffects.of(np.ones((3, 200))).proportion_interval()
    # the t quantile of 199 degrees of freedom stands in for the normal one
    z = stats.t.ppf(0.975, 199)
    assert float(low) == pytest.approx(200 / (200 + z**2))
    assert float(high) == 1


def test_equal_tables_do_not_differ() -> None:
    nothing = CrossedEffects.of(np.zeros((3, 50)))
    assert float(nothing.p_value()) == 1
    assert [float(bound) for bound in nothing.interval()] == [0, 0]


def test_two_seeds_do_not_tell_how_much_seeds_differ() -> None:
    with pytest.raises(ValueError, match="3 seeds"):
        CrossedEffects.of(np.ones((2, 50)))


def test_several_intervals_share_the_error() -> None:
    assert simultaneous(0.95, 10) == pytest.approx(0.995)
    assert simultaneous(0.95, 0) == pytest.approx(0.95)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
