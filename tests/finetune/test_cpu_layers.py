"""Layers that train another way on a CPU: the same numbers, and nothing of it stays behind."""

from pathlib import Path

import pytest
import torch
from conftest import finetuned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.store import FeatureStore
from finetune.training.cpu_layers import quicker_forwards, replaced

NETWORKS = [("mobilenet_v2", 64), ("efficientnet_lite0", 64), ("resnet50", 64)]


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


@settings(deadline=None)
@given(
    sides=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.sampled_from((1, 3)), st.sampled_from((1, 3))),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    channels=st.tuples(st.integers(1, 5), st.sampled_from((3, 200))),
    bias=st.booleans(),
)
def test_a_convolution_as_a_product_is_the_convolution(
    sides: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    channels: tuple[int, int],
    bias: bool,
) -> None:
    layer = nn.Conv2d(*channels, kernel, stride, padding, bias=bias)
    layer.to(memory_format=torch.channels_last)
    maps = torch.randn(2, channels[0], *sides).requires_grad_()
    weights = torch.rand_like(layer(maps))
    (layer(maps) * weights).sum().backward()
    given_by_layer = [layer(maps), maps.grad, *(p.grad for p in layer.parameters())]
    maps.grad = None
    layer.zero_grad()
    quicker = quicker_forwards(layer)
    assert (layer in quicker) == (kernel == (1, 1) or min(stride) > 1)
    with replaced(quicker):
        made = layer(maps)
    (made * weights).sum().backward()
    given_by_product = [made, maps.grad, *(p.grad for p in layer.parameters())]
    for expected, found in zip(given_by_layer, given_by_product, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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
