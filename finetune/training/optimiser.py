"""The optimiser: which rate each tensor has, and how rates move over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from finetune.settings import FinetuneSettings

CLASSIFIER_RATE = 1e-3  # of the classifier while it trains alone, as Keras' Adam has it


def make_optimiser(
    modules: nn.Module, depth: Mapping[nn.Parameter, int], settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """Group tensors by their depth, and by whether they decay.

    What the optimiser is given are views of the tensors, their axes in the order of memory.
    PyTorch's fused Adam on CPUs goes through memory and minds no strides: it copies gradients that
    are channels last, for nothing, and where the moments' axes lie in another order than a
    tensor's, as after they were read from a file, it pairs the wrong numbers and says nothing.
    Gradients are handed over at each step; the modules' own are to be zeroed, not the optimiser's.
    Nor may the tensors be moved afterwards, to another device, say: the views would stay behind.

    A group's ``scale`` is its share of the peak learning rate: `settings.layer_decay` to the power
    of how many blocks lie behind it (J. Howard and S. Ruder, "Universal Language Model Fine-tuning
    for Text Classification", 2018, call it discriminative fine-tuning).

    Parameters
    ----------
    modules : whose parameters train, where they require gradients
    depth : blocks between a parameter and the classifier; 0 where it is not there
    settings : gives the rest
    """
    views = {
        parameter: nn.Parameter(_in_order_of(parameter, parameter.detach()))
        for parameter in modules.parameters()
        if parameter.requires_grad
    }
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter, view in views.items():
        place = depth.get(parameter, 0), parameter.dim() > 1
        groups.setdefault(place, []).append(view)
    described = [
        {
            "params": parameters,
            "scale": settings.layer_decay**blocks,
            # neither biases nor normalisation
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (blocks, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    optimiser = kind(described, lr=1.0, fused=True)

    def hand_over(*_: object) -> None:
        for parameter, view in views.items():
            assert view.data_ptr() == parameter.data_ptr(), "tensors were moved"
            gradient = parameter.grad
            view.grad = None if gradient is None else _in_order_of(parameter, gradient)

    def let_go(*_: object) -> None:
        # the next step's gradients are to have this memory
        for view in views.values():
            view.grad = None

    optimiser.register_step_pre_hook(hand_over)
    optimiser.register_step_post_hook(let_go)
    return optimiser


def _in_order_of(parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor with its axes in the order in which a parameter's lie in memory."""
    strides = parameter.stride()
    return tensor.permute(sorted(range(len(strides)), key=lambda axis: -strides[axis]))


def set_rates(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def rate_at(step: int, total: int, alone: int, settings: FinetuneSettings) -> float:
    """Learning rate of a step of a run, counted from 0, of which so many train the classifier."""
    if step < alone:
        return CLASSIFIER_RATE
    if settings.schedule == "constant":
        return settings.peak_learning_rate
    return settings.peak_learning_rate * schedule(step - alone, total - alone, settings.warm_up)


def schedule(step: int, total: int, warm_up: float) -> float:
    """Share of the peak learning rate: a linear rise over ``warm_up``, then a cosine to zero.

    Loshchilov and Hutter 2017, without restarts.
    """
    rise = max(1, round(warm_up * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
