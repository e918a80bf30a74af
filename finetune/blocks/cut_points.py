"""Where a network can be cut into blocks.

The network is traced (torch.fx; layers stay whole, so that dropout, stochastic depth and batch norm
keep their two modes). Its *cut points* are the values at which nothing else is alive: between the
branches of a residual or Inception block there is none. Where the family of the backbone names the
modules that end a block (``Family.cut_points``), those are taken. One rule serves all others: a new
block begins where the feature map becomes at least 1.5 times smaller from one cut point to the
next (strided and pooling layers halve it; unpadded convolutions only trim it). What follows the
last feature map belongs to the last block, unless it has weight matrices of its own: the fully
connected layers of VGG and AlexNet are a block.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.fx
from torch import nn

from finetune.blocks.tracing import run_without_data, trace

_SMALLER = 1.5


@dataclass(frozen=True)
class BlockPlan:
    """A traced network and where its blocks lie: first and last index into `nodes`."""

    graph_module: torch.fx.GraphModule
    nodes: list[torch.fx.Node]
    shapes: dict[torch.fx.Node, tuple[int, ...]]
    flops: dict[torch.fx.Node, int]
    ranges: list[tuple[int, int]]


def plan_blocks(
    module: nn.Module, size: int, cut_points: Sequence[str], *, count_flops: bool = False
) -> BlockPlan:
    """Trace a network and find its blocks; parameters as in ``finetune.find_blocks``."""
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
    spans = _module_spans(nodes)
    named = {spans[path][1] for path in cut_points if path in spans}
    ends = sorted((named & cuts.keys() or _find_cuts(cuts, spans)) | {len(nodes) - 1})
    return BlockPlan(graph_module, nodes, shapes, run.flops, _merged(graph_module, nodes, ends))


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


def _find_cuts(cuts: dict[int, tuple[int, ...]], spans: dict[str, tuple[int, int]]) -> set[int]:
    """The cut points at which blocks end, by the sizes of the feature maps."""
    falls = [
        (a, b) for a, b in itertools.pairwise(cuts) if _side(cuts[a]) >= _SMALLER * _side(cuts[b])
    ]
    return {_best_cut(fall, falls, cuts, spans) for fall in falls}


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
        parameters = [p for node in block for p in parameters_of(graph_module, node).values()]
        if any(p.ndim > 1 for p in parameters):
            merged.append((start, end))
            start = end + 1
    first = merged[-1][0] if merged else 0
    return [*merged[:-1], (first, len(nodes) - 1)]


def parameters_of(
    graph_module: torch.fx.GraphModule, node: torch.fx.Node
) -> dict[str, nn.Parameter]:
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
