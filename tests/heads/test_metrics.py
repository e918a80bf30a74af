"""Metrics: each against its definition, written out a second time."""

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, top_k_accuracy_score

from extract.errors import FxError
from heads.calibration import calibration_error
from heads.evaluation import FEWEST_GROUPS, Evaluation, accuracy_interval, evaluate
from heads.files import load_head, save_head
from heads.fitting import fit_head
from heads.metrics import METRICS, Metric

pytestmark = pytest.mark.filterwarnings("error")


def predictions(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right more often than not, and the truth."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    scores = rng.normal(size=(n, k))
    scores[np.arange(n), y] += 1
    odds = np.exp(scores)
    return odds / odds.sum(axis=1, keepdims=True), y


@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), k=st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_every_measure_is_what_its_definition_says(seed: int, n: int, k: int) -> None:
    p, y = predictions(seed, n, k)
    got = evaluate(p, y, [str(one) for one in range(k)])
    guess = [max(range(k), key=lambda j: row[j]) for row in p]
    counts = [[0] * k for _ in range(k)]
    for truth, said in zip(y, guess, strict=True):
        counts[truth][said] += 1
    right = sum(counts[j][j] for j in range(k))
    assert got.confusion == counts
    assert got["accuracy"] == right / n
    assert got["log_loss"] == pytest.approx(sum(-math.log(p[i, y[i]]) for i in range(n)) / n)

    # Wilson (1927), as every textbook has it
    z, share = 1.959963984540054, right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert got.accuracy_ci == pytest.approx([middle - half, middle + half], abs=1e-9)

    f1 = []
    for j in range(k):
        said, true = sum(row[j] for row in counts), sum(counts[j])
        if said + true:
            f1.append(2 * counts[j][j] / (said + true))
    assert got["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert 0 <= got["ece"] <= 1
    assert got.n_test == n


@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), k=st.integers(2, 14))
@settings(max_examples=60, deadline=None)
def test_measures_by_class_are_those_of_scikit_learn(seed: int, n: int, k: int) -> None:
    p, y = predictions(seed, n, k)
    got = evaluate(p, y, [str(one) for one in range(k)], uncalibrated=p)
    said = p.argmax(axis=1)
    with warnings.catch_warnings():  # of classes that are said and never true
        warnings.simplefilter("ignore")
        assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, said))
    assert got.majority == np.bincount(y).max() / n
    expected = None
    if k > 10:
        expected = pytest.approx(top_k_accuracy_score(y, p, k=5, labels=np.arange(k)))
    assert got.metrics["top5"] == expected
    for j, one in enumerate(got.per_class):
        assert one.n_test == (y == j).sum()
        if one.n_test:
            assert one.recall == pytest.approx((said[y == j] == j).mean())
        else:
            assert one.recall is None
        if (said == j).any():
            assert one.precision == pytest.approx((y[said == j] == j).mean())
        else:
            assert one.precision is None
    assert sum(rows for _, _, rows in got.reliability) == n
    np.testing.assert_allclose(got.reliability_uncalibrated, got.reliability)


def test_calibration_error_of_bins_counted_by_hand() -> None:
    # 64 rows, four bins of 16, in each of which 8 are right; one confidence a bin
    confidence = np.repeat([0.6, 0.7, 0.8, 0.9], 16)
    p = np.stack([confidence, 1 - confidence], axis=1)
    square = np.mean(np.array([0.1, 0.2, 0.3, 0.4]) ** 2)
    got = calibration_error(p, np.tile([0, 1], 32))
    assert got == pytest.approx(math.sqrt(square - 0.5 * 0.5 / 15))


def calibrated(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of six classes, and labels drawn by them."""
    p = rng.dirichlet([0.5] * 6, n)
    return p, (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)


def test_calibrated_predictions_have_nearly_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    few = [calibration_error(*calibrated(rng, 100)) for _ in range(200)]
    # of bins without a correction it is .14; three Monte-Carlo errors of a mean are .01
    assert np.mean(few) < 0.045
    p, y = calibrated(rng, 20_000)
    assert calibration_error(p, y) < 0.015
    sharpened = p**3 / (p**3).sum(axis=1, keepdims=True)
    assert calibration_error(sharpened, y) > 0.1


def test_calibration_error_is_not_taken_for_chance() -> None:
    # root of the mean squared distance of confidences .9 and accuracies of .6 and .8
    rng = np.random.default_rng(0)
    n = 200
    confidence = np.where(np.arange(n) % 2, 0.9, 0.89)
    p = np.stack([confidence, 1 - confidence], axis=1)
    share = np.where(np.arange(n) % 2, 0.6, 0.8)
    drawn = [calibration_error(p, (rng.random(n) > share).astype(int)) for _ in range(300)]
    expected = math.sqrt((0.3**2 + 0.09**2) / 2)
    error = 3 * np.std(drawn) / math.sqrt(300)
    assert np.mean(drawn) == pytest.approx(expected, abs=error + 0.005)


def test_rows_of_groups_are_worth_fewer() -> None:
    p, y = predictions(0, 200, 3)
    alone = evaluate(p, y, ["a", "b", "c"])
    copies = [np.repeat(one, 5, axis=0) for one in (p, y)]
    groups = np.repeat(np.arange(200), 5)
    got = evaluate(*copies, ["a", "b", "c"], groups=groups)
    # copies tell nothing new: the interval is as wide as that of the rows themselves
    assert got.n_groups == 200
    assert got.accuracy_ci == pytest.approx(alone.accuracy_ci, abs=0.003)
    each = evaluate(p, y, ["a", "b", "c"], groups=np.arange(200))
    assert each == alone
    few = evaluate(p, y, ["a", "b", "c"], groups=np.arange(200) % (FEWEST_GROUPS - 1))
    assert few.accuracy_ci is None
    assert few.n_groups == FEWEST_GROUPS - 1
    assert Evaluation.from_dict(json.loads(json.dumps(few.as_dict(), allow_nan=False))) == few


def test_where_no_group_has_a_mistake_each_counts_once() -> None:
    interval, count = accuracy_interval(np.ones(150), np.repeat(np.arange(30), 5))
    z = 2.0452296421327034  # Student's with 29 degrees of freedom
    assert count == 30
    assert interval == pytest.approx((30 / (30 + z * z), 1))


@pytest.mark.parametrize(("size", "accuracy", "alike"), [(5, 0.8, 0.8), (20, 0.95, 0.3)])
def test_the_interval_of_grouped_rows_covers(size: int, accuracy: float, alike: float) -> None:
    rng, covered, repeats = np.random.default_rng(0), 0, 300
    groups = np.repeat(np.arange(40), size)
    for _ in range(repeats):
        shares = rng.beta(accuracy * (1 / alike - 1), (1 - accuracy) * (1 / alike - 1), 40)
        interval, _ = accuracy_interval(rng.random(len(groups)) < shares[groups], groups)
        assert interval is not None
        covered += interval[0] <= accuracy <= interval[1]
    assert covered / repeats > 0.93 - 3 * math.sqrt(0.93 * 0.07 / repeats)


def test_a_class_without_test_rows_is_no_obstacle() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    got = evaluate(p, np.array([0, 1, 1]), ["ape", "bee", "cow"])
    assert got.confusion == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert np.isfinite(got["log_loss"])


def test_a_certain_mistake_costs_much_but_not_infinitely() -> None:
    got = evaluate(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), ["a", "b"])
    assert 10 < got["log_loss"] < 50


def test_metrics_turn_into_json_and_back() -> None:
    got = evaluate(*predictions(3, 40, 3), ["a", "b", "c"])
    assert Evaluation.from_dict(json.loads(json.dumps(got.as_dict(), allow_nan=False))) == got


def test_no_test_rows_is_an_error_that_says_so() -> None:
    with pytest.raises(FxError, match="no test rows"):
        evaluate(np.zeros((0, 2)), np.zeros(0, int), ["a", "b"])


@pytest.fixture
def kappa() -> Iterator[None]:
    """A metric more: Cohen's kappa."""

    def value(labels: np.ndarray, probabilities: np.ndarray) -> float:
        return float(cohen_kappa_score(labels, probabilities.argmax(axis=1)))

    METRICS.add("kappa", Metric("kappa", "Cohen's kappa", value), "Cohen's kappa: above chance.")
    yield
    METRICS.remove("kappa")


def test_a_metric_that_is_added_is_measured_saved_and_read(kappa: None, tmp_path: Path) -> None:
    p, y = predictions(0, 60, 3)
    assert evaluate(p, y, ["a", "b", "c"])["kappa"] == cohen_kappa_score(y, p.argmax(axis=1))
    features = np.random.default_rng(0).normal(size=(40, 4)) + 2 * (np.arange(40) % 2)[:, None]
    labels = np.array(["ant", "bee"] * 20)
    head = fit_head(features, labels, kind="centroid").tested(features, labels)
    save_head(head, tmp_path)
    assert json.loads((tmp_path / "head.json").read_text())["metrics"]["kappa"] > 0.5
    METRICS.remove("kappa")
    assert load_head(tmp_path).metrics == head.metrics  # a metric of another version is kept
    older = head.tested(features, labels)
    METRICS.add("kappa", Metric("kappa", "Cohen's kappa", lambda y, p: 0.0), "")
    save_head(older, tmp_path)
    read = load_head(tmp_path).metrics  # and one that it did not have is missing
    assert read is not None
    assert read.metrics.keys() == set(METRICS) - {"kappa"}
