"""Heads and features as scikit-learn's own objects."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_classes
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from extract.errors import FxError
from extract.store import FeatureStore
from fx import FeatureExtractor
from heads.estimator import HeadClassifier
from heads.fitting import fit_head
from heads.kinds import HEADS


@parametrize_with_checks([HeadClassifier(kind) for kind in HEADS])
def test_heads_keep_scikit_learns_rules(estimator: HeadClassifier, check: object) -> None:
    check(estimator)


def test_the_estimator_is_the_head() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 12  # as text, 10 would come before 2
    X = (rng.normal(size=(120, 20)) + 2 * np.eye(12, 20)[y]).astype(np.float32)
    estimator = HeadClassifier("svm", kernel="linear").fit(X, y)
    head = fit_head(X, [f"{label:02d}" for label in y], kind="svm", kernel="linear")
    np.testing.assert_array_equal(estimator.predict_proba(X), head.predict_proba(X))
    assert (estimator.predict(X) == y).mean() > 0.7
    assert head.c == estimator.C_


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], list[str]]:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=10, classes=("a", "b"))
    paths = sorted(Path("data").rglob("*.png"))
    return paths, [path.parent.name for path in paths]


def test_paths_become_features_that_are_computed_once(
    images: tuple[list[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = images
    extractor = FeatureExtractor(size=32, engine="torch")
    features = extractor.fit(paths).transform([*paths, paths[0]])
    assert (features.shape, features.dtype) == ((21, 1280), np.float32)
    np.testing.assert_array_equal(features[20], features[0])
    store = FeatureStore(Path("features.zarr"))
    assert len(store.last_extracted().rows) == 20
    assert store.snapshots() == []

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("extract.engines.base.Engine.compute", never)
    Path("data").rename("moved")
    again = extractor.transform([Path("moved", *path.parts[1:]) for path in paths])
    np.testing.assert_array_equal(again, features[:20])


def test_a_pipeline_from_paths_is_cloned_searched_and_predicts(
    images: tuple[list[Path], list[str]],
) -> None:
    paths, labels = images
    model = make_pipeline(FeatureExtractor(size=32), LogisticRegression())
    assert clone(model).get_params()["featureextractor__size"] == 32
    given = np.array([str(path) for path in paths])
    assert cross_val_score(model, given, labels, cv=3).mean() > 0.9
    assert model.fit(given, labels).score(given, labels) == 1


def test_a_file_that_is_no_image_is_named(images: tuple[list[Path], list[str]]) -> None:
    paths, _ = images
    paths[3].write_bytes(b"no image")
    with pytest.raises(FxError, match=r"003\.png cannot be read: not a JPEG"):
        FeatureExtractor(size=32, engine="torch").transform(paths)
    assert len(FeatureStore(Path("features.zarr")).last_extracted().rows) == 19
