"""Kinds of head, normalisations and class weights: scikit-learn's own, fitted on the same rows."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Said
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer

from extract.errors import FxError
from heads.files import load_head, save_head
from heads.fitting import fit_head, make_folds, measure_by_resampling
from heads.fitting.resampling import corrected_interval
from heads.kinds import HEADS
from heads.kinds.knn import Neighbours
from heads.kinds.logreg import Logistic
from heads.learner import HeadKind, Learner, Trial
from heads.plots import write_plots

Fx = Callable[..., Said]

pytestmark = pytest.mark.filterwarnings("error")

NORMALISERS = {"l2": Normalizer, "none": FunctionTransformer}


def digits(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    features, y = load_digits(return_X_y=True)
    # no two distances are the same, and no pixel is always black
    noise = np.random.default_rng(0).normal(scale=0.01, size=features.shape)
    return (features + noise)[:n].astype(np.float32), y[:n].astype(str)


@pytest.mark.parametrize("normalize", NORMALISERS)
@pytest.mark.parametrize("two", [False, True])
def test_other_normalisations_give_scikit_learns_coefficients(normalize: str, two: bool) -> None:
    features, y = digits()
    if two:
        features, y = features[np.isin(y, ["3", "8"])], y[np.isin(y, ["3", "8"])]
    c = {"l2": 100.0, "none": 0.01}[normalize]
    ours = Logistic(normalize).fit(features, y, c, jobs=1)
    theirs = make_pipeline(
        NORMALISERS[normalize](), LogisticRegression(C=c, tol=1e-8, max_iter=20_000)
    ).fit(features.astype(np.float64), y)
    error = np.linalg.norm(ours[-1].coef_ - theirs[-1].coef_) / np.linalg.norm(theirs[-1].coef_)
    assert error < 1e-3
    np.testing.assert_allclose(
        ours.predict_proba(features), theirs.predict_proba(features), atol=2e-3
    )


def test_balanced_classes_give_scikit_learns_coefficients() -> None:
    features, y = digits()
    rare = np.concatenate([np.flatnonzero(y != "7"), np.flatnonzero(y == "7")[:4]])
    features, y = features[rare], y[rare]
    ours = Logistic("none", "balanced").fit(features, y, 0.01, jobs=1)[-1]
    theirs = LogisticRegression(C=0.01, class_weight="balanced", tol=1e-8, max_iter=20_000)
    theirs.fit(features.astype(np.float64), y)
    assert np.linalg.norm(ours.coef_ - theirs.coef_) < 1e-3 * np.linalg.norm(theirs.coef_)


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_balanced_classes_find_more_of_a_rare_class(kind: str) -> None:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(660) < 600, "common", "rare")
    features = (rng.normal(size=(660, 4)) + 1.0 * (y == "rare")[:, None]).astype(np.float32)
    some = np.arange(660) % 2 == 0
    recalls = []
    for weight in (None, "balanced"):
        head = fit_head(features[some], y[some], kind=kind, class_weight=weight)
        assert "class 'common' has 300 training images and 'rare' 30:" in head.notes[0]
        per_class = head.tested(features[~some], y[~some]).metrics.per_class
        recalls.append(per_class[1].recall)
    assert recalls[1] > recalls[0] + 0.2


def test_neighbours_vote_as_scikit_learns_do() -> None:
    features, y = digits()
    numbers = np.unique(y, return_inverse=True)[1]
    splits, _ = make_folds(numbers, classes=np.unique(y).tolist(), folds=3)
    cs = [1.0, 5.0, 20.0]
    trial = Trial(features, numbers, splits, 1, lambda fits: None)
    ours = Neighbours("none").held_out_scores(trial, cs)
    for c, of_c in zip(cs, ours, strict=True):
        for (fitting, rest), scores in zip(splits, of_c, strict=True):
            theirs = KNeighborsClassifier(int(c)).fit(features[fitting], y[fitting])
            shares = np.exp(scores) * (c + 1) / c - 1 / (10 * c)
            np.testing.assert_allclose(shares, theirs.predict_proba(features[rest]), atol=1e-9)


def test_the_nearest_centroid_is_scikit_learns() -> None:
    features, y = digits()
    head = fit_head(features[:200], y[:200], kind="centroid", normalize="none")
    theirs = NearestCentroid().fit(features[:200], y[:200])
    assert (head.predict(features[200:]) == theirs.predict(features[200:])).all()
    assert len(head.search) == 1


@pytest.mark.parametrize("kind", HEADS.names())
@pytest.mark.parametrize("normalize", ["l2", "none"])
def test_every_kind_reads_back_bit_for_bit(kind: str, normalize: str, tmp_path: Path) -> None:
    features, y = digits(120)
    head = fit_head(features[:100], y[:100], kind=kind, normalize=normalize)
    save_head(head, tmp_path)
    again = load_head(tmp_path)
    np.testing.assert_array_equal(
        again.predict_proba(features[100:]), head.predict_proba(features[100:])
    )
    assert (again.normalize, again.parameters) == (normalize, head.parameters)


def test_auto_takes_the_normalisation_and_kernel_of_the_least_log_loss() -> None:
    features, y = digits()
    head = fit_head(features, y, kind="svm", normalize="auto", kernel="auto")
    variants = {(one.kernel, one.normalize) for one in head.search}
    assert len(variants) == 6
    least = min(head.search, key=lambda one: one.log_loss)
    chosen = [
        one
        for one in head.search
        if (one.kernel, one.normalize, one.c) == (head.kernel, head.normalize, head.c)
    ]
    assert chosen[0].log_loss <= least.log_loss + 2e-3
    # each is found alone as it is found among the others
    alone = fit_head(features, y, kind="svm", normalize=head.normalize, kernel=head.kernel)
    assert alone.c == head.c


def test_a_tenth_of_the_length_of_rows_changes_no_choice() -> None:
    features, y = digits()
    heads = [fit_head(features * scale, y, kind="logreg", normalize="none") for scale in (1, 0.1)]
    assert heads[1].c == pytest.approx(100 * heads[0].c)
    np.testing.assert_allclose(
        heads[1].predict_proba(features * 0.1), heads[0].predict_proba(features), atol=5e-3
    )


def test_few_images_are_left_out_one_by_one() -> None:
    y = np.array(["a"] * 12 + ["b"] * 3)
    features = np.random.default_rng(0).normal(size=(15, 4)) + 3 * (y == "b")[:, None]
    head = fit_head(features, y, kind="logreg")
    assert head.folds == 15
    assert head.notes[0] == ("leave-one-out instead of 5 folds: class 'b' has 3 training images")


def test_many_small_groups_are_dealt_out_whole_and_stratified() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 900, 2_000)
    labels = (groups % 3 == 0).astype(int)  # one label a group
    splits, notes = make_folds(labels, classes=["a", "b"], folds=5, groups=groups)
    assert notes == []
    assert sorted(np.concatenate([rest for _, rest in splits])) == list(range(2_000))
    for fitting, rest in splits:
        assert not set(groups[fitting]) & set(groups[rest])
        assert labels[rest].mean() == pytest.approx(labels.mean(), abs=0.05)
        assert len(rest) == pytest.approx(400, rel=0.15)


def test_resampling_measures_every_image_and_chooses_inside() -> None:
    features, y = digits(150)
    metrics = measure_by_resampling(features, y, kind="logreg")
    assert metrics.measured_by == "3 times 5 outer folds"
    assert metrics.n_test == 150
    # the matrix and the accuracy are of the same predictions, three of each image
    assert np.sum(metrics.confusion) == 3 * 150
    assert metrics["accuracy"] == pytest.approx(np.trace(metrics.confusion) / 450)
    recalls = np.diag(metrics.confusion) / np.sum(metrics.confusion, axis=1)
    assert [one.recall for one in metrics.per_class] == pytest.approx(recalls)
    assert metrics["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert sum(one.n_test for one in metrics.per_class) == 150
    assert metrics.accuracy_ci[0] < metrics["accuracy"] < metrics.accuracy_ci[1]
    assert metrics["accuracy"] > 0.8
    chance = measure_by_resampling(
        np.random.default_rng(0).normal(size=(120, 30)), np.tile(["a", "b"], 60), kind="logreg"
    )
    assert chance.accuracy_ci[0] < 0.5 < chance.accuracy_ci[1]


def test_copies_in_one_group_are_not_mistaken_for_knowledge() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 40)), 2, axis=0)
    y = np.repeat(np.tile(["a", "b"], 30), 2)
    torn = measure_by_resampling(features, y, kind="knn")
    whole = measure_by_resampling(features, y, kind="knn", groups=np.repeat(np.arange(60), 2))
    assert torn["accuracy"] > 0.9
    assert whole["accuracy"] < 0.65


def test_the_interval_allows_for_the_overlap_of_the_folds() -> None:
    accuracies = np.array([0.8, 0.9, 0.7, 0.85, 0.75])
    low, high = corrected_interval(accuracies, 0.25)
    # t(4, 97.5 %) = 2.776; s^2 = 0.00625; sqrt((1/5 + 1/4) s^2) = 0.05303
    assert (low + high) / 2 == pytest.approx(0.8)
    assert (high - low) / 2 == pytest.approx(2.776 * 0.05303, rel=1e-3)


def test_outer_folds_need_three_images_of_a_class() -> None:
    features, y = digits(40)
    y[:38], y[38:] = "many", "few"
    with pytest.raises(FxError, match="class 'few' has too few images for outer folds; 3"):
        measure_by_resampling(features, y, kind="logreg")


@pytest.mark.parametrize("kind", HEADS.names())
def test_plots_are_images_of_the_search_and_of_reliability(kind: str, tmp_path: Path) -> None:
    features, y = digits(150)
    head = fit_head(features[:100], y[:100], kind=kind, normalize="auto")
    write_plots(head.tested(features[100:], y[100:]), tmp_path)
    for name in ("search.png", "reliability.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (960, 600)
            assert len(image.convert("RGB").getcolors(100_000)) > 50


def test_a_learner_says_which_choices_there_are() -> None:
    with pytest.raises(FxError, match="unknown class weight 'heavy'; choose balanced"):
        HEADS["logreg"].learner(class_weight="heavy")


class Discriminant(Learner):
    """Linear discriminant analysis with a shrunk covariance: a head in a few lines."""

    def estimator(self, c: float) -> LinearDiscriminantAnalysis:
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


@pytest.fixture
def discriminant() -> Iterator[None]:
    """A head more."""
    HEADS.add("lda", HeadKind("lda", {None: Discriminant}), "Linear discriminant analysis.")
    yield
    HEADS.remove("lda")


@pytest.mark.parametrize("normalize", ["standard", "none"])
@pytest.mark.parametrize("classes", [2, 10])
def test_a_head_that_is_added_is_searched_calibrated_saved_and_predicts(
    discriminant: None, normalize: str, classes: int, tmp_path: Path
) -> None:
    features, y = digits(600)
    some = np.isin(y, np.unique(y)[:classes])
    features, y = features[some], y[some]
    head = fit_head(features[::2], y[::2], kind="lda", normalize=normalize)
    assert len(head.search) == 1
    assert head.folds == 5
    assert head.calibration.log_loss_after <= head.calibration.log_loss_before
    save_head(head.tested(features[1::2], y[1::2]), tmp_path)
    again = load_head(tmp_path)
    assert again.metrics is not None
    assert again.metrics["accuracy"] > 0.9
    np.testing.assert_array_equal(again.scores(features), head.scores(features))
    assert (again.pipeline.predict(features) == head.predict(features)).all()


def test_a_head_that_is_added_is_in_the_command_s_help(discriminant: None, fx: Fx) -> None:
    assert "Linear discriminant analysis." in fx("fit-head", "--help").out
    assert "centroid, knn, lda, logreg, svm" in fx("fit-head", "tree").err
