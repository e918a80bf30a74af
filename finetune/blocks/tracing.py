"""Tracing a network: its graph of operations, with shapes and costs, without computing anything."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from extract.backbones import import_compiler, without_compiler
from extract.errors import FxError, one_line

with without_compiler():
    import timm.layers
    import torchvision

# layers as their libraries offer them: called whole, never entered
_LAYER_PACKAGES = ("torch.nn.", "torchvision.ops.", "timm.layers.")


class _Tracer(torch.fx.Tracer):
    """Stops at layers: modules without children, and what the libraries' layer packages hold."""

    def __init__(self) -> None:
        layers: Any = timm.layers
        modules: Any = (math, torchvision.ops)
        super().__init__(modules, autowrap_functions=tuple(layers.get_notrace_functions()))
        self._whole = tuple(layers.get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is nn.Sequential:
            return False
        package = type(m).__module__ + "."
        return package.startswith(_LAYER_PACKAGES) or isinstance(m, self._whole) or not m._modules


@contextmanager
def _modes_restored(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def trace(module: nn.Module) -> torch.fx.GraphModule:
    refusal = (
        f"cannot cut {type(module).__name__} into blocks; {{}}; train it with `unfreeze=all` or "
        "`unfreeze=0`"
    )
    with _modes_restored(module):
        try:
            in_training = _Tracer().trace(module.train())
            graph = _Tracer().trace(module.eval())
        # whatever a network's own code raises when its tensors are stand-ins
        except Exception as error:
            raise FxError(refusal.format(f"tracing it fails ({one_line(error)})")) from error
    if str(in_training) != str(graph):
        raise FxError(refusal.format("outside its layers it does other things in training"))
    return torch.fx.GraphModule(module, graph)


class _Recorder(torch.fx.Interpreter):
    """Runs a graph on shapes alone (device ``meta``); notes each node's shape and operations."""

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.made: dict[torch.fx.Node, tuple[torch.Tensor, int]] = {}
        self.flops: dict[torch.fx.Node, int] = {}
        self.counter = FlopCounterMode(display=False)

    def run_node(self, n: torch.fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.flops[n] = self.counter.get_total_flops() - before
        if isinstance(result, torch.Tensor):
            self.made[n] = (result, result._version)
        return result

    def shapes(self) -> dict[torch.fx.Node, tuple[int, ...]]:
        return {node: tuple(tensor.shape) for node, (tensor, _) in self.made.items()}

    def overwritten(self) -> set[torch.fx.Node]:
        """Nodes whose value a later one changes in place, be it by way of a view."""
        return {node for node, (tensor, version) in self.made.items() if tensor._version > version}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        tensors = itertools.chain(layer.named_parameters(), layer.named_buffers())
        without_data = {name: tensor.to("meta") for name, tensor in tensors}
        return torch.func.functional_call(layer, without_data, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().get_attr(target, args, kwargs).to("meta")


def run_without_data(graph_module: torch.fx.GraphModule, size: int, count_flops: bool) -> _Recorder:
    import_compiler()
    recorder = _Recorder(graph_module)
    # counting doubles the time
    counting = recorder.counter if count_flops else nullcontext()
    # a caller's inference mode would hide what is changed in place
    tracked = torch.inference_mode(False)
    try:
        with _modes_restored(graph_module), tracked, torch.no_grad(), counting:
            graph_module.eval()
            recorder.run(torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:
        raise FxError(
            f"the network does not run on images of {size}x{size} pixels "
            f"({one_line(error)}); give a larger `size`"
        ) from error
    return recorder
