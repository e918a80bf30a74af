"""Forecasts of learning curves: known ones are found, and intervals hold what they say."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from extract.backbones import load_backbone
from extract.engines import make_engine
from extract.extraction import extract
from extract.images import Snapshot, find_images
from extract.store import FeatureStore
from fx.comparison.context import nested_subset
from fx.comparison.learning_curve import LEVEL, fit_curves, forecast
from fx.records import Forecast
from heads.fitting import fit_head

SIMULATIONS = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "simulations.py"))
World = SIMULATIONS["World"]
SIZES = (40, 100, 250, 630, 1600)


def law(n: float, floor: float = 0.04, scale: float = 1.2, exponent: float = 0.5) -> float:
    return 1 - floor - scale * n**-exponent


def measured(
    rng: np.random.Generator, sizes: tuple[int, ...], images: int = 2000, **parameters: float
) -> dict[int, np.ndarray]:
    """Draw what three seeds got right on images of different difficulty."""
    ease = rng.normal(0, 0.8**0.5, images)
    tables = {}
    for n in sizes:
        seeds = norm.ppf(law(n, **parameters) + rng.normal(0, 0.003, (3, 1)))
        chance = rng.normal(0, 0.2**0.5, (3, images))
        tables[n] = (seeds + ease + chance > 0).astype(float)
    return tables


def test_a_known_curve_is_found() -> None:
    curves = fit_curves(measured(np.random.default_rng(1), SIZES, images=20_000))
    middle, low, high = curves.at([3200, 8000])
    assert middle == pytest.approx([law(3200), law(8000)], abs=0.01)
    assert (low < middle).all()
    assert (middle < high).all()
    needed, at_least, at_most = curves.images_for(law(3200))
    assert at_least < needed < at_most
    assert needed == pytest.approx(3200, rel=0.5)


def test_a_loss_follows_the_law_itself() -> None:
    tables = measured(np.random.default_rng(0), SIZES)
    losses = {n: 3 * (1 - table) for n, table in tables.items()}
    middle, low, high = fit_curves(losses, higher_is_better=False).at([3200])
    assert middle == pytest.approx([3 * (1 - law(3200))], abs=0.05)
    assert low < middle < high


def test_an_accuracy_above_the_asymptote_is_never_reached() -> None:
    curves = fit_curves(measured(np.random.default_rng(1), SIZES, floor=0.2, scale=1.0))
    assert curves.images_for(0.99)[0] == np.inf


@pytest.mark.parametrize(
    ("exponent", "world"),
    [
        (0.35, World()),
        (0.7, World()),
        (0.5, World(draws=(3, 3, 3, 3, 1), deviation=0.01)),
        (0.5, World(draws=(1,) * 5)),
    ],
    ids=str,
)
def test_intervals_hold_what_one_more_run_gives(exponent: float, world) -> None:
    repetitions = 40
    law = SIMULATIONS["power_law"](exponent)
    found = SIMULATIONS["forecasts"](law, world, repetitions, SIZES)
    # two sizes of one run go together, so that half as many count
    assert found["covered"] >= 0.88 - 3 * (0.88 * 0.12 / repetitions) ** 0.5
    assert found["declined"] <= 0.2


def test_a_curve_that_turns_is_not_extended() -> None:
    turns = SIMULATIONS["power_law"](0.5, turn=0.04)
    assert SIMULATIONS["forecasts"](turns, World(), 20, SIZES)["declined"] > 0.9
    rng = np.random.default_rng(0)
    tables = {n: np.array(rng.random((3, 500)) < turns(n), float) for n in SIZES}
    record = forecast("svm", tables)
    assert record.at is None
    assert record.reason == "what was measured of svm does not follow a power law"


def test_fewer_than_five_sizes_are_not_extended_and_why() -> None:
    tables = measured(np.random.default_rng(0), SIZES[:4])
    assert forecast("svm", tables) == Forecast(
        "svm", (40, 100, 250, 630), "4 sizes were measured; a curve with an asymptote takes 5"
    )
    assert forecast("svm", tables).as_json().keys() == {"strategy", "sizes", "reason"}


def test_a_forecast_says_what_twice_and_five_times_the_images_bring() -> None:
    record = forecast("svm", measured(np.random.default_rng(0), SIZES), wanted=0.94)
    assert [at.n_train for at in record.at] == [3200, 8000]
    assert record.wanted.value == 0.94
    assert record.wanted.low <= record.wanted.n_train


@pytest.mark.slow
def test_the_upper_half_of_real_curves_is_foretold(cifar4: Path, tmp_path: Path) -> None:
    backbone = load_backbone("efficientnet_lite0", size=96)
    engine = make_engine(backbone.module, backbone.preprocessing)
    store = FeatureStore.create(tmp_path / "features.zarr")
    extract(find_images(cifar4), backbone=backbone, engine=engine, store=store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot(None))
    train, test = snapshot.split("train"), snapshot.split("test")
    read = store.last_extracted().features
    seen, truth = read([row.key for row in test]), np.array([str(row.label) for row in test])
    sizes = [40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20000]
    lower, upper = sizes[:5], sizes[5:]
    covered, ours, theirs = [], [], []
    for kind in ("logreg", "knn", "centroid"):
        tables = {}
        for size in sizes:
            right = []
            for seed in range(3 if size < 10_000 else 1):
                rows = nested_subset(train, size, seed)
                labels = [str(row.label) for row in rows]
                head = fit_head(read([row.key for row in rows]), labels, kind=kind, seed=seed)
                right.append(head.predict(seen) == truth)
            tables[size] = np.array(right, float)
        _, low, high = fit_curves({size: tables[size] for size in lower}).at(upper, LEVEL)
        measured = np.array([tables[size].mean() for size in upper])
        covered += ((low <= measured) & (measured <= high)).tolist()
        ours += interval_scores(low, high, measured).tolist()
        last = tables[lower[-1]].mean()
        right_of = round(last * len(test))
        stays = proportion_confint(right_of, len(test), alpha=1 - LEVEL, method="wilson")
        theirs += interval_scores(*stays, measured).tolist()
    assert np.mean(covered) >= 0.8
    assert np.mean(ours) < np.mean(theirs)


def interval_scores(low, high, measured: np.ndarray) -> np.ndarray:
    """T. Gneiting and A. Raftery, "Strictly Proper Scoring Rules" (2007), equation 43."""
    missed = np.maximum(low - measured, 0) + np.maximum(measured - high, 0)
    return high - low + 2 / (1 - LEVEL) * missed
