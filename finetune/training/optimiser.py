"""The optimiser: which rate each tensor has, and how rates move over a run."""

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

    A group's ``scale`` is its share of the peak learning rate: `settings.layer_decay` to the power
    of how many blocks lie behind it (J. Howard and S. Ruder, "Universal Language Model Fine-tuning
    for Text Classification", 2018, call it discriminative fine-tuning).

    Parameters
    ----------
    modules : whose parameters train, where they require gradients
    depth : blocks between a parameter and the classifier; 0 where it is not there
    settings : gives the rest
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in modules.parameters():
        if parameter.requires_grad:
            place = depth.get(parameter, 0), parameter.dim() > 1
            groups.setdefault(place, []).append(parameter)
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
    # a quarter of the time of foreach on CPUs; it ignores strides: gradients lie in memory as their
    # tensors do (autograd sees to it), and moments read from a file are to be laid out so
    return kind(described, lr=1.0, fused=True)


def set_rates(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def rate_at(step: int, total: int, alone: int, settings: FinetuneSettings) -> float:
    """Learning rate of a step, from 0 on; the first ``alone`` train the classifier alone."""
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
