"""Families of backbones: one is added by one object, and is then everywhere."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Said, write_classes
from torch import nn

from extract.backbones import FAMILIES, Architecture, Family, load_backbone
from extract.backbones.by_name import names
from extract.errors import FxError
from extract.images import Preprocessing
from extract.store import FeatureStore
from finetune.blocks import find_blocks


class Toy(nn.Sequential):
    def __init__(self) -> None:
        one, two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        super().__init__(one, nn.ReLU(), two, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class ToyFamily(Family):
    def names(self) -> tuple[str, ...]:
        return ("toy",)

    def build(self, name: str) -> Architecture:
        half = (0.5, 0.5, 0.5)
        return Architecture(Toy(), 6, (), Preprocessing(16, 16, "bilinear", half, half))

    def at_hand(self, name: str) -> bool:
        return True

    def load_default(self, name: str, architecture: Architecture) -> None:
        for parameter in architecture.module.parameters():
            nn.init.constant_(parameter, 0.1)

    def cut_points(self, name: str) -> tuple[str, ...]:
        return ("1",)


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    FAMILIES.add("toys", ToyFamily(), "Networks to play with")
    yield
    FAMILIES.remove("toys")


@pytest.mark.slow
def test_an_added_family_is_listed_extracted_and_in_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Callable[..., Said]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data")
    listed = json.loads(fx("backbones", "--json").out)["backbones"]
    assert [one["dim"] for one in listed if one["name"] == "toy"] == [6]
    extracted = json.loads(fx("extract", "--backbone", "toy", "--json").out)
    assert (extracted["backbone"], extracted["dim"], extracted["new"]) == ("toy", 6, 16)
    features = FeatureStore("features.zarr").last_extracted()
    assert features.spec.backbone == "toy"
    assert features.spec.weights == load_backbone("toy").weights_hash


def test_an_added_family_says_where_its_networks_are_cut() -> None:
    backbone = load_backbone("toy")
    blocks = find_blocks(backbone.module, 16, backbone.cut_points)
    assert [block.name for block in blocks] == ["0", "2"]
    with torch.inference_mode():
        assert backbone.module(torch.zeros(1, 3, 16, 16)).shape == (1, 6)


def test_families_are_known_without_their_libraries() -> None:
    assert list(FAMILIES) == ["efficientnet_lite", "small_cnn", "timm", "torchvision", "toys"]
    assert FAMILIES.help("timm").startswith("timm's networks")
    assert FAMILIES.help("toys") == "Networks to play with"
    with pytest.raises(FxError, match="unknown family of backbones 'tim'; nearest: timm"):
        FAMILIES.check("tim")


def test_every_listed_backbone_has_one_family() -> None:
    listed = [name for key in FAMILIES for name in FAMILIES[key].names()]
    assert sorted(listed) == names()
    assert len(set(listed)) == len(listed)
