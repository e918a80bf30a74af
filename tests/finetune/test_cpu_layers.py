"""Layers that train another way on a CPU: the same numbers, and nothing of it stays behind."""

from pathlib import Path

import pytest
import torch
from conftest import finetuned
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.store import FeatureStore
from finetune.training.cpu_layers import quicker_forwards, replaced

NETWORKS = [("mobilenet_v2", 64), ("efficientnet_lite0", 64)]


def gradients(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        features = module(images)
    (features.float() ** 2).mean().backward()
    return [features.detach().float(), *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_features_and_gradients_are_those_of_fp32_as_nearly_as_in_bf16(
    name: str, size: int
) -> None:
    module = load_backbone(name, weights="random", size=size).module.eval()
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    module.zero_grad()
    (module(images) ** 2).mean().backward()
    exact = [module(images).detach(), *(p.grad.clone() for p in module.parameters())]
    usual = gradients(module, images)
    with replaced(quicker_forwards(module)):
        quicker = gradients(module, images)
    assert any(not torch.equal(a, b) for a, b in zip(usual, quicker, strict=True))

    def error(found: list[torch.Tensor]) -> float:
        parts = zip(found, exact, strict=True)
        return sum(float((a - b).norm() / (b.norm() + 1e-12)) for a, b in parts) / len(exact)

    assert 0 < error(quicker) < 1.1 * error(usual) + 1e-3


def test_layers_are_their_own_again_afterwards_also_after_an_error() -> None:
    module = load_backbone("mobilenet_v2", weights="random", size=64).module.eval()
    images = torch.randn(2, 3, 64, 64)
    before = module(images)
    with pytest.raises(ValueError, match="here"), replaced(quicker_forwards(module)):
        raise ValueError("here")
    assert not any("forward" in vars(layer) for layer in module.modules())
    assert torch.equal(module(images), before)


@pytest.mark.parametrize(("precision", "used"), [("bf16", True), ("fp32", False)])
def test_training_in_bf16_takes_the_quicker_way(
    precision: str,
    used: bool,
    backbone: Backbone,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from finetune.training import cpu_layers

    dtypes = set()
    original = cpu_layers._in_fp32

    def noted(forward: cpu_layers.Forward, maps: torch.Tensor) -> torch.Tensor:
        made = original(forward, maps)
        dtypes.add(made.dtype)
        return made

    monkeypatch.setattr(cpu_layers, "_in_fp32", noted)
    finetuned(backbone, store, tmp_path, unfreeze=2, epochs=1, precision=precision)
    assert dtypes == ({torch.float32} if used else set())
