"""Labels that may be wrong, found among labels of which it is known which are."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from heads.doubts import Doubts, doubt_labels
from heads.fitting import fit_head
from heads.kinds import HEADS


def clouds(n: int, seed: int, *, share: float = 1 / 3) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that overlap, one of which has a share of the rows."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[share, (1 - share) / 2, (1 - share) / 2])
    centres = np.random.default_rng(7).normal(size=(3, 30)) / 1.6
    return (centres[y] + rng.normal(size=(n, 30))).astype(np.float32), y


def planted(y: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels as names of which a share is wrong, and which those are."""
    rng, k = np.random.default_rng(seed), y.max() + 1
    wrong = np.zeros(len(y), dtype=bool)
    wrong[rng.choice(len(y), round(rate * len(y)), replace=False)] = True
    return np.where(wrong, (y + rng.integers(1, k, len(y))) % k, y).astype(str), wrong


def audit(features: np.ndarray, labels: np.ndarray, **choices: object) -> Doubts:
    head = fit_head(features, labels, **({"kind": "logreg"} | choices))
    return doubt_labels(head, features, labels)


def test_most_labels_that_are_contradicted_are_wrong_and_most_wrong_ones_are() -> None:
    digits = load_digits()
    right, found, ranked, by_probability = [], [], [], []
    for seed in range(3):
        some = np.random.default_rng(seed).choice(len(digits.data), 1_200, replace=False)
        features = digits.data[some].astype(np.float32)
        labels, wrong = planted(digits.target[some], 0.05, seed)
        head = fit_head(features, labels, kind="logreg")
        doubts = doubt_labels(head, features, labels)
        assert sorted(doubts.rows) == list(range(1_200))
        assert (np.diff(doubts.margins) >= 0).all()
        contradicted = doubts.rows[doubts.contradicted]
        right.append(wrong[contradicted].mean())
        found.append(np.isin(np.flatnonzero(wrong), contradicted).mean())
        ranked.append(average_precision_score(wrong[doubts.rows], -doubts.margins))
        held = head.held_out
        own = held.probabilities[np.arange(1_200), held.labels]
        by_probability.append(average_precision_score(wrong[held.rows], -own))
    assert np.mean(right) > 0.8
    assert np.mean(found) > 0.85
    assert np.mean(ranked) > np.mean(by_probability)


@pytest.mark.parametrize("rate", [0, 0.05, 0.1])
@pytest.mark.parametrize("classes", [4, 40])
def test_about_as_many_right_labels_are_contradicted_as_was_said(classes: int, rate: float) -> None:
    said, were = [], []
    for seed in range(6):
        rng = np.random.default_rng([seed, classes])
        y = np.repeat(np.arange(classes), 600 // classes if classes < 10 else 30)
        means = rng.normal(0, 0.6 if classes < 10 else 0.9, (classes, 32))
        features = (means[y] + rng.normal(size=(len(y), 32))).astype(np.float32)
        labels, wrong = planted(y, rate, seed)
        doubts = audit(features, labels, c=0.01)
        said.append(doubts.expected)
        were.append((~wrong[doubts.rows[doubts.contradicted]]).sum())
    # a simulation by the same rows, within a factor of three but for single labels
    assert np.mean(were) / 3 - 1 <= np.mean(said) <= 3 * np.mean(were) + 3
    assert np.mean(were) <= 0.02 * len(y)


def test_a_rare_class_is_not_doubted_because_classes_are_weighed_alike() -> None:
    features, y = clouds(900, 0, share=0.9)
    doubts = audit(features, y.astype(str), class_weight="balanced")
    assert doubts.contradicted.mean() < 0.02


def test_a_copy_does_not_vouch_for_a_wrong_label() -> None:
    features, y = clouds(300, 0)
    labels, wrong = planted(y, 0.05, 0)
    groups = np.tile(np.arange(300), 2)
    twice = fit_head(np.tile(features, (2, 1)), np.tile(labels, 2), kind="logreg", groups=groups)
    doubts = doubt_labels(twice, np.tile(features, (2, 1)), np.tile(labels, 2))
    assert np.tile(wrong, 2)[doubts.rows[:30]].sum() >= 24


@pytest.mark.parametrize("kind", HEADS.names())
def test_of_given_validation_rows_those_alone_are_audited(kind: str) -> None:
    features, y = clouds(400, 0)
    labels, wrong = planted(y, 0.05, 0)
    held = (features[300:], labels[300:])
    head = fit_head(features[:300], labels[:300], kind=kind, validation=held)
    doubts = doubt_labels(head, features, labels)
    assert sorted(doubts.rows) == list(range(300, 400))
    assert wrong[doubts.rows[:10]].sum() >= wrong[300:].sum() / 2


@pytest.mark.parametrize("seed", range(3))
def test_few_rows_can_be_audited(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(["a", "b", "c"], [2, 3, 5])
    doubts = audit(rng.normal(size=(10, 4)).astype(np.float32), labels)
    assert np.isfinite(doubts.margins).all()
    assert 0 <= doubts.expected <= 10
