"""Explanations: heat maps of real networks with their heads, and the nearest training images."""

import itertools
import json
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, answered, finetuned, make_image
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine
from extract.errors import FxError
from extract.extraction import extract
from extract.images import Snapshot, find_images
from extract.store import FeatureStore
from fx.explain import Explainer, overlay
from fx.explain.heat_maps import HeatMaps, last_map
from fx.explain.pictures import save_picture
from fx.export.heads import HeadModule
from fx.options import Options
from fx.stages.fit_head import fit_head_on_store
from fx.stages.models import OpenModel, open_model

pytest.importorskip("pytorch_grad_cam", reason="the extra `explain` is not installed")

Fx = Callable[..., Said]
SIZE = 128
HEADS = [
    ("logreg", {}),
    ("svm", {}),
    ("svm", {"kernel": "linear"}),
    ("svm", {"kernel": "nystroem"}),
    ("svm", {"kernel": "linearsvc"}),
    ("centroid", {}),
]
NAMES = [" ".join([kind, *choices.values()]) for kind, choices in HEADS]


def quiet(_: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def options(store: FeatureStore, out: Path) -> Options:
    return Options(store=store.path, out=out, device="cpu", engine="torch")


def fitted(kind: str, store: FeatureStore, out: Path, **choices: str) -> Path:
    """Fit a head on the features that were extracted last."""
    return Path(fit_head_on_store(kind, options(store, out), begin=quiet, **choices).path)


@pytest.fixture(scope="module")
def wide() -> Backbone:
    """The network at 128 pixels, where its last map has 4 × 4 parts."""
    return load_backbone("efficientnet_lite0", size=SIZE)


@pytest.fixture(scope="module")
def wide_store(
    images: Path, wide: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    store = FeatureStore.create(tmp_path_factory.mktemp("wide") / "f.zarr")
    engine = make_engine(wide.module, wide.preprocessing, name="torch", device="cpu")
    extract(find_images(images), backbone=wide, engine=engine, store=store)
    return store


@pytest.fixture(scope="module")
def network(
    wide: Backbone, wide_store: FeatureStore, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fine-tuned network."""
    folder = tmp_path_factory.mktemp("network")
    finetuned(wide, wide_store, folder, unfreeze=1)
    return folder


def features_of(opened: OpenModel, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    ((engine, _),) = opened.engines
    (features,) = engine.run(iter([pixels[None] if pixels.ndim == 3 else pixels]))
    return features


@pytest.mark.parametrize(("kind", "choices"), HEADS, ids=NAMES)
def test_the_parts_of_a_pooled_map_add_up(
    kind: str, choices: dict[str, str], wide_store: FeatureStore, tmp_path: Path
) -> None:
    """Completeness (Sundararajan et al., 2017): up to what features of 0 have, by whole steps."""
    folder = fitted(kind, wide_store, tmp_path, **choices)
    opened = open_model(folder, options(wide_store, tmp_path))
    ((engine, _),) = opened.engines
    head = HeadModule(opened.opened).steps
    maps = HeatMaps(engine, head)
    assert maps.side == 4
    parts: list[NDArray[np.float32]] = []
    whole = maps.method.get_cam_image
    maps.method.get_cam_image = lambda *given: parts.append(whole(*given)) or parts[-1]
    pixels = np.asarray(make_image(1, 3, size=SIZE))
    maps.draw(pixels[None], 1)
    with torch.inference_mode():
        features = torch.from_numpy(features_of(opened, pixels))
        scores = head(torch.cat([features, torch.zeros_like(features)])).numpy()
    odds = scores[:, 1] - np.logaddexp(scores[:, 0], scores[:, 2])
    assert parts[0].sum() == pytest.approx(odds[0] - odds[1], rel=0.05, abs=0.05)


@pytest.mark.parametrize("model", ["logreg", "svm", "finetuned"])
def test_what_speaks_for_a_class_lies_where_it_is_seen(
    model: str, wide_store: FeatureStore, network: Path, tmp_path: Path
) -> None:
    folder = network if model == "finetuned" else fitted(model, wide_store, tmp_path)
    explainer = Explainer(open_model(folder, options(wide_store, tmp_path)))
    right = 0
    pairs = list(itertools.permutations(range(3), 2)) * 2
    for seed, (left, other) in enumerate(pairs):
        joined = make_image(left, 7000 + seed, size=SIZE)
        joined.paste(make_image(other, 8000 + seed, size=SIZE).crop((64, 0, SIZE, SIZE)), (64, 0))
        right += _mass_on_the_left(explainer, joined, left) > 0.5
    assert right >= 0.8 * len(pairs)


def _mass_on_the_left(explainer: Explainer, image: Image.Image, number: int) -> float:
    heat = explainer.heat_map(np.asarray(image), number)
    assert heat.dtype == np.float32
    assert heat.shape == image.size
    assert 0 <= heat.min() <= heat.max() <= 1
    return float(heat[:, : image.width // 2].sum() / max(heat.sum(), 1e-9))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["fit-head", "logreg"], ["fit-head", "svm"], ["finetune", "data", "--epochs", "4"]],
    ids=["logreg", "svm", "finetuned"],
)
def test_most_of_the_map_lies_on_the_right_half_of_real_images(
    command: list[str], cifar4: Path, fx: Fx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 25's test: 50 images of two halves, each of another class's image, enlarged."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 100), ("test", 40)):
        for folder in sorted((cifar4 / split).iterdir()):
            chosen = tmp_path / "data" / split / folder.name
            chosen.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, chosen)
    if command[0] == "fit-head":
        answered(fx, "extract")
    found = answered(fx, *command)
    explainer = Explainer(open_model(Path(found["path"]), Options(device="cpu")))
    drawn = random.Random(0)
    pairs = list(itertools.permutations(explainer.classes, 2))
    right = 0
    for number in range(50):
        joined = Image.new("RGB", (224, 224))
        names = pairs[number % len(pairs)]
        for place, name in zip((0, 112), names, strict=True):
            file = drawn.choice(sorted((tmp_path / "data" / "test" / name).iterdir()))
            # the middle, of the same proportions
            joined.paste(Image.open(file).resize((224, 224)).crop((56, 0, 168, 224)), (place, 0))
        asked = number % 2
        left = _mass_on_the_left(explainer, joined, explainer.classes.index(names[asked]))
        right += (1 - left if asked else left) > 0.5
    assert right >= 40


@pytest.mark.parametrize(
    ("name", "size", "layer", "side"),
    [
        ("resnet18", 128, "layer4", 4),
        ("mobilenet_v3_small", 160, "features", 5),
        ("densenet121", 128, "features", 4),
        ("vgg11", 128, "features", 4),
        # its last map has a single pixel, which pooling repeats to 7 × 7
        ("vgg11", 32, "features.14", 4),
    ],
)
def test_the_last_map_before_pooling_is_found(name: str, size: int, layer: str, side: int) -> None:
    module = load_backbone(name, weights="random", size=size).module.requires_grad_(False)
    found, across = last_map(module, size)
    assert found is module.get_submodule(layer)
    assert across == side


def test_networks_of_tokens_have_no_maps() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 8, stride=8)
            self.mix = nn.Linear(16, 16)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            return self.mix(tokens).mean(dim=1)

    with pytest.raises(FxError, match="give tokens"):
        last_map(Tokens(), 32)
    with pytest.raises(FxError, match="no feature map"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32**2, 8)), 32)


def test_heat_maps_leave_the_model_as_it_was(
    wide_store: FeatureStore, network: Path, tmp_path: Path
) -> None:
    opened = open_model(network, options(wide_store, tmp_path))
    pixels = np.asarray(make_image(0, 5, size=SIZE))
    before = features_of(opened, pixels)
    explainer = Explainer(opened)
    first = explainer.heat_map(pixels, 0)
    assert np.array_equal(first, explainer.heat_map(pixels, 0))
    assert not np.array_equal(first, explainer.heat_map(pixels, 1))
    np.testing.assert_array_equal(features_of(opened, pixels), before)
    ((engine, _),) = opened.engines
    assert not any(layer._forward_hooks for layer in engine.module.modules())


def test_the_nearest_are_those_of_the_smallest_angle(
    images: Path, wide_store: FeatureStore, tmp_path: Path
) -> None:
    folder = fitted("logreg", wide_store, tmp_path)
    opened = open_model(folder, options(wide_store, tmp_path))
    explainer = Explainer(opened)
    with pytest.raises(FxError, match="not asked for"):
        explainer.nearest(np.zeros(1280, np.float32))
    explainer.find_training_images(folder, options(wide_store, tmp_path), quiet)
    assert explainer.why_no_nearest == ""
    snapshot = Snapshot.from_parquet(*wide_store.read_snapshot())
    rows = [row for row in snapshot.rows if row.split]  # outer folds measure: it is fitted on all
    features = wide_store.last_extracted().features([row.key for row in rows])
    found = explainer.nearest(features[7], 5)
    assert explainer.nearest_by == (
        f"cosine distance of standardised features, among {len(rows)} training images"
    )
    scaler = opened.opened.pipeline[0]
    scaled = (features - scaler.mean_) / scaler.scale_
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    distances = 1 - scaled @ scaled[7]
    assert [Path(one.path) for one in found] == [
        images / rows[i].path for i in np.argsort(distances)[:5]
    ]
    assert [one.label for one in found] == [rows[i].label for i in np.argsort(distances)[:5]]
    np.testing.assert_allclose([one.distance for one in found], np.sort(distances)[:5], atol=1e-4)
    assert found[0].distance == pytest.approx(0, abs=1e-6)
    assert found[0].thumbnail(32).startswith("data:image/jpeg")
    assert len(explainer.nearest(features[7], 10_000)) == len(rows)


def test_votes_have_no_heat_map_but_their_voters_are_shown(
    wide_store: FeatureStore, tmp_path: Path
) -> None:
    folder = fitted("knn", wide_store, tmp_path)
    opened = open_model(folder, options(wide_store, tmp_path))
    explainer = Explainer(opened)
    explainer.find_training_images(folder, options(wide_store, tmp_path), quiet)
    pixels = np.asarray(make_image(2, 11, size=SIZE))
    with pytest.raises(FxError, match="votes"):
        explainer.heat_map(pixels, 0)
    features = features_of(opened, pixels)
    nearest = explainer.nearest(features[0], int(opened.opened.c))
    votes = np.array([sum(one.label == name for one in nearest) for name in opened.classes])
    smoothed = (votes + 1 / len(votes)) / (len(nearest) + 1)
    temperature = opened.opened.calibration.temperature
    expected = smoothed ** (1 / temperature) / (smoothed ** (1 / temperature)).sum()
    np.testing.assert_allclose(opened.probabilities(features)[0], expected, rtol=1e-5)


def test_features_of_a_fine_tuned_network_are_computed_once(
    wide_store: FeatureStore, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(network, options(wide_store, tmp_path))
    ((engine, _),) = opened.engines
    begun: list[str] = []

    def begin(what: str) -> Callable[[int, int], None]:
        begun.append(what)
        return lambda done, total: None

    explainer = Explainer(opened)
    explainer.find_training_images(network, options(wide_store, tmp_path), begin)
    assert explainer.why_no_nearest == ""
    assert explainer.nearest_by.startswith("cosine distance of the fine-tuned network's features")
    assert len(begun) == 1
    snapshot = Snapshot.from_parquet(*wide_store.read_snapshot())
    row = snapshot.split("train")[3]
    pixels = np.asarray(Image.open(Path(snapshot.root) / row.path).resize((SIZE, SIZE)))
    ours = features_of(opened, pixels)[0]
    again = Explainer(opened)
    again.find_training_images(network, options(wide_store, tmp_path), begin)
    assert len(begun) == 1
    assert again.nearest(ours) == explainer.nearest(ours)
    # the store's own last features are still those of the frozen network
    assert wide_store.last_extracted().spec.weights != opened.opened.record.model_sha256
    assert engine.module is opened.opened.network.backbone


@pytest.mark.parametrize("model", ["head", "network"])
def test_without_the_store_there_is_the_heat_map_alone(
    model: str, wide_store: FeatureStore, network: Path, tmp_path: Path
) -> None:
    folder = network if model == "network" else fitted("logreg", wide_store, tmp_path)
    other = FeatureStore.create(tmp_path / "other.zarr")
    explainer = Explainer(open_model(folder, options(wide_store, tmp_path)))
    for store, reason in ((tmp_path / "none.zarr", "no feature store"), (other.path, "not know")):
        explainer.find_training_images(folder, Options(store=store), quiet)
        assert reason in explainer.why_no_nearest
        assert explainer.nearest_by == ""
    assert explainer.heat_map(np.asarray(make_image(0, 1, size=SIZE)), 0).any()


def test_joined_features_and_int8_and_crops_say_what_a_map_is_of(
    wide_store: FeatureStore, tmp_path: Path
) -> None:
    opened = open_model(fitted("logreg", wide_store, tmp_path), options(wide_store, tmp_path))
    ((engine, _),) = opened.engines
    joined = Explainer(replace(opened, engines=[(engine, 1), (engine, 1)]))
    assert "2 sets" in joined.why_no_heat_map
    quantised = Explainer(replace(opened, engines=[(replace(engine, precision="int8"), 1)]))
    assert "in fp32" in quantised.notes[0]
    cropped = Explainer(replace(opened, engines=[(engine, 5)]))
    assert "centre square" in cropped.notes[0]
    pixels = np.stack([np.asarray(make_image(seed % 3, seed, size=SIZE)) for seed in range(5)])
    heat = cropped.heat_map(pixels, 0)
    assert heat.shape == (SIZE, SIZE)
    # the others count: by them, the head's gradient is another
    assert not np.array_equal(heat, cropped.heat_map(pixels[[0, 0, 0, 0, 0]], 0))


def test_an_overlay_is_grey_where_nothing_speaks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    heat = np.zeros((16, 16), np.float32)
    heat[:, 8:] = 1
    laid = overlay(pixels, heat)
    assert laid.dtype == np.uint8
    assert (laid[:, :8] == laid[:, :8, :1]).all()
    assert not (laid[:, 8:] == laid[:, 8:, :1]).all()


def test_a_picture_takes_any_name(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    names = ["$x", "a$b$", "猫", "x" * 300, "a\udcffb", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_picture(tmp_path / "all.png", [("near (0.12)", name, pixels) for name in names])
        save_picture(tmp_path / "one.png", [("near (0.12)", "b", "data:,")])
    with Image.open(tmp_path / "all.png") as whole, Image.open(tmp_path / "one.png") as one:
        assert whole.size == (len(names) * one.width, one.height)


def test_the_command_writes_a_page_and_a_png_of_each_image(
    images: Path, wide_store: FeatureStore, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fitted("logreg", wide_store, tmp_path / "runs")
    hostile = tmp_path / "<b onload=alert(1)>&.png"
    shutil.copy(images / "a" / "000.png", hostile)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    shutil.copytree(images / "b", tmp_path / "more", ignore=lambda _, names: sorted(names)[2:])
    words = ["explain", folder, hostile, "more", "broken.jpg", "--store", wide_store.path]
    said = answered(fx, *words, "--nearest", 3)
    assert len(said["explanations"]) == 3
    assert [one["path"] for one in said["failed"]] == ["broken.jpg"]
    first = said["explanations"][0]
    assert first["path"] == hostile.name
    assert first["explained"] == first["label"]
    assert len(first["nearest"]) == 3
    assert Path(first["nearest"][0]["path"]) == images / "a" / "000.png"
    assert Path(said["page"]) == Path("explained/index.html")
    for one in said["explanations"]:
        with Image.open(one["png"]) as image:
            assert image.format == "PNG"
            assert image.width > 4 * image.height
    page = Path(said["page"]).read_text()
    assert "<b onload" not in page
    assert "&lt;b onload" in page
    assert {*re.findall(r'src="(.{5})', page)} == {"data:"}
    assert page.count("heat map of ") == 3
    assert page.count("the very image") == 3
    printed = fx(*words, "--class", "c", "--nearest", 0)
    assert printed.status == 0, printed.err
    assert "explained: c (" in printed.out
    assert "nearest" not in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())


def test_what_cannot_be_explained_is_said_in_a_line(
    images: Path, wide_store: FeatureStore, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fitted("knn", wide_store, tmp_path / "runs")
    image = images / "a" / "000.png"
    said = fx("explain", folder, image, "--class", "d")
    assert said.err == "fx: error: the model has no class 'd'; it has: a, b, c\n"
    # no heat map, and no store here: what remains is said
    said = fx("explain", folder, image)
    assert said.status == 0
    assert "note: no heat map: votes" in said.out
    assert "note: no nearest training images: no feature store" in said.out
    result = json.loads(fx("explain", folder, image, "--json").out)
    assert result["map_side"] is None
    assert result["explanations"][0]["heat"] is None
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    said = fx("explain", folder, image)
    assert said.status == 1
    assert "pip install 'fx-images[explain]'" in said.err
    assert Explainer(
        open_model(fitted("logreg", wide_store, tmp_path / "runs"), options(wide_store, tmp_path))
    ).why_no_heat_map.endswith("pip install 'fx-images[explain]'")
