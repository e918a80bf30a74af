"""Auxiliary classifiers: GoogLeNet and Inception v3 train with them, and are run without them.

Both papers attach small classifiers to inner layers, so that their gradient reaches the first
layers of a deep network: Szegedy et al. 2014, weight 0.3 each; Szegedy et al. 2015, where there is
one, weighted 0.4 as in torchvision's training. The classifiers themselves are torchvision's.
Inception v3's cannot take maps smaller than 17x17, which are those of images of 299 pixels, its own
size: of smaller images the maps are enlarged to that, as torchvision does with GoogLeNet's (4x4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from extract.backbones import without_compiler

with without_compiler():
    from torchvision.models.googlenet import GoogLeNet
    from torchvision.models.googlenet import InceptionAux as GoogLeNetAux
    from torchvision.models.inception import Inception3, InceptionAux

Loss = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class _Place:
    """Where a classifier is attached: behind a layer, on maps with a number of channels."""

    layer: str
    channels: int
    classifier: type[nn.Module]
    weight: float
    side: int = 1  # of the smallest maps that the classifier can take


_PLACES: dict[type[nn.Module], tuple[_Place, ...]] = {
    GoogLeNet: (
        _Place("inception4a", 512, GoogLeNetAux, 0.3),
        _Place("inception4d", 528, GoogLeNetAux, 0.3),
    ),
    # it pools 5x5 with a stride of 3, and then convolves 5x5
    Inception3: (_Place("Mixed_6e", 768, InceptionAux, 0.4, side=17),),
}


class _Tap:
    """A forward hook that keeps a layer's last output in training mode."""

    def __init__(self, open_: bool = False) -> None:
        self.open = open_
        self.kept: torch.Tensor | None = None

    def __call__(self, layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        if self.open and layer.training:
            self.kept = output

    def __reduce__(self) -> tuple[type[_Tap], tuple[()]]:
        # a copy of the network, or a pickled one, has nobody to keep anything for
        return _Tap, ()


class Auxiliaries(nn.Module):
    """The auxiliary classifiers of one network, attached to it by hooks.

    For a network that trains from its first layer: one that was cut in two no longer calls its
    inner modules. In inference mode the network gives what it
    gives without them, and its tensors and its copies know nothing of them.

    Attributes
    ----------
    classifiers : nn.ModuleList, input side first; they have parameters of their own to train
    places : where each is attached, and how its loss is weighted
    """

    def __init__(self, module: nn.Module, places: tuple[_Place, ...], classes: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            place.classifier(place.channels, classes) for place in places
        )
        self.places = places
        self._taps = [_Tap(open_=True) for _ in places]
        self._hooks = [
            module.get_submodule(place.layer).register_forward_hook(tap)
            for place, tap in zip(places, self._taps, strict=True)
        ]

    @classmethod
    def of(cls, module: nn.Module, classes: int, *, seed: int = 0) -> Auxiliaries | None:
        """Attach the classifiers that the network's paper trains it with.

        Parameters
        ----------
        module : torchvision's GoogLeNet or Inception v3, built without classifiers of its own
        classes : int
        seed : int, of the classifiers' first weights

        Returns
        -------
        Auxiliaries, or None for any other network
        """
        places = _PLACES.get(type(module))
        if places is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(module, places, classes)

    def losses(self, targets: Any, loss_function: Loss) -> torch.Tensor:
        """Give the weighted sum of the losses for the network's last pass in training mode.

        Parameters
        ----------
        targets : what `loss_function` takes as its second argument
        loss_function : takes float32 logits (n, classes) and `targets`, gives a scalar

        Returns
        -------
        float32 scalar, to be added to the network's own loss

        Raises
        ------
        RuntimeError
            If the network has not been run in training mode since the last call.
        """
        # also where the network's own batch norm keeps its statistics: this one begins with none
        self.train()
        parts = []
        for tap, classifier, place in zip(self._taps, self.classifiers, self.places, strict=True):
            kept, tap.kept = tap.kept, None
            if kept is None:
                raise RuntimeError("no pass in training mode since the last losses")
            # float: the network may compute in another precision
            maps = kept.float()
            height, width = (max(side, place.side) for side in maps.shape[-2:])
            # repeats values; where none are missing, it changes nothing
            logits = classifier(nn.functional.adaptive_avg_pool2d(maps, (height, width)))
            parts.append(place.weight * loss_function(logits.float(), targets))
        return torch.stack(parts).sum()

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()
