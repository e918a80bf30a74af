"""Leaks: mirrored copies and parts of training images are found among test images, and no more."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from extract.backbones import Backbone, load_backbone
from extract.engines import TorchEngine
from extract.extraction import ExtractResult, extract
from extract.images import Preprocessing, Snapshot, find_images
from extract.leaks import Leak, find_parts, grey_thumbnail, is_part, leaks, near_leaks, parts
from extract.store import ExtractionRun, FeatureSet, FeatureStore, Spec

SPEC = Spec(
    backbone="net",
    weights="00",
    layer="pool",
    size=16,
    crops=1,
    preprocessing=Preprocessing(16, 16, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    numerics="fp32",
)
RUN = ExtractionRun(engine="test", weights_source="default", taken_ns=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As ``find_parts`` has it: such small matrices take several threads many times as long."""
    with threadpool_limits(1, user_api="blas"):
        yield


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def part(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """What is left of an image when shares of its width and height are taken off."""
    width, height = image.size
    return image.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


@settings(deadline=None, max_examples=20)
@given(
    number=st.integers(0, 10_000),
    sides=st.tuples(*[st.floats(0.0, 0.17)] * 4),
    mirrored=st.booleans(),
    width=st.integers(100, 500),
    height=st.integers(100, 500),
    swapped=st.booleans(),
)
def test_a_part_is_recognised_wherever_it_was_cut_and_however_it_is_stretched(
    photos: Path,
    number: int,
    sides: tuple[float, float, float, float],
    mirrored: bool,
    width: int,
    height: int,
    swapped: bool,
) -> None:
    files = sorted(photos.iterdir())
    whole = opened(files[number % len(files)])
    cut = part(whole, *sides).resize((width, height), Image.Resampling.LANCZOS)
    pair = [grey_thumbnail(whole), grey_thumbnail(ImageOps.mirror(cut) if mirrored else cut)]
    assert is_part(*(pair[::-1] if swapped else pair)) is mirrored


def test_different_photographs_are_no_parts_of_each_other(photos: Path) -> None:
    thumbnails = [grey_thumbnail(opened(path)) for path in sorted(photos.iterdir())[:40]]
    grey = np.full((128, 128), 99, np.uint8)
    for one, other in zip(thumbnails, [*thumbnails[1:], grey], strict=True):
        assert is_part(one, other) is None


def test_neighbours_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 12)).astype(np.float32)
    keys = [hashlib.sha256(row.tobytes()).digest() for row in values]
    store = FeatureStore.create(tmp_path / "f.zarr")
    with store.lock():
        writer = store.start([(SPEC, 12)], RUN)
        writer.append(keys, [values], np.zeros((400, 32), np.uint8))
        writer.commit()
    with pytest.MonkeyPatch.context() as patch:
        # so that they come in several parts
        for name, value in {"OTHERS": 7, "READ": 3, "LONGEST": 4}.items():
            patch.setattr(parts, name, value)
        cosines, nearest = parts._neighbours(store.find(SPEC), keys[:50], keys[50:])
    expected = NearestNeighbors(n_neighbors=parts.FARTHER, metric="cosine")
    distances, places = expected.fit(values[50:, ::3]).kneighbors(values[:50, ::3])
    np.testing.assert_allclose(1 - cosines, distances, atol=1e-5)
    np.testing.assert_array_equal(nearest, places)


def extracted(folder: Path, store: Path, backbone: Backbone) -> ExtractResult:
    engine = TorchEngine(backbone.module, backbone.preprocessing, torch.device("cpu"))
    return extract(
        find_images(folder), backbone=backbone, engine=engine, store=FeatureStore.create(store)
    )


@pytest.fixture(scope="module")
def planted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs on both sides, and some of the training ones again among the test ones."""
    root = tmp_path_factory.mktemp("planted")
    files = sorted(photos.iterdir())[:24]
    for number, file in enumerate(files):
        folder = root / ("train" if number < 16 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{number}.jpg")
    images = [opened(file) for file in files]
    again = {
        "mirrored": ImageOps.mirror(images[0]),
        "crop": part(images[1], 0, 0, 0.1, 0.1).resize(images[1].size),
        "mirrored crop": ImageOps.mirror(part(images[2], 0.1, 0.1, 0.1, 0.1)),
        "none": images[3].resize((200, 150)),
    }
    for kind, image in again.items():
        image.save(root / "test" / "a" / f"{kind}.jpg", quality=80)
    return root


def test_mirrored_copies_and_crops_are_leaks_of_a_kind(planted: Path, tmp_path: Path) -> None:
    result = extracted(planted, tmp_path / "f.zarr", load_backbone("efficientnet_lite0", size=96))
    assert [(leak.path, leak.near_copy, leak.kind) for leak in result.leaks] == [
        ("test/a/crop.jpg", "train/b/1.jpg", "crop"),
        ("test/a/mirrored crop.jpg", "train/a/2.jpg", "mirrored crop"),
        ("test/a/mirrored.jpg", "train/a/0.jpg", "mirrored"),
        ("test/a/none.jpg", "train/b/3.jpg", None),
    ]
    assert not result.leaks_not_sought


def test_leaks_are_looked_for_again_only_where_something_changed(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, store = tmp_path / "data", tmp_path / "f.zarr"
    shutil.copytree(planted, root)
    small, large = (load_backbone("efficientnet_lite0", size=size) for size in (64, 96))
    searched = []

    def search(snapshot: Snapshot, features: FeatureSet) -> list[Leak]:
        searched.append(features.name)
        return near_leaks(snapshot, features)

    monkeypatch.setattr(leaks, "near_leaks", search)
    first = [extracted(root, store, one).leaks for one in (small, large)]
    assert [extracted(root, store, one).leaks for one in (small, large)] == first
    assert len(searched) == 2
    # images, the rule, what was kept, and features
    (root / "test" / "a" / "none.jpg").rename(root / "test" / "a" / "other name.jpg")
    [*_, renamed] = extracted(root, store, large).leaks
    assert renamed.path == "test/a/other name.jpg"
    monkeypatch.setattr(leaks, "VERSION", 0)
    extracted(root, store, large)
    assert len(searched) == 4
    for file in (store / "leaks").rglob("c/0"):
        file.write_bytes(b"damaged")
    extracted(root, store, large)
    assert len(searched) == 5
    extracted(root, store, large)
    assert len(searched) == 5
    opened_store = FeatureStore(store)
    with opened_store.lock():
        opened_store.drop_snapshot(opened_store.snapshots()[-1])
    assert len(list((store / "leaks").glob("data*"))) == len(opened_store.snapshots()) == 1


def test_below_96_pixels_crops_are_not_looked_for_and_that_is_said(
    planted: Path, tmp_path: Path
) -> None:
    result = extracted(planted, tmp_path / "f.zarr", load_backbone("efficientnet_lite0", size=64))
    assert {leak.kind for leak in result.leaks} == {"mirrored", None}
    assert "96" in result.leaks_not_sought
    assert "64" in result.leaks_not_sought


def test_an_image_that_has_changed_since_is_no_part(planted: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(planted, root)
    extracted(root, tmp_path / "f.zarr", load_backbone("efficientnet_lite0", size=96))
    store = FeatureStore(tmp_path / "f.zarr")
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = snapshot.split("test"), snapshot.split("train")
    features = store.last_extracted()
    assert len(find_parts(features, root, *rows)) >= 2
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"no longer this image")
    assert not find_parts(features, root, *rows)
    assert not find_parts(features, tmp_path / "moved away", *rows)
