"""The approximated SVM: scikit-learn's own classes on the same rows, and when it steps in."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from extract.errors import FxError
from heads.files import load_head, save_head
from heads.fitting import fit_head, make_folds
from heads.kinds._nystroem import SHARPNESS, NystroemMachine
from heads.learner import Trial, scale_gamma

pytestmark = pytest.mark.filterwarnings("error")


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    features, y = load_digits(return_X_y=True)
    return features[:n].astype(np.float32), y[:n].astype(str)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("classes", [2, 10])
def test_held_out_scores_are_scikit_learns(weight: str | None, classes: int) -> None:
    features, y = digits(600)
    some = np.isin(y, np.unique(y)[:classes])
    # classes of different sizes, so that weights matter
    some &= (y != "1") | (np.arange(600) % 3 == 0)
    features, y = features[some], y[some]
    numbers = np.unique(y, return_inverse=True)[1]
    splits, _ = make_folds(numbers, classes=np.unique(y).tolist(), folds=3)
    cs = [0.1, 10.0, 1000.0]
    learner = NystroemMachine("none", weight)
    ours = learner.held_out_scores(Trial(features, numbers, splits, 1, lambda fits: None), cs)
    for c, of_c in zip(cs, ours, strict=True):
        for (fitting, rest), scores in zip(splits, of_c, strict=True):
            known = features[fitting]
            theirs = make_pipeline(
                FunctionTransformer(),
                Nystroem(
                    gamma=scale_gamma(known),
                    n_components=min(1024, len(known)),
                    random_state=0,
                ),
                RidgeClassifier(alpha=1 / c, class_weight=weight),
            ).fit(known, y[fitting])
            margins = theirs.decision_function(features[rest])
            margins = margins if classes > 2 else np.stack([-margins, margins], axis=1)
            np.testing.assert_allclose(scores, SHARPNESS * margins, atol=0.02)


def test_it_is_about_as_right_as_the_exact_machine() -> None:
    features, y = digits(1797)
    train, test = np.arange(1797) % 2 == 0, np.arange(1797) % 2 == 1
    exact, near = (
        fit_head(features[train], y[train], kind="svm", kernel=kernel).tested(
            features[test], y[test]
        )
        for kernel in ("rbf", "nystroem")
    )
    assert exact.metrics is not None
    assert near.metrics is not None
    assert near.metrics["accuracy"] > exact.metrics["accuracy"] - 0.01 > 0.95
    assert near.metrics["ece"] < 0.03


def test_auto_approximates_where_an_exact_machine_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    features, y = digits(300)
    exact = fit_head(features, y, kind="svm", kernel="auto")
    assert exact.kernel in ("rbf", "linear")
    monkeypatch.setattr("heads.kinds.svm.EXACT_ROWS", 299)
    near = fit_head(features, y, kind="svm", kernel="auto")
    assert near.kernel == "nystroem"
    assert any("300 rows are more than the 299 of an exact SVM" in note for note in near.notes)
    with pytest.raises(FxError, match="`kernel=auto`"):
        fit_head(features, y, kind="svm", kernel="rbf")
    save_head(near, tmp_path)
    np.testing.assert_array_equal(load_head(tmp_path).scores(features), near.scores(features))
    assert near.parameters == 10 * (300 + 1)


def test_a_map_that_does_not_fit_its_record_is_refused(tmp_path: Path) -> None:
    features, y = digits(200)
    head = fit_head(features, y, kind="svm", kernel="nystroem", c=1.0)
    head.pipeline[1].components_ = head.pipeline[1].components_[:, :-1]
    save_head(head, tmp_path)
    with pytest.raises(FxError, match="does not fit"):
        load_head(tmp_path)
