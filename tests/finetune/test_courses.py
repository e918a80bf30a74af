"""What courses do by hand, as commands: on small parts of real data, with random weights.

Their weights are downloads that a test does not make, so that accuracies mean nothing here; what
is tested is that each command runs to its end, trains what it says, and predicts.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.backbones import load_backbone
from finetune.blocks import find_blocks

pytestmark = pytest.mark.slow


@pytest.fixture
def some_cifar4(cifar4: Path, tmp_path: Path) -> Path:
    """Eight training and three test images of each of the four classes."""
    for side, count in (("train", 8), ("test", 3)):
        for label in sorted(path.name for path in (cifar4 / side).iterdir()):
            folder = tmp_path / "cifar" / side / label
            folder.mkdir(parents=True)
            for file in sorted((cifar4 / side / label).iterdir())[:count]:
                (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path / "cifar"


@pytest.fixture
def grey(photos: Path, tmp_path: Path) -> Path:
    """One-channel images of 512 pixels in two classes: photographs, and their negatives."""
    for number, file in enumerate(sorted(photos.iterdir())[:24]):
        with Image.open(file) as image:
            grey = np.asarray(image.convert("L").resize((512, 512)))
        label = ("negative", "positive")[number % 2]
        folder = tmp_path / "grey" / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - grey if number % 2 == 0 else grey).save(folder / f"{number}.png")
    return tmp_path / "grey"


def said(fx: Callable, *words: object) -> dict:
    answer = fx(*words, "--json")
    assert answer.status == 0, answer.err
    return json.loads(answer.out)


def test_resnet50_on_four_classes_at_150_pixels_with_augmentation(
    fx: Callable, some_cifar4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--backbone", "resnet50", "--weights", "random", "--size", "150", "--epochs", "2"]
    record = said(fx, "finetune", some_cifar4, *common, "--augment", "course", "--views", "2")
    assert record["classes"] == ["airplane", "automobile", "bird", "cat"]
    assert (Path(record["path"]) / "augmented.png").exists()
    assert record["n_train"] + record["n_validation"] == 32
    labelled = said(fx, "predict", record["path"], some_cifar4 / "test")
    assert len(labelled["predictions"]) == 12


def test_densenets_last_blocks_on_one_channel_of_512_pixels(
    fx: Callable, grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        b.name for b in find_blocks(load_backbone("densenet121", weights="random").module, 224)
    ]
    common = ["--size", "512", "--channels", "1", "--epochs", "1", "--batch-size", "8"]
    trained = []
    for depth in (1, 2):
        record = said(
            fx, "finetune", grey, "--backbone", "densenet121", "--weights", "random",
            "--unfreeze", depth, *common,
        )  # fmt: skip
        trained.append(record["trainable_parameters"])
        assert "denseblock4" in names[-1]
        assert "denseblock3" in names[-2]
    assert trained[0] < trained[1] < 8_000_000
    scratch = said(fx, "finetune", grey, "--backbone", "small_cnn", "--from-scratch", *common)
    assert scratch["from_scratch"]
    assert scratch["trainable_parameters"] < 500_000


def test_xception_in_a_frozen_phase_and_a_slow_one(
    fx: Callable, some_cifar4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = said(
        fx, "finetune", some_cifar4, "--backbone", "timm/legacy_xception", "--weights", "random",
        "--size", "96", "--unfreeze", "all", "--recipe", "two-phase", "--epochs", "6",
    )  # fmt: skip
    rates = [one["learning_rate"] for one in record["history"]]
    assert rates[1:6] == [1e-3] * 5
    assert set(rates[6:]) <= {1e-5}
    assert record["epochs"] >= 5
