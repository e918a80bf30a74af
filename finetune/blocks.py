"""Blocks of a network: every cut lies where a single tensor passes from one side to the other.

One rule serves all networks. The network is traced (torch.fx; layers stay whole, so that dropout,
stochastic depth and batch norm keep their two modes). Its *cut points* are the values at which
nothing else is alive: between the branches of a residual or Inception block there is none. A new
block begins where the feature map becomes at least 1.5 times smaller from one cut point to the
next (strided and pooling layers halve it; unpadded convolutions only trim it). What follows the
last feature map belongs to the last block, unless it has weight matrices of its own: the fully
connected layers of VGG and AlexNet are a block.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.fx
from torch import nn

from extract import FxError
from finetune.tracing import run_without_data, trace

_SMALLER = 1.5


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


def find_blocks(module: nn.Module, size: int) -> list[Block]:
    """The blocks of a backbone.

    Parameters
    ----------
    module : nn.Module, (n, 3, size, size) -> (n, features); on any device, also ``meta``
    size : int, pixels; take the one that the weights were trained with: far below it (under about
        a third) feature maps of one pixel cannot shrink further, and blocks are found together

    Raises
    ------
    FxError
        If the network cannot be traced, or cannot run at this size.
    """
    plan = _plan(module, size, count_flops=True)
    total = sum(plan.flops.values())
    blocks = []
    for number, (first, last) in enumerate(plan.ranges, 1):
        nodes = plan.nodes[first : last + 1]
        parameters = {id(p): p for n in nodes for p in _parameters(plan.graph_module, n).values()}
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
    module: nn.Module, size: int, unfreeze: int | Literal["all"]
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
    unfreeze : int from 0 to the number of blocks, or "all"; the last so many are the tail

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
    plan = _plan(module, size)
    if not 0 < unfreeze <= len(plan.ranges):
        raise FxError(
            f"a number of blocks to unfreeze must be from 0 to {len(plan.ranges)}, or all; "
            f"got {unfreeze}; see them with: fx backbones NAME"
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


def depths(module: nn.Module, size: int) -> dict[nn.Parameter, int]:
    """How many blocks lie between each parameter of a backbone and its output.

    Of a network that cannot be traced, its largest parts with parameters count as blocks.

    Parameters
    ----------
    module, size : as in `find_blocks`
    """
    try:
        plan = _plan(module, size)
    except FxError:
        parts = [list(part.parameters()) for part in module.children()]
        groups = [part for part in parts if part]
    else:
        groups = [
            [p for n in plan.nodes[a : b + 1] for p in _parameters(plan.graph_module, n).values()]
            for a, b in plan.ranges
        ]
    found: dict[nn.Parameter, int] = {}
    for depth, parameters in enumerate(reversed(groups)):
        # a tensor that two blocks share counts with the one nearer to the output
        found = dict.fromkeys(parameters, depth) | found
    return found


@dataclass(frozen=True)
class _Plan:
    """A traced network and where its blocks lie: first and last index into `nodes`."""

    graph_module: torch.fx.GraphModule
    nodes: list[torch.fx.Node]
    shapes: dict[torch.fx.Node, tuple[int, ...]]
    flops: dict[torch.fx.Node, int]
    ranges: list[tuple[int, int]]


def _plan(module: nn.Module, size: int, *, count_flops: bool = False) -> _Plan:
    graph_module = trace(module)
    run = run_without_data(graph_module, size, count_flops)
    shapes, spoilt = run.shapes(), run.overwritten()
    nodes = [node for node in graph_module.graph.nodes if node.op != "output"]
    # the tail must not change its input: the caller may keep it
    cuts = {
        i: shapes[nodes[i]]
        for i in _single_values(graph_module, nodes)
        if nodes[i] in shapes and nodes[i] not in spoilt
    }
    falls = [
        (a, b) for a, b in itertools.pairwise(cuts) if _side(cuts[a]) >= _SMALLER * _side(cuts[b])
    ]
    spans = _module_spans(nodes)
    ends = sorted({_best_cut(fall, falls, cuts, spans) for fall in falls} | {len(nodes) - 1})
    return _Plan(graph_module, nodes, shapes, run.flops, _merged(graph_module, nodes, ends))


def _single_values(graph_module: torch.fx.GraphModule, nodes: list[torch.fx.Node]) -> Iterator[int]:
    """Indices after which the node's own value is the only one still needed.

    Not where a layer with a state (parameters, buffers, dropout) is used on both sides: it could
    be neither frozen nor trained.
    """
    last_use: dict[torch.fx.Node, int] = {}
    state_spans: dict[nn.Module, tuple[int, int]] = {}
    for i, node in enumerate(nodes):
        last_use.update(dict.fromkeys(node.all_input_nodes, i))
        if node.op == "call_module":
            layer = graph_module.get_submodule(str(node.target))
            if layer.state_dict() or isinstance(layer, nn.modules.dropout._DropoutNd):
                state_spans[layer] = (state_spans.get(layer, (i, i))[0], i)
    alive: set[torch.fx.Node] = set()
    for i, node in enumerate(nodes):
        # parameters do not count: either side can fetch them
        if node.op != "get_attr":
            alive.add(node)
        alive = {value for value in alive if last_use.get(value, -1) > i}
        split = any(first <= i < last for first, last in state_spans.values())
        if alive == {node} and not split:
            yield i


def _side(shape: tuple[int, ...]) -> int:
    """Height of a feature map (n, c, h, w); a flat vector counts as one pixel."""
    return shape[2] if len(shape) == 4 else 1


def _module_spans(nodes: list[torch.fx.Node]) -> dict[str, tuple[int, int]]:
    """First and last node inside every module."""
    spans: dict[str, tuple[int, int]] = {}
    for i, node in enumerate(nodes):
        stack = node.meta.get("nn_module_stack", {})
        for path, _ in stack.values():
            spans[path] = (spans.get(path, (i, i))[0], i)
    return spans


def _best_cut(
    fall: tuple[int, int],
    falls: list[tuple[int, int]],
    cuts: dict[int, tuple[int, ...]],
    spans: dict[str, tuple[int, int]],
) -> int:
    """The cut point that ends a block: before the module in which the map becomes smaller.

    The last larger value may lie inside that module (MobileNet widens it sixfold before the
    strided convolution; DenseNet's transition halves its channels before the pooling). Of that
    module's inner values and its input, the smallest is the one to cut at, the earliest of
    equals. Modules that hold several such places are not units but containers.
    """
    last_large, _ = fall
    start = last_large + 1
    for first, last in spans.values():
        held = sum(first <= b and last > a for a, b in falls)
        if first <= last_large < last and held == 1:
            start = min(start, first)
    inside = [i for i in cuts if start - 1 <= i <= last_large]
    return min(inside, key=lambda i: (math.prod(cuts[i]), i))


def _merged(
    graph_module: torch.fx.GraphModule, nodes: list[torch.fx.Node], ends: list[int]
) -> list[tuple[int, int]]:
    """First and last nodes of blocks that hold weight matrices.

    What holds none (pooling, a norm) goes to the block after it, at the end to the last.
    """
    merged: list[tuple[int, int]] = []
    start = 0
    for end in ends:
        block = nodes[start : end + 1]
        parameters = [p for node in block for p in _parameters(graph_module, node).values()]
        if any(p.ndim > 1 for p in parameters):
            merged.append((start, end))
            start = end + 1
    first = merged[-1][0] if merged else 0
    return [*merged[:-1], (first, len(nodes) - 1)]


def _parameters(graph_module: torch.fx.GraphModule, node: torch.fx.Node) -> dict[str, nn.Parameter]:
    """What a node uses, by its name in the network."""
    path = str(node.target)
    if node.op == "call_module":
        layer = graph_module.get_submodule(path)
        return {f"{path}.{name}": p for name, p in layer.named_parameters()}
    if node.op == "get_attr":
        owner, _, name = path.rpartition(".")
        value = getattr(graph_module.get_submodule(owner), name)
        return {path: value} if isinstance(value, nn.Parameter) else {}
    return {}


def _name(graph_module: torch.fx.GraphModule, nodes: list[torch.fx.Node]) -> str:
    """The largest modules whose parameters all lie within the nodes, first to last."""
    inside = [name for node in nodes for name in _parameters(graph_module, node)]
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
