"""Layers and crops: what torchvision's own tools give, in one pass, each in its own set."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, make_image
from torchvision import transforms
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from extract.backbones import Backbone, load_backbone
from extract.engines import TorchEngine, make_engine
from extract.errors import FxError
from extract.extraction import ExtractResult, extract
from extract.images import Preprocessing, Snapshot, batched, decode, find_images, mean_of_crops
from extract.images.crops import prepare
from extract.store import FeatureStore

SIZE = 64


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("resnet18", weights="random", size=SIZE)


def run(
    images: Path, store: Path, backbone: Backbone, *, batch_size: int = 4, **options: object
) -> ExtractResult:
    engine = TorchEngine(
        backbone.module, backbone.preprocessing, torch.device("cpu"), batch_size=batch_size
    )
    return extract(
        find_images(images),
        backbone=backbone,
        engine=engine,
        store=FeatureStore.create(store),
        **options,
    )


def by_path(store: Path, name: str) -> dict[str, np.ndarray]:
    opened = FeatureStore(store)
    rows = Snapshot.from_parquet(*opened.read_snapshot()).rows
    vectors = opened.open_set(name).features([row.key for row in rows])
    return dict(zip((row.path for row in rows), vectors, strict=True))


def test_several_layers_of_one_pass_are_those_of_torchvision(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    layers = ["pool", "layer2", "layer3.0.relu", "layer4:flatten"]
    result = run(folder, tmp_path / "f.zarr", backbone.at_layers(layers))
    assert [one.layer for one in result.layers] == layers
    assert [one.dim for one in result.layers] == [512, 128, 256, 512 * 2 * 2]
    network = get_model("resnet18").eval()
    network.load_state_dict(backbone.module.state_dict(), strict=False)
    nodes = {"avgpool": "pool", "layer2": "layer2", "layer3.0.relu": "inner", "layer4": "layer4"}
    reference = create_feature_extractor(network, nodes)
    for path in ("a/000.png", "b/007.png"):
        (pixels,) = prepare(decode((folder / path).read_bytes()), backbone.preprocessing)
        mean, std = backbone.preprocessing.mean, backbone.preprocessing.std
        image = transforms.Normalize(mean, std)(transforms.ToTensor()(pixels))
        with torch.inference_mode():
            made = {name: value[0] for name, value in reference(image[None]).items()}
        expected = [
            made["pool"].flatten(),
            made["layer2"].mean(dim=(1, 2)),
            made["inner"].mean(dim=(1, 2)),
            made["layer4"].flatten(),
        ]
        for one, values in zip(result.layers, expected, strict=True):
            found = by_path(tmp_path / "f.zarr", one.spec)[path]
            np.testing.assert_allclose(found, values.numpy(), rtol=1e-3, atol=1e-5)


def test_a_layer_that_is_there_is_not_written_again(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    both = backbone.at_layers(["pool", "layer3"])
    result = run(folder, tmp_path / "f.zarr", both)
    # each image was run again, for the layer that was missing
    assert (result.new, result.reused) == (16, 0)
    store = FeatureStore(tmp_path / "f.zarr")
    assert {s.spec.layer: s.committed for s in store.sets()} == {"pool": 16, "layer3": 16}
    make_image(2, 99).save(folder / "a" / "new.png")
    assert run(folder, tmp_path / "f.zarr", both).new == 1
    assert {s.committed for s in store.sets()} == {17}
    assert run(folder, tmp_path / "f.zarr", both).reused == 17


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["layer9"], "no layer 'layer9'; nearest: layer"),
        (["pool", "pool"], "named twice"),
        (["bn1.weight"], "no layer 'bn1.weight'"),
    ],
)
def test_a_layer_that_is_none_is_told(backbone: Backbone, layers: list[str], said: str) -> None:
    with pytest.raises(FxError, match=said):
        backbone.at_layers(layers)


def test_a_node_that_is_a_parameter_is_no_layer() -> None:
    backbone = load_backbone("convnext_tiny", weights="random", size=32)
    with pytest.raises(FxError, match="not a vector each"):
        backbone.at_layers(["features.5.3.features_5_3_layer_scale"])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("efficientnet_lite0", "blocks.4"),
        ("densenet121", "features.denseblock2"),
        ("googlenet", "inception4b"),
        ("squeezenet1_1", "features.8"),
        ("timm/legacy_xception", "block7"),
    ],
)
def test_layers_of_other_families_run_in_both_engines(name: str, layer: str) -> None:
    # inner layers alone: what comes after them is not computed
    backbone = load_backbone(name, weights="random", size=96).at_layers([layer])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    found = {}
    for kind in ("torch", "openvino"):
        engine = make_engine(
            backbone.module, backbone.preprocessing, name=kind, device="cpu", batch_size=3
        )
        (found[kind],) = engine.run([pixels])
        assert found[kind].shape == (3, backbone.dim)
    error = np.linalg.norm(found["torch"] - found["openvino"], axis=1)
    assert (error < 1e-3 * np.linalg.norm(found["torch"], axis=1)).all()


@pytest.mark.parametrize("shape", [(300, 200), (201, 350), (256, 256)])
def test_crops_are_those_of_torchvision(shape: tuple[int, int]) -> None:
    image = make_image(1, 5, size=512).resize(shape)
    preprocessing = Preprocessing(96, 128, "bilinear", (0.5,) * 3, (0.5,) * 3)
    resized = transforms.Resize(128)(image)
    for crops, cut in ((5, transforms.FiveCrop(96)), (10, transforms.TenCrop(96))):
        found = prepare(image, preprocessing, crops)
        expected = np.stack([np.asarray(square) for square in cut(resized)])
        assert found.shape == (crops, 96, 96, 3)
        # theirs has the centre in the middle; each of ours is the nearest of theirs, and near
        error = np.abs(found[:, None].astype(int) - expected[None]).mean(axis=(2, 3, 4))
        assert sorted(error.argmin(axis=1)) == list(range(crops))
        assert error.min(axis=1).max() < 1.0
        assert error[0].argmin() == 4


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
@pytest.mark.parametrize("crops", [5, 10])
def test_features_of_crops_are_averaged_whatever_the_batch(
    folder: Path, tmp_path: Path, backbone: Backbone, crops: int, batch_size: int
) -> None:
    result = run(folder, tmp_path / "f.zarr", backbone, crops=crops, batch_size=batch_size)
    assert (result.crops, result.new) == (crops, 16)
    path = "b/003.png"
    squares = prepare(decode((folder / path).read_bytes()), backbone.preprocessing, crops)
    engine = TorchEngine(
        backbone.module, backbone.preprocessing, torch.device("cpu"), "fp32", crops
    )
    (each,) = engine.run([squares])
    found = by_path(tmp_path / "f.zarr", result.spec)[path]
    np.testing.assert_allclose(found, each.mean(axis=0), rtol=1e-3, atol=1e-5)
    # and are another thing than the centre's
    assert run(folder, tmp_path / "f.zarr", backbone).new == 16


def test_batches_are_full_and_lose_nothing() -> None:
    shown = [np.full((5, 2, 2, 3), number, np.uint8) for number in range(7)]
    batches = list(batched(iter(shown), 4))
    assert [len(batch) for batch in batches] == [4] * 8 + [3]
    vectors = [batch.reshape(len(batch), -1).astype(np.float32) for batch in batches]
    means = np.concatenate(list(mean_of_crops(iter(vectors), 5)))
    np.testing.assert_array_equal(means[:, 0], range(7))


def test_a_head_on_an_inner_layer_and_crops_predicts_from_images(
    folder: Path, tmp_path: Path, fx: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fx("extract", "data", "--size", 32, "--layer", "blocks.2,pool", "--crops", 5, "--json")
    assert said.status == 0, said.err
    extracted = json.loads(said.out)
    assert [one["layer"] for one in extracted["layers"]] == ["blocks.2", "pool"]
    said = fx("fit-head", "logreg", "--layer", "blocks.2", "--json")
    assert said.status == 0, said.err
    head = json.loads(said.out)
    predicted = json.loads(fx("predict", head["path"], "data", "--json").out)["predictions"]
    # the head itself, on the stored features
    from heads.files import load_head

    features = by_path(tmp_path / "features.zarr", extracted["layers"][0]["spec"])
    loaded = load_head(Path(head["path"]))
    for one in predicted:
        probability = loaded.predict_proba(features[one["path"]][None]).max()
        assert one["probability"] == pytest.approx(probability, abs=1e-3)
    missing = fx("fit-head", "logreg", "--layer", "blocks.3")
    assert missing.status == 1
    assert "no features of layer blocks.3" in missing.err
    assert "layer blocks.2" in missing.err
