"""Features of inner layers: any nodes of a backbone's graph, pooled or flattened, in one pass."""

import difflib
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from extract.backbones.compiler import without_compiler
from extract.errors import FxError, one_line

POOL = "pool"
FLATTEN = ":flatten"


class Layers(nn.Module):
    """A network that gives vectors of several of its layers at once.

    Parameters
    ----------
    module : nn.Module, float32 (n, 3, size, size) -> (n, dim)
    layers : names: ``pool`` for what the module returns; any node that torchvision's feature
        extraction finds in it, its maps averaged over their area; ``NAME:flatten`` for the whole
        map, flattened

    Raises
    ------
    FxError
        If a layer is unknown, or named twice, or the network cannot be traced.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        if len(set(layers)) < len(layers):
            raise FxError(f"a layer is named twice in {','.join(layers)}; name each once")
        self.tapped, self.nodes = _tap(module, layers)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a float tensor of shape (n, dim of the layer) for each layer."""
        made = self.tapped(images)
        return tuple(_as_vectors(made[node], layer) for layer, node in self.nodes.items())


class ConcatFeatures(nn.Module):
    """Joins what ``Layers`` gives to one tensor of shape (n, sum of the dims)."""

    def __init__(self, parts: Layers) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return a float tensor of shape (n, sum of the dims)."""
        return torch.cat(self.parts(images), dim=1)


def _tap(module: nn.Module, layers: Sequence[str]) -> tuple[nn.Module, dict[str, str]]:
    """Make a network that gives nodes by their names, and say which of them each layer is."""
    # torchvision's functions; timm has registered which of its layers cannot be traced
    with without_compiler():
        from timm.layers import (  # type: ignore[attr-defined]
            create_feature_extractor,
            get_graph_node_names,
        )

    with warnings.catch_warnings():
        # that the network does other things in training: it never trains here
        warnings.simplefilter("ignore")
        try:
            # without the first, which is the images themselves
            _, (_, *nodes) = get_graph_node_names(module)
        # whatever a network's own code raises when its tensors are stand-ins
        except Exception as error:
            raise FxError(
                f"the inner layers of {type(module).__name__} cannot be reached "
                f"({one_line(error)}); take `layer={POOL}`"
            ) from error
        # the name of a module means the last node inside it
        wanted = {layer: _last_within(layer.removesuffix(FLATTEN), nodes) for layer in layers}
        tapped = create_feature_extractor(module, [*wanted.values()])
    return tapped.eval(), wanted


def _last_within(name: str, nodes: Sequence[str]) -> str:
    if name == POOL:
        return nodes[-1]
    inside = [node for node in nodes if node == name or node.startswith(f"{name}.")]
    if not inside:
        short = list(dict.fromkeys(".".join(node.split(".")[:2]) for node in nodes))
        near = difflib.get_close_matches(name, [*nodes, *short], 3)
        few = ", ".join([POOL, *short[:12]]) + (", …" if len(short) > 12 else "")
        raise FxError(f"no layer {name!r}; nearest: {', '.join(near) or 'none'}; some: {few}")
    return inside[-1]


def _as_vectors(values: torch.Tensor, layer: str) -> torch.Tensor:
    if not isinstance(values, torch.Tensor) or values.ndim < 2:
        raise FxError(f"layer {layer!r} gives no vectors or maps; name another")
    if values.ndim == 4 and not layer.endswith(FLATTEN):
        return values.mean(dim=(2, 3))
    return values.flatten(1)
