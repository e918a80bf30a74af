"""The optimiser: PyTorch's own steps, whatever lies how in memory, and after a file was read."""

import copy
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from extract.errors import FxError
from finetune.settings import FinetuneSettings
from finetune.training import TrainingState
from finetune.training.checkpoint import load_training_state, save_training_state
from finetune.training.optimiser import make_optimiser
from heads.calibration import Calibration

PLAIN = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
RATE = 1e-2

STATE = TrainingState(Calibration(1.0, 0.0, 0.0, 0.0, 0.0), epoch=1)


def network(memory_format: torch.memory_format) -> nn.Module:
    """Layers whose weights lie otherwise in memory where channels are last, and others."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(4, 6, 3, bias=False),  # else without a gradient, before a batch norm
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, (1, 3), groups=2),
        nn.Conv2d(6, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    return module.to(memory_format=memory_format)


def settings(kind: str) -> FinetuneSettings:
    return FinetuneSettings(unfreeze="all", optimiser=kind, weight_decay=0.1)


def step(module: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    images = torch.randn(5, 4, 8, 8).to(memory_format=torch.channels_last)
    module.zero_grad()
    module(images).square().mean().backward()
    for group in optimiser.param_groups:
        group["lr"] = RATE
    optimiser.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_steps_are_those_of_the_plain_optimiser(
    kind: str, memory_format: torch.memory_format
) -> None:
    module = network(memory_format)
    other = copy.deepcopy(module)
    optimiser = make_optimiser(module, {}, settings(kind))
    plain = PLAIN[kind](
        [
            {"params": [p for p in other.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in other.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
        fused=False,
        foreach=False,
    )
    for seed in range(4):
        step(module, optimiser, seed)
        step(other, plain, seed)
    for found, expected in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_training_goes_on_bitwise_from_a_file(kind: str, tmp_path: Path) -> None:
    module, other = network(torch.channels_last), network(torch.channels_last)
    optimiser = make_optimiser(module, {}, settings(kind))
    for seed in range(2):
        step(module, optimiser, seed)
    file = tmp_path / "training.safetensors"
    save_training_state(file, STATE, module, optimiser)
    read = make_optimiser(other, {}, settings(kind))
    load_training_state(file, other, read)
    for seed in range(2, 4):
        step(module, optimiser, seed)
        step(other, read, seed)
    for found, expected in zip(other.parameters(), module.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_moments_of_another_shape_are_refused(tmp_path: Path) -> None:
    module = network(torch.channels_last)
    other = make_optimiser(module, {}, settings("adamw"))
    step(module, other, 0)
    first = other.param_groups[0]["params"][0]
    other.state[first]["exp_avg"] = torch.zeros(2)
    file = tmp_path / "training.safetensors"
    save_training_state(file, STATE, module, other)
    with pytest.raises(FxError, match=r"exp_avg 0 is .* begin again with `fresh`"):
        load_training_state(file, module, make_optimiser(module, {}, settings("adamw")))


def test_what_was_judged_is_read_back_where_it_is_not_what_trains(tmp_path: Path) -> None:
    # the moving average of the epoch that is the best and the last one
    module = nn.ModuleDict({"part": nn.Linear(3, 2)})
    optimiser = make_optimiser(module, {}, settings("adamw"))
    judged = {name: torch.randn_like(value) for name, value in module["part"].state_dict().items()}
    average = {"n_averaged": torch.tensor(4)}
    average |= {f"module.{name}": value + 1 for name, value in judged.items()}
    file = tmp_path / "training.safetensors"
    state = replace(STATE, best_epoch=1, best=judged, average=average, head_losses=[0.5, 0.25])
    save_training_state(file, state, module, optimiser)
    read = load_training_state(file, module, optimiser)
    assert read.head_losses == [0.5, 0.25]
    for found, expected in ((read.best, judged), (read.average, average)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
