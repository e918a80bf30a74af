"""small_cnn: four convolutions by hand, a backbone like any other but for its weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Said
from torch import nn
from torch.nn import functional

from extract.backbones import backbone_info, cut_points, load_backbone
from extract.backbones.by_name import family_of
from extract.errors import FxError
from finetune.blocks import cut, find_blocks

BLOCKS = [
    ("features.0", 32 * 3 * 9 + 64, (32, 64, 64)),
    ("features.1", 64 * 32 * 9 + 128, (64, 32, 32)),
    ("features.2", 128 * 64 * 9 + 256, (128, 16, 16)),
    ("features.3", 256 * 128 * 9 + 512, (256,)),
]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return load_backbone("small_cnn", weights="random").module


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_it_is_what_one_would_write_by_hand(module: nn.Module) -> None:
    tensors = module.state_dict()
    x = images(128)
    for number in range(4):
        weight = tensors[f"features.{number}.0.weight"]
        mean, variance, scale, shift = (
            tensors[f"features.{number}.1.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.conv2d(x, weight, padding=1)
        x = functional.batch_norm(x, mean, variance, scale, shift)
        x = functional.max_pool2d(x.relu(), 2)
    with torch.inference_mode():
        torch.testing.assert_close(module(images(128)), x.mean((2, 3)))
    assert x.shape[1] == 256


def test_it_looks_at_the_whole_shorter_side() -> None:
    preprocessing = load_backbone("small_cnn", weights="random").preprocessing
    assert (preprocessing.size, preprocessing.resize) == (128, 128)
    smaller = load_backbone("small_cnn", weights="random", size=50).preprocessing
    assert (smaller.size, smaller.resize) == (50, 50)


@pytest.mark.parametrize("size", [16, 50, 128])
def test_its_convolutions_are_its_blocks(module: nn.Module, size: int) -> None:
    points = cut_points("small_cnn")
    blocks = find_blocks(module, size, points)
    assert [(block.name, block.parameters) for block in blocks] == [
        (name, parameters) for name, parameters, _ in BLOCKS
    ]
    if size == 128:
        assert [block.output_shape for block in blocks] == [shape for *_, shape in BLOCKS]
    with torch.inference_mode():
        expected = module(images(size))
        for unfreeze in range(5):
            trunk, tail = cut(module, size, unfreeze, points)
            assert torch.equal(tail(trunk(images(size))), expected)


def test_random_weights_are_the_seeds() -> None:
    first, again, other = (
        load_backbone("small_cnn", weights="random", seed=seed).weights_hash for seed in (3, 3, 4)
    )
    assert first == again != other


def test_nobody_has_weights_for_it() -> None:
    assert not family_of("small_cnn").at_hand("small_cnn")
    with pytest.raises(FxError, match=r"small_cnn has no pretrained weights; .*`from_scratch`"):
        load_backbone("small_cnn")
    info, _ = backbone_info("small_cnn")
    assert (info.dim, info.size, info.pretrained, info.at_hand) == (256, 128, False, False)
    assert info.parameters == sum(parameters for _, parameters, _ in BLOCKS)


@pytest.mark.parametrize("classifier", ["classifier", None])
def test_weights_of_ones_own_are_taken_from_a_file(classifier: str | None, tmp_path: Path) -> None:
    trained = load_backbone("small_cnn", weights="random", seed=7)
    state: dict[str, Any] = dict(trained.module.state_dict())
    if classifier:
        state |= {"classifier.weight": torch.zeros(3, 256), "classifier.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "mine.pth")
    loaded = load_backbone("small_cnn", weights=str(tmp_path / "mine.pth"))
    assert loaded.weights_hash == trained.weights_hash


def test_it_is_listed_with_no_weights(fx: Callable[..., Said]) -> None:
    listed = {one["name"]: one for one in json.loads(fx("backbones", "--json").out)["backbones"]}
    assert listed["small_cnn"]["weights"] == "none"
    assert listed["efficientnet_lite0"]["weights"] == "at hand"
    assert listed["resnet50"]["weights"] in ("at hand", "to download")
    told = json.loads(fx("backbones", "small_cnn", "--json").out)
    assert [block["name"] for block in told["blocks"]] == [name for name, *_ in BLOCKS]
