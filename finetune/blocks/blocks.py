"""Blocks of a network: every cut lies where a single tensor passes from one side to the other.

Where the cuts lie, ``finetune.blocks.cut_points`` decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.fx
from torch import nn

from extract.errors import FxError
from finetune.blocks.cut_points import parameters_of, plan_blocks


@dataclass(frozen=True)
class Block:
    """A numbered part of a backbone, input side first.

    Attributes
    ----------
    number : int, from 1
    name : str, the modules that it holds: one path, or ``first-last``
    parameters : int
    output_shape : tuple of int, without the batch: (channels, height, width) or (features,)
    flops_share : float, its part of the network's floating-point operations, 0 to 1
    """

    number: int
    name: str
    parameters: int
    output_shape: tuple[int, ...]
    flops_share: float


def find_blocks(module: nn.Module, size: int, cut_points: Sequence[str] = ()) -> list[Block]:
    """The blocks of a backbone.

    Parameters
    ----------
    module : nn.Module, (n, 3, size, size) -> (n, features); on any device, also ``meta``
    size : int, pixels; take the one that the weights were trained with: far below it (under about
        a third) feature maps of one pixel cannot shrink further, and blocks are found together
    cut_points : modules that end a block, as ``Backbone`` has them; by default the blocks follow
        from the sizes of the feature maps

    Raises
    ------
    FxError
        If the network cannot be traced, or cannot run at this size.
    """
    plan = plan_blocks(module, size, cut_points, count_flops=True)
    total = sum(plan.flops.values())
    blocks = []
    for number, (first, last) in enumerate(plan.ranges, 1):
        nodes = plan.nodes[first : last + 1]
        parameters = {id(p): p for n in nodes for p in parameters_of(plan.graph_module, n).values()}
        blocks.append(
            Block(
                number=number,
                name=_name(plan.graph_module, nodes),
                parameters=sum(p.numel() for p in parameters.values()),
                output_shape=plan.shapes[nodes[-1]][1:],
                flops_share=sum(plan.flops[node] for node in nodes) / total if total else 0.0,
            )
        )
    return blocks


def cut(
    module: nn.Module, size: int, unfreeze: int | Literal["all"], cut_points: Sequence[str] = ()
) -> tuple[nn.Module, nn.Module]:
    """Split a backbone into the part that stays frozen and the part that trains.

    Both share parameters, buffers and layers with `module`: training the tail trains `module` in
    place, and ``module.state_dict()`` keeps its names. ``tail(trunk(x))`` does what ``module(x)``
    does, also in training mode, and the tail does not change its input. ``0`` and ``"all"`` need
    no tracing and work with every network.

    Parameters
    ----------
    module : nn.Module, (n, 3, size, size) -> (n, features)
    size : int, pixels, as in `find_blocks`
    unfreeze : int from 0 to the number of blocks, or "all": how many of the last blocks train
    cut_points : as in `find_blocks`

    Returns
    -------
    trunk, tail : nn.Module
        Where nothing is frozen, the trunk is an `nn.Identity` and the tail `module` itself;
        where everything is, the other way round.

    Raises
    ------
    FxError
        If `unfreeze` is out of range, or the network cannot be traced.
    """
    if unfreeze == "all":
        return nn.Identity(), module
    if unfreeze == 0:
        return module, nn.Identity()
    plan = plan_blocks(module, size, cut_points)
    if not 0 < unfreeze <= len(plan.ranges):
        raise FxError(
            f"`unfreeze` must be from 0 to {len(plan.ranges)}, the number of blocks, or all; "
            f"got {unfreeze}"
        )
    if unfreeze == len(plan.ranges):
        return nn.Identity(), module
    last = plan.ranges[-unfreeze - 1][1]
    trunk, tail = torch.fx.Graph(), torch.fx.Graph()
    in_trunk: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in plan.nodes[: last + 1]:
        in_trunk[node] = trunk.node_copy(node, in_trunk.__getitem__)
    trunk.output(in_trunk[plan.nodes[last]])
    in_tail = {plan.nodes[last]: tail.placeholder("x")}
    position = {node: i for i, node in enumerate(plan.nodes)}
    for node in plan.nodes:
        # a parameter may be fetched early and used late
        late = node.op == "get_attr" and any(position[user] > last for user in node.users)
        if position[node] > last or late:
            in_tail[node] = tail.node_copy(node, in_tail.__getitem__)
    tail.output(in_tail[plan.nodes[-1]])
    return (
        torch.fx.GraphModule(plan.graph_module, trunk),
        torch.fx.GraphModule(plan.graph_module, tail),
    )


def depths(module: nn.Module, size: int, cut_points: Sequence[str] = ()) -> dict[nn.Parameter, int]:
    """How many blocks lie between each parameter of a backbone and its output.

    Of a network that cannot be traced, its largest parts with parameters count as blocks.

    Parameters
    ----------
    module, size, cut_points : as in `find_blocks`
    """
    try:
        plan = plan_blocks(module, size, cut_points)
    except FxError:
        parts = [list(part.parameters()) for part in module.children()]
        groups = [part for part in parts if part]
    else:
        groups = [
            [p for n in plan.nodes[a : b + 1] for p in parameters_of(plan.graph_module, n).values()]
            for a, b in plan.ranges
        ]
    found: dict[nn.Parameter, int] = {}
    for depth, parameters in enumerate(reversed(groups)):
        # a tensor that two blocks share counts with the one nearer to the output
        found = dict.fromkeys(parameters, depth) | found
    return found


def _name(graph_module: torch.fx.GraphModule, nodes: list[torch.fx.Node]) -> str:
    """The largest modules whose parameters all lie within the nodes, first to last."""
    inside = [name for node in nodes for name in parameters_of(graph_module, node)]
    everything = [name for name, _ in graph_module.named_parameters()]
    outside = set(everything) - set(inside)
    paths = []
    for name in inside:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            if not any(other.startswith(path + ".") for other in outside):
                paths.append(path)
                break
    return paths[0] if paths[0] == paths[-1] else f"{paths[0]}-{paths[-1]}"
