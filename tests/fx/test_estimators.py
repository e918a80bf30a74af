"""Heads and features as scikit-learn's own objects."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_classes
from PIL import ExifTags, Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import fx.stages.extractor
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


def test_chance_and_threads_are_given_as_scikit_learn_takes_them() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    X, groups = rng.normal(size=(40, 8)) + y[:, None], np.arange(40) // 2 % 10
    usual = HeadClassifier().fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(HeadClassifier(n_jobs=-1).fit(X, y).predict_proba(X), usual)
    for state in (None, np.random.RandomState(0), np.int64(3)):
        HeadClassifier(random_state=state).fit(X, y, groups=groups)


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


def test_features_are_waited_for_while_another_writes_to_the_store(
    images: tuple[list[Path], list[str]],
) -> None:
    # as in a search with n_jobs=2, which would score nan where one of two ends in an error
    extractor = FeatureExtractor(size=32, engine="torch")
    store = FeatureStore.create(extractor.store)
    with ThreadPoolExecutor(1) as other, store.lock():
        features = other.submit(extractor.transform, images[0])
        with pytest.raises(TimeoutError):
            features.result(timeout=2)
    assert features.result().shape == (20, 1280)


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


def small() -> FeatureExtractor:
    return FeatureExtractor("small_cnn", weights="random", size=32, engine="torch")


def photograph(width: int = 60, height: int = 44) -> Image.Image:
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def see_through(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def wide(image: Image.Image) -> Image.Image:
    samples = np.asarray(image.convert("L")).astype(np.uint16) * 256 + 7
    return Image.fromarray(samples)


def floats(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.float32) / 300)


KINDS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "RGB": ("png", lambda image: image),
    "a JPEG": ("jpg", lambda image: image),
    "grey": ("png", lambda image: image.convert("L")),
    "bits": ("png", lambda image: image.convert("1")),
    "a palette": ("gif", lambda image: image.convert("P")),
    "transparent": ("png", see_through),
    "transparent grey": ("png", lambda image: see_through(image).convert("LA")),
    "a transparent palette": ("png", lambda image: see_through(image).quantize(16)),
    "16 bits": ("png", wide),
    "32 bits": ("tif", lambda image: wide(image).convert("I")),
    "floats": ("tif", floats),
    "CMYK": ("jpg", lambda image: image.convert("CMYK")),
    "Lab": ("tif", lambda image: Image.merge("LAB", image.split())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_in_memory_has_the_features_of_its_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, convert = KINDS[kind]
    file = tmp_path / f"image.{suffix}"
    convert(photograph()).save(file)
    with Image.open(file) as image:
        of_file, of_memory = small().transform([file, image])
    np.testing.assert_array_equal(of_memory, of_file)


def test_arrays_and_pils_images_and_paths_are_mixed_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = photograph()
    pixels, grey = np.asarray(image), np.asarray(image.convert("L"))
    image.save("a.png")
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    image.save("turned.png", exif=orientation)
    Image.fromarray(grey).save("grey.png")
    # of several files at a time
    monkeypatch.setattr(fx.stages.extractor, "MOST_BYTES", 10_000)
    with Image.open("turned.png") as turned:
        given: list[Any] = [
            pixels,
            "a.png",
            turned,
            grey,
            Path("turned.png"),
            image,
            Path("grey.png"),
        ]
        found = small().transform(iter(given))
        again = small().transform([pixels[::-1][::-1], "a.png", turned])
    assert found.shape == (7, 256)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[[0, 1, 0]], found[[1, 5, 5]])
    np.testing.assert_array_equal(found[[2, 3]], found[[4, 6]])
    np.testing.assert_array_equal(again, found[:3])
    assert not np.allclose(found[0], found[2])
    # an array of images is a list of them
    np.testing.assert_array_equal(small().transform(np.stack([pixels, pixels])), found[[0, 0]])
    assert len(FeatureStore(Path("features.zarr")).last_extracted().rows) == 6
    assert small().transform([]).shape == (0, 256)


def test_a_large_jpegs_features_differ_by_what_decoding_it_smaller_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph(1200, 880).save("large.jpg")
    with Image.open("large.jpg") as image:
        of_file, of_memory = small().transform(["large.jpg", np.asarray(image)])
    np.testing.assert_allclose(of_memory, of_file, rtol=0.05, atol=0.02 * of_file.max())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((3, 8, 8), np.float32),
            r"^image 1 is a float32 array of shape \(3, 8, 8\); give",
        ),
        (np.zeros((8, 8, 4), np.uint8), r"^image 1 is a uint8 array of shape \(8, 8, 4\); give"),
        (np.zeros((0, 8), np.uint8), r"^image 1 cannot be read: "),
        (None, r"^image 1 is a NoneType; give a path"),
        (b"a.png", r"^image 1 is a bytes; give a path"),
    ],
)
def test_what_is_no_image_is_named_by_its_number(
    given: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FxError, match=message):
        small().transform([np.zeros((8, 8), np.uint8), given])


def test_one_image_is_no_list_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = photograph()
    given: list[Any] = ["a.png", Path("a.png"), image, np.asarray(image)]
    for one in given:
        with pytest.raises(FxError, match="images must be a list, got a "):
            small().transform(one)


def test_a_damaged_image_of_pils_is_named_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph().save("a.png")
    Path("a.png").write_bytes(Path("a.png").read_bytes()[:-200])
    with Image.open("a.png") as image, pytest.raises(FxError, match=r"^image 0 cannot be read: "):
        small().transform([image])
