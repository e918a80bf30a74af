"""The protocol of Kornblith et al., against the same done with scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from extract.errors import FxError
from heads.fitting import fit_head
from heads.plots import _draw_search


def digits() -> tuple[np.ndarray, np.ndarray]:
    features, y = load_digits(return_X_y=True)
    return (features / 16).astype(np.float32), y.astype(str)


def test_c_has_the_best_accuracy_on_validation_rows_and_all_rows_are_fitted() -> None:
    features, y = digits()
    train, validation = np.arange(0, 400), np.arange(400, 800)
    head = fit_head(
        features[train],
        y[train],
        kind="logreg",
        protocol="kornblith",
        validation=(features[validation], y[validation]),
    )
    assert [one.c for one in head.search] == pytest.approx(1 / np.logspace(5, -6, 45))
    assert {one.normalize for one in head.search} == {"none"}
    best = max(one.accuracy for one in head.search)
    assert head.c == next(one.c for one in head.search if one.accuracy == best)
    for one in head.search[10:30:4]:
        theirs = LogisticRegression(C=one.c, max_iter=10_000, tol=1e-6)
        theirs.fit(features[train], y[train])
        assert one.accuracy == pytest.approx(
            theirs.score(features[validation], y[validation]), abs=2 / 400
        )
    both = np.concatenate([train, validation])
    # Newton's method: with next to no penalty L-BFGS is a hundredth away after 300 iterations
    refitted = LogisticRegression(C=head.c, solver="newton-cg", max_iter=2000, tol=1e-10).fit(
        features[both].astype(np.float64), y[both]
    )
    error = np.linalg.norm(head.pipeline[-1].coef_ - refitted.coef_)
    assert error < 1e-3 * np.linalg.norm(refitted.coef_)
    assert head.n_train == 800
    assert head.folds == 0


def test_without_validation_rows_a_fifth_of_the_training_rows_chooses() -> None:
    features, y = digits()
    head = fit_head(features[:500], y[:500], kind="logreg", protocol="kornblith")
    assert head.n_train == 500
    assert head.notes == ("kornblith: C chosen on 100 validation images",)
    assert head.held_out is not None
    assert len(head.held_out.rows) == 100
    assert head.tested(features[500:], y[500:]).metrics.accuracy > 0.85


@pytest.mark.parametrize(
    ("kind", "choices"),
    [("svm", {}), ("logreg", {"normalize": "l2"}), ("logreg", {"c": 1.0})],
)
def test_what_the_protocol_fixes_cannot_be_chosen(kind: str, choices: dict[str, object]) -> None:
    features, y = digits()
    with pytest.raises(FxError, match="leave out"):
        fit_head(features, y, kind=kind, protocol="kornblith", **choices)


def test_too_few_images_for_validation_rows_are_an_error_that_names_the_class() -> None:
    features, y = digits()
    rows = np.concatenate([np.flatnonzero(y == "0")[:20], np.flatnonzero(y == "1")[:3]])
    with pytest.raises(FxError, match="'1' has 3 training images; add images, or give validation"):
        fit_head(features[rows], y[rows], kind="logreg", protocol="kornblith")


def test_the_search_is_drawn_by_what_it_chose_by(tmp_path: Path) -> None:
    features, y = digits()
    head = fit_head(features[:500], y[:500], kind="logreg", protocol="kornblith")
    (axes,) = _draw_search(head, tmp_path).axes
    assert axes.get_ylabel() == "accuracy of held-out rows"
    drawn = axes.lines[0].get_ydata()
    assert drawn.max() == head.search[[one.c for one in head.search].index(head.c)].accuracy


def test_an_unknown_protocol_is_named() -> None:
    features, y = digits()
    with pytest.raises(FxError, match="unknown protocol 'clip'; there is kornblith"):
        fit_head(features, y, kind="logreg", protocol="clip")
