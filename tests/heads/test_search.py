"""The search: scikit-learn's coefficients, margins and choice of C, on the same folds."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

import heads.kinds._linear
from extract.errors import FxError
from heads.calibration import calibrate, fit_temperature, log_losses, pairwise_scores
from heads.fitting import fit_head, make_folds
from heads.fitting.search import TIE
from heads.kinds import HEADS
from heads.kinds.logreg import Logistic
from heads.kinds.svm import SupportVectors
from heads.learner import Trial, standardiser
from heads.solver import Problem
from heads.solver.linear import _scores, _sum_of_rows

pytestmark = pytest.mark.filterwarnings("error")

Data = tuple[np.ndarray, np.ndarray]


class Floored(StandardScaler):
    """Standardisation that divides no column by less than the columns' root mean square spread."""

    def fit(self, X, y=None, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.scale_ = np.maximum(np.std(X, axis=0), np.sqrt(np.mean(np.var(X, axis=0))))
        return self


@pytest.fixture(autouse=True)
def one_thread_a_product():
    """BLAS threads that wait for each other on busy cores make scikit-learn crawl."""
    with threadpool_limits(1):
        yield


def tall() -> Data:
    """Ten classes, more rows than columns, three columns that never change."""
    features, y = load_digits(return_X_y=True)
    return features[:500].astype(np.float32), y[:500].astype(str)


def wide() -> Data:
    """Three classes, more columns than rows, on very different scales."""
    features, y = make_classification(
        120, 300, n_informative=12, n_classes=3, class_sep=1.5, random_state=1
    )
    scales = np.geomspace(1e-3, 1e3, 300)
    return (features * scales + scales).astype(np.float32), np.array(["ape", "bee", "cow"])[y]


def pair() -> Data:
    """Two classes."""
    features, y = make_classification(150, 40, n_informative=8, flip_y=0.1, random_state=2)
    return features.astype(np.float32), np.array(["no", "yes"])[y]


# of standardised features, whatever they are
GRID = Logistic().grid(np.zeros((2, 2), np.float32), 2)
SETS = {"tall": tall, "wide": wide, "pair": pair}


def folds_of(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    classes, numbers = np.unique(y, return_inverse=True)
    return make_folds(numbers, classes=classes.tolist(), folds=5)[0]


def reference(c: float) -> Pipeline:
    """scikit-learn's own, solved as far as it goes."""
    return make_pipeline(Floored(), LogisticRegression(C=c, tol=1e-7, max_iter=20_000))


def quiet(fits: int) -> None:
    """Take no notice of progress."""


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("c", [0.003, 0.1, 10.0])
def test_coefficients_are_those_of_scikit_learn(data: str, c: float) -> None:
    features, y = SETS[data]()
    ours = Logistic().fit(features, y, c, jobs=1)[-1]
    theirs = reference(c).fit(features.astype(np.float64), y)[-1]
    assert ours.coef_.shape == theirs.coef_.shape
    error = np.linalg.norm(ours.coef_ - theirs.coef_) / np.linalg.norm(theirs.coef_)
    assert error < 1e-3
    if len(ours.intercept_) > 1:  # a constant added to all of them changes nothing
        ours.intercept_ -= ours.intercept_.mean()
        theirs.intercept_ -= theirs.intercept_.mean()
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=3e-3)


@pytest.mark.parametrize(("c", "most"), [(0.03, 45), (0.3, 55)])
def test_many_classes_take_no_more_iterations(
    c: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(320) % 40
    features = rng.normal(size=(320, 100)) + rng.normal(size=(40, 100))[y]
    features, some, others = features.astype(np.float32), slice(0, 240), slice(240, 320)
    evaluate, evaluated = Problem.evaluate, []

    def counted(problem: Problem, *point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evaluated.append(point)
        return evaluate(problem, *point)

    monkeypatch.setattr(Problem, "evaluate", counted)
    ours = Logistic().fit(features[some], y[some], c, jobs=1)
    assert len(evaluated) < most
    theirs = reference(c).fit(features[some].astype(np.float64), y[some])
    error = np.linalg.norm(ours[-1].coef_ - theirs[-1].coef_) / np.linalg.norm(theirs[-1].coef_)
    assert error < 1e-3
    np.testing.assert_allclose(
        ours.predict_proba(features[others]), theirs.predict_proba(features[others]), atol=1e-3
    )


@pytest.mark.parametrize("rows", [300, 450, 600])
def test_axes_of_a_part_of_the_rows_span_them_all(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads.kinds._linear, "AXES_ROWS", 256)
    features, y = make_classification(rows, 230, n_informative=60, n_classes=3, random_state=3)
    features = features.astype(np.float32)
    head = fit_head(features, np.array(["ape", "bee", "cow"])[y], kind="logreg", c=0.1)
    theirs = reference(0.1).fit(features.astype(np.float64), y)[-1].coef_
    assert np.linalg.norm(head.pipeline[-1].coef_ - theirs) < 1e-3 * np.linalg.norm(theirs)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 2500),
    columns=st.sampled_from([1, 7, 64, 513, 2049, 70_000]),
    classes=st.sampled_from([2, 3, 16, 17]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_products_of_any_size_are_numpys(
    rows: int, columns: int, classes: int, dtype: type
) -> None:
    rows = min(rows, 10**7 // (columns * classes))
    rng = np.random.default_rng(rows)
    X, W = (rng.integers(-4, 5, (n, columns)).astype(dtype) for n in (rows, classes))
    scores = _scores(W, X)
    # of small integers, so that both are exact
    np.testing.assert_array_equal(scores, W @ X.T)
    signs = np.sign(scores)
    np.testing.assert_array_equal(_sum_of_rows(signs, X), signs @ X)


def test_a_fit_takes_one_copy_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40_000, 256)).astype(np.float32)
    y = (X[:, :3] + rng.normal(size=(len(X), 3))).argmax(axis=1)
    tracemalloc.start()
    try:
        Logistic().fit(X, y.astype("U1"), 0.01, jobs=2)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * X.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", SETS)
def test_a_longer_grid_and_the_refit_go_on_from_what_is_solved(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, y = SETS[data]()
    classes, numbers = np.unique(y, return_inverse=True)
    trial = Trial(features, numbers, folds_of(y), jobs=1, tick=quiet)
    evaluate, evaluated = Problem.evaluate, []

    def counted(problem: Problem, *point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evaluated.append(point)
        return evaluate(problem, *point)

    def count(learner: Logistic, *, fit: bool) -> int:
        evaluated.clear()
        if fit:
            fitted.append(learner.fit(features, classes[numbers], GRID[5], jobs=1))
        else:
            scores.append(learner.held_out_scores(trial, GRID[6:]))
        return len(evaluated)

    fitted: list[Pipeline] = []
    scores: list[list[list[np.ndarray]]] = []
    going_on, anew = Logistic(), Logistic()
    going_on.held_out_scores(trial, GRID[:6])
    monkeypatch.setattr(Problem, "evaluate", counted)
    assert count(going_on, fit=False) < 0.7 * count(anew, fit=False)
    for ours, theirs in zip(*scores, strict=True):
        for one, other, (_, rest) in zip(ours, theirs, trial.splits, strict=True):
            difference = log_losses(one, numbers[rest]) - log_losses(other, numbers[rest])
            # beyond the best C solutions are rough
            assert abs(difference.mean()) < 0.03
    assert count(going_on, fit=True) < 0.8 * count(Logistic(), fit=True)
    norm = np.linalg.norm(fitted[1][-1].coef_)
    assert np.linalg.norm(fitted[0][-1].coef_ - fitted[1][-1].coef_) < 1e-3 * norm


def test_values_beyond_the_grid_are_solved_as_well_as_along_it() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(320) % 40
    features = (rng.normal(size=(320, 100)) + rng.normal(size=(40, 100))[y]).astype(np.float32)
    trial = Trial(features, y, folds_of(y)[:1], jobs=1, tick=quiet)
    rest = trial.splits[0][1]
    last = [100.0, 316.0]
    along, alone = (
        [log_losses(of_c[0], y[rest]).mean() for of_c in Logistic().held_out_scores(trial, cs)[-2:]]
        for cs in (GRID + last, last)
    )
    np.testing.assert_allclose(alone, along, rtol=0.02)


@pytest.mark.parametrize("seed", [4, 7])
def test_columns_that_few_rows_speak_in_do_not_mislead_the_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(28) % 3
    features = rng.normal(size=(28, 300)) + rng.normal(scale=0.5, size=(3, 300))[y]
    for row in rng.choice(28, 6, replace=False):
        features[row, rng.choice(300, 40, replace=False)] += 60  # in some folds, held out
    features = features.astype(np.float32)
    learner = Logistic()
    trial = Trial(features, y, folds_of(y), jobs=1, tick=quiet)
    learner.held_out_scores(trial, GRID)
    scaler, ours = learner.fit(features, y, 1e4, jobs=1)
    theirs = LogisticRegression(C=1e4, tol=1e-7, max_iter=20_000)
    theirs.fit(scaler.transform(features.astype(np.float64)), y)
    error = np.linalg.norm(ours.coef_ - theirs.coef_) / np.linalg.norm(theirs.coef_)
    assert error < 0.05  # scikit-learn stops as far from the optimum


@pytest.mark.parametrize("seed", range(3))
def test_the_solver_knows_of_outliers_that_are_rare(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(400) % 4
    features = rng.normal(size=(400, 600)) + rng.normal(scale=0.3, size=(4, 600))[y]
    for row in rng.choice(400, 4, replace=False):
        features[row, rng.choice(600, 60, replace=False)] += 60
    evaluate, evaluated = Problem.evaluate, []

    def counted(problem: Problem, *point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evaluated.append(point)
        return evaluate(problem, *point)

    monkeypatch.setattr(Problem, "evaluate", counted)
    trial = Trial(features.astype(np.float32), y, folds_of(y), jobs=1, tick=quiet)
    Logistic().held_out_scores(trial, GRID)
    # 30 to 31 a fold
    assert len(evaluated) < 5 * 40


@pytest.mark.parametrize("data", SETS)
def test_logistic_regression_chooses_a_c_as_good_as_scikit_learns(data: str) -> None:
    features, y = SETS[data]()
    head = fit_head(features, y, kind="logreg")
    assert head.notes == ()
    search = GridSearchCV(
        reference(1.0).set_params(logisticregression__tol=1e-5),
        {"logisticregression__C": GRID},
        scoring="neg_log_loss",
        cv=folds_of(y),
        refit=False,
    ).fit(features.astype(np.float64), y)
    theirs = -search.cv_results_["mean_test_score"]
    ours = np.array([candidate.log_loss for candidate in head.search])
    near = theirs < 1.05 * theirs.min()
    assert near.sum() >= 2
    np.testing.assert_allclose(ours[near], theirs[near], rtol=0.01)
    # far from the least it is only known that it is far
    assert (ours[~near] > 1.04 * ours.min()).all()
    assert ours.min() == pytest.approx(theirs.min(), abs=1.5e-3)
    spread = np.array([candidate.log_loss_std for candidate in head.search])
    np.testing.assert_allclose(spread[near], search.cv_results_["std_test_score"][near], atol=0.01)
    # of values that tie the smallest; which do depends on losses right to half of a tie each
    chosen = int(np.argmin(np.abs(np.log(GRID) - np.log(head.c))))
    assert head.c == pytest.approx(GRID[chosen])
    assert chosen <= theirs.argmin()
    assert theirs[chosen] < theirs.min() + 2 * TIE


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("data", ["wide", "pair"])
def test_shared_kernels_give_the_margins_of_scikit_learns_svc(data: str, kernel: str) -> None:
    features, y = SETS[data]()
    numbers = np.unique(y, return_inverse=True)[1]
    splits = folds_of(y)
    cs = [0.01, 1.0, 10.0]
    learner = SupportVectors(kernel=kernel)
    ours = learner.held_out_scores(Trial(features, numbers, splits, 2, quiet), cs)
    for c, of_c in zip(cs, ours, strict=True):
        for (fitting, rest), scores in zip(splits, of_c, strict=True):
            machine = make_pipeline(
                Floored(), SVC(C=c, kernel=kernel, decision_function_shape="ovo")
            ).fit(features[fitting], y[fitting])
            theirs = pairwise_scores(machine.decision_function(features[rest]))
            # libsvm stops at 1e-3 of a margin, and rounding decides where
            np.testing.assert_allclose(scores, theirs, rtol=2e-3, atol=8 * 0.02)


@pytest.mark.parametrize("rows", [5, 512, 1100])
def test_a_kernel_in_blocks_is_scikit_learns(rows: int) -> None:
    X = np.random.default_rng(0).normal(size=(rows, 20)).astype(np.float32)
    machine = SupportVectors(kernel="rbf")
    theirs = rbf_kernel(X.astype(np.float64), gamma=0.05)
    np.testing.assert_allclose(machine._kernel(X, X, gamma=0.05, jobs=2), theirs, atol=1e-6)
    np.testing.assert_allclose(machine._kernel(X[:3], X, gamma=0.05, jobs=2), theirs[:3], atol=1e-6)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("data", SETS)
def test_the_svm_is_the_one_that_scikit_learn_fits(data: str, kernel: str) -> None:
    features, y = SETS[data]()
    ours = SupportVectors(kernel=kernel).fit(features, y, 1.0, jobs=2)
    theirs = make_pipeline(Floored(), SVC(C=1.0, kernel=kernel, decision_function_shape="ovo"))
    theirs.fit(features, y)
    assert ours[-1].kernel == kernel
    assert (ours.predict(features) == theirs.predict(features)).mean() > 0.99
    # libsvm stops at 1e-3 of a margin, and rounding decides where
    np.testing.assert_allclose(
        ours.decision_function(features), theirs.decision_function(features), rtol=2e-3, atol=0.02
    )
    np.testing.assert_allclose(
        SupportVectors(kernel=kernel).scores(ours, features),
        pairwise_scores(ours.decision_function(features)),
        rtol=1e-4,
        atol=1e-2,
    )
    np.testing.assert_allclose(ours[-1]._gamma, theirs[-1]._gamma, rtol=1e-5)
    assert len(ours[-1].support_) == pytest.approx(len(theirs[-1].support_), rel=0.02, abs=2)


def test_svm_predicts_what_scikit_learns_svc_predicts() -> None:
    features, y = tall()
    head = fit_head(features[:350], y[:350], kind="svm")
    theirs = head.pipeline.predict(features[350:])
    assert (head.predict(features[350:]) == theirs).mean() > 0.98
    search = GridSearchCV(
        make_pipeline(Floored(), SVC()),
        {"svc__C": SupportVectors(kernel="rbf").grid(features, 2)},
        cv=folds_of(y[:350]),
    ).fit(features[:350], y[:350])
    best = search.score(features[350:], y[350:])
    assert (head.predict(features[350:]) == y[350:]).mean() >= best - 0.015


def test_scores_of_pairs_rank_first_whoever_wins_all_its_pairs() -> None:
    # class 1 beats 0 by 0.2 and 2 by 0.3; class 2 beats 0 by far
    scores = pairwise_scores(np.array([[-0.2, -3.0, 0.3]]))
    assert scores.argmax() == 1
    two = pairwise_scores(np.array([0.7, -0.7]))
    assert two.argmax(axis=1).tolist() == [1, 0]
    assert two[0, 1] - two[0, 0] == pytest.approx(two[1, 0] - two[1, 1])


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_held_out_rows_leave_no_trace_in_the_fit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads.kinds._linear, "SEARCH_TOLERANCE", 3e-3)
    features, y = pair()
    numbers = np.unique(y, return_inverse=True)[1]
    splits = folds_of(y)
    learner = HEADS[kind].learner(kernel="rbf")
    spoilt = features.copy()
    spoilt[splits[0][1][0]] = 1e6  # in the first fold this row is held out
    cs = [0.1, 1.0]
    clean = learner.held_out_scores(Trial(features, numbers, splits, 1, quiet), cs)
    after = learner.held_out_scores(Trial(spoilt, numbers, splits, 1, quiet), cs)
    for i in range(len(cs)):
        assert np.ptp(clean[i][0]) > 1
        np.testing.assert_allclose(after[i][0][1:], clean[i][0][1:], atol=0.03)
        assert np.abs(after[i][1] - clean[i][1]).max() > 0.3  # here it is among the fitting rows


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_noise_is_not_mistaken_for_knowledge(kind: str) -> None:
    rng = np.random.default_rng(0)
    features, y = rng.normal(size=(200, 400)).astype(np.float32), np.tile(["a", "b"], 100)
    head = fit_head(features, y, kind=kind)
    best = next(candidate for candidate in head.search if candidate.c == head.c)
    assert best.log_loss > np.log(2) - 0.03
    assert best.accuracy < 0.62


def test_the_grid_grows_where_the_best_c_is_at_its_end_but_not_for_ever() -> None:
    rng = np.random.default_rng(1)
    y = np.tile(["a", "b"], 50)
    apart = rng.normal(size=(100, 3)).astype(np.float32) + 9 * (y == "b")[:, None]
    head = fit_head(apart, y, kind="logreg")
    tried = [candidate.c for candidate in head.search]
    assert len(tried) > len(GRID)
    np.testing.assert_allclose(np.diff(np.log10(tried)), 0.5)
    assert head.c > GRID[-1]
    end = f"the best C, {GRID[-1]:.3g}, lay at the grid's end: also tried {tried[10]:.3g} to"
    assert head.notes[0].startswith(end)

    # every row stands there twice, under both labels: whatever is learned of it is wrong
    hopeless = fit_head(np.repeat(rng.normal(size=(50, 400)), 2, axis=0), y, kind="logreg")
    assert len(hopeless.search) == len(GRID) + 6
    assert hopeless.c == hopeless.search[0].c
    assert hopeless.notes[-1].endswith("is still the last one tried")


def test_of_equal_candidates_the_smallest_c_is_taken() -> None:
    y = np.tile(["a", "b"], 50)
    apart = np.random.default_rng(1).normal(size=(100, 3)) + 5 * (y == "b")[:, None]
    head = fit_head(apart, y, kind="svm")
    losses = np.array([candidate.log_loss for candidate in head.search])
    tied = [candidate.c for candidate in head.search if candidate.log_loss <= losses.min() + TIE]
    assert len(tied) > 1, "from some C on no margin is violated, and nothing changes any more"
    assert head.c == tied[0]


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_calibration_never_raises_the_log_loss_it_is_fitted_by(kind: str) -> None:
    for make in SETS.values():
        calibration = fit_head(*make(), kind=kind).calibration
        assert calibration.log_loss_after <= calibration.log_loss_before + 1e-6


@given(seed=st.integers(0, 10**6), heat=st.floats(0.2, 5))
@settings(max_examples=30, deadline=None)
def test_temperature_undoes_overconfidence(seed: int, heat: float) -> None:
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(2000, 3)) * 2
    p = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    y = (rng.random(2000)[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    calibration = calibrate(honest * heat, y)
    assert calibration.temperature == pytest.approx(heat, rel=0.15)
    assert calibration.log_loss_after == pytest.approx(log_losses(honest, y).mean(), abs=0.01)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), heat=st.floats(0.3, 5))
@settings(max_examples=30, deadline=None)
def test_a_temperature_drawn_to_one_is_so_by_few_rows_and_not_by_many(
    seed: int, classes: int, heat: float
) -> None:
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(4000, classes)) * 2
    p = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    y = (rng.random(4000)[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, classes - 1)
    free, drawn = fit_temperature(honest, y), fit_temperature(honest, y, spread=1)
    assert drawn == pytest.approx(free, rel=0.01)
    assert fit_temperature(3 * honest, y, spread=1) == pytest.approx(3, rel=0.15)
    some = slice(0, 10)
    free, drawn = (
        fit_temperature(heat * honest[some], y[some], spread=spread) for spread in (None, 0.2)
    )
    assert abs(np.log(drawn)) <= abs(np.log(free)) + 1e-6 or free == 1
    calibration = calibrate(heat * honest, y, spread=1)
    cooled = heat * honest / calibration.temperature
    assert (cooled.argmax(axis=1) == honest.argmax(axis=1)).all()


def test_rows_count_by_their_weights_in_a_temperature() -> None:
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    scores[np.arange(200), y] += 1.5
    weights = rng.integers(1, 4, 200)
    repeated = np.repeat(np.arange(200), weights)
    once, often = (
        calibrate(scores, y, weights=weights.astype(float)),
        calibrate(scores[repeated], y[repeated]),
    )
    assert once.temperature == pytest.approx(often.temperature, rel=1e-4)
    assert once.log_loss_after == pytest.approx(often.log_loss_after)


@given(seed=st.integers(0, 10**6), unit=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_scores_of_any_unit_have_a_temperature_that_a_few_sure_rows_do_not_drive_to_the_end(
    seed: int, unit: float
) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 20, 40)
    sure = rng.normal(size=(40, 20))
    sure[np.arange(40), y] = sure.max(axis=1) + 0.1  # none is mistaken
    temperature = fit_temperature(unit * sure, y, any_unit=True)
    assert temperature == pytest.approx(unit * fit_temperature(sure, y, any_unit=True), rel=1e-3)
    # as confident as 40 right ones and one mistaken allow
    confidence = softmax(unit * sure / temperature, axis=1).max(axis=1)
    assert 0.9 < confidence.mean() < 0.999
    many = rng.normal(size=(5000, 20)) * 2
    honest = softmax(many, axis=1).cumsum(axis=1) > rng.random((5000, 1))
    assert fit_temperature(unit * many, honest.argmax(axis=1), any_unit=True) == pytest.approx(
        unit, rel=0.1
    )


def test_a_temperature_that_the_rows_do_not_determine_stays_one() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    assert calibrate(scores, np.array([0, 1, 0])).temperature == 1
    assert calibrate(scores, np.array([1, 0, 1])).temperature == 1


def test_probabilities_are_those_of_scikit_learns_own_temperature_scaling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads.kinds._linear, "SEARCH_TOLERANCE", 1e-3)
    monkeypatch.setattr(heads.kinds._linear, "LOGIT_TOL", 0.0)
    features, y = wide()
    head = fit_head(features[:90], y[:90], kind="logreg", c=0.01)
    theirs = CalibratedClassifierCV(
        reference(0.01), method="temperature", cv=folds_of(y[:90]), ensemble=False
    ).fit(features[:90].astype(np.float64), y[:90])
    np.testing.assert_allclose(
        head.predict_proba(features[90:]), theirs.predict_proba(features[90:]), atol=2e-3
    )


def test_validation_rows_choose_c_and_stay_out_of_the_fit() -> None:
    features, y = tall()
    train, extra = slice(0, 300), slice(300, 500)
    head = fit_head(
        features[train], y[train], kind="logreg", validation=(features[extra], y[extra])
    )
    losses = [
        log_loss(
            y[extra],
            reference(candidate.c).fit(features[train], y[train]).predict_proba(features[extra]),
        )
        for candidate in head.search
    ]
    near = np.array(losses) < 1.05 * min(losses)
    ours = np.array([one.log_loss for one in head.search])
    np.testing.assert_allclose(ours[near], np.array(losses)[near], atol=4e-3)
    assert head.c == head.search[int(np.argmin(losses))].c
    assert (head.folds, head.n_train) == (0, 300)
    theirs = reference(head.c).fit(features[train].astype(np.float64), y[train])[-1]
    np.testing.assert_allclose(head.pipeline[-1].coef_, theirs.coef_, atol=1e-3)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=8, max_size=25),
    seed=st.integers(0, 1000),
    folds=st.integers(2, 5),
)
@settings(max_examples=60, deadline=None)
def test_grouped_folds_never_split_a_group(sizes: list[int], seed: int, folds: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = groups % 2
    splits, notes = make_folds(
        labels, classes=["a", "b"], folds=folds, groups=[f"g{group}" for group in groups], seed=seed
    )
    held_out = np.concatenate([rest for _, rest in splits])
    assert sorted(held_out) == list(range(len(labels)))
    for fitting, rest in splits:
        assert not set(groups[fitting]) & set(groups[rest])
        assert set(labels[fitting]) == {0, 1}
    assert len(splits) == folds or notes


def test_folds_are_stratified_and_depend_on_the_seed_alone() -> None:
    labels = np.repeat([0, 1], [80, 20])
    first, notes = make_folds(labels, classes=["a", "b"], folds=5, seed=3)
    again, _ = make_folds(labels, classes=["a", "b"], folds=5, seed=3)
    other, _ = make_folds(labels, classes=["a", "b"], folds=5, seed=4)
    assert notes == []
    assert [np.bincount(labels[rest]).tolist() for _, rest in first] == [[16, 4]] * 5
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_few_images_of_a_class_mean_fewer_folds_and_a_note() -> None:
    features, y = pair()
    rows = np.concatenate([np.flatnonzero(y == "no"), np.flatnonzero(y == "yes")[:3]])
    head = fit_head(features[rows], y[rows], kind="logreg")
    assert head.folds == 3
    assert head.notes[0] == "3 folds instead of 5: class 'yes' has 3 training images"


def test_a_class_in_a_single_group_is_an_error_that_names_it() -> None:
    labels = np.repeat([0, 1], 6)
    with pytest.raises(FxError, match=r"class 'bee' .* 1 of its training groups"):
        make_folds(labels, classes=["ape", "bee"], folds=5, groups=[0, 0, 1, 1, 2, 2] + [3] * 6)


def test_a_feature_that_was_silent_in_training_does_not_shout() -> None:
    features = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)
    features[:, 3] = 0
    features[0, 3] = 1e-4
    scaler = standardiser([features])
    assert scaler.scale_.min() >= np.sqrt(scaler.var_.mean()) > 0.9
    loud = features[:1].copy()
    loud[:, 3] = 1
    assert np.abs(scaler.transform(loud)).max() < 5
