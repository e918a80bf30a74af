"""timm's networks, as ``timm/NAME``, with its own weights; hundreds, which are not listed."""

from collections.abc import Sequence
from typing import Any

from extract.backbones.compiler import without_compiler
from extract.backbones.families._family import Architecture, Family, unknown_backbone
from extract.backbones.weight_files import cached_on_hub, cached_url, fetch_from_hub, fetch_url
from extract.backbones.weights import read_state_dict
from extract.errors import FxError, one_line
from extract.images import Preprocessing

PREFIX = "timm/"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Timm(Family):
    """Networks by timm's names."""

    def names(self) -> tuple[str, ...]:
        """No names: timm lists them itself."""
        return ()

    def has(self, name: str) -> bool:
        """Whether a name begins with ``timm/``."""
        return name.startswith(PREFIX)

    def build(self, name: str) -> Architecture:
        """Make a network without its classifier."""
        return build_timm(_own_name(name))

    def has_weights(self, name: str) -> bool:
        """Whether timm knows a place of weights."""
        url, repository, _ = _source(name)
        return bool(url or repository)

    def at_hand(self, name: str) -> bool:
        """Whether the weights are in torch.hub's cache or in Hugging Face's."""
        url, repository, files = _source(name)
        cached = bool(url) and cached_url(url).exists()
        return cached or bool(repository and cached_on_hub(repository, files))

    def load_default(self, name: str, architecture: Architecture) -> None:
        """Load timm's weights, downloaded where they are in neither cache."""
        timm = _import_timm()
        url, repository, files = _source(name)
        if url and (cached_url(url).exists() or not repository):
            path = fetch_url(url, backbone=name)
        elif repository:
            path = fetch_from_hub(repository, files, backbone=name, size=architecture.bytes)
        else:
            raise FxError(
                f"timm has no pretrained weights for {name}; give a file, or take `weights=random`"
            )
        # by way of the whole network: timm renames the tensors of some files while it loads them
        overlay = {"state_dict": read_state_dict(path, needed=architecture.bytes)}
        own = _own_name(name)
        try:
            whole = timm.create_model(own, pretrained=True, pretrained_cfg_overlay=overlay)
        except (RuntimeError, KeyError) as error:
            raise FxError(
                f"{path} does not fit {name} ({one_line(error)}); remove it and try again"
            ) from error
        architecture.load_tensors(whole.state_dict(), source=str(path))


def build_timm(name: str) -> Architecture:
    """Make a network by timm's own name for it, without its classifier."""
    timm = _import_timm()
    module = timm.create_model(name, num_classes=0)
    config = timm.data.resolve_model_data_config(module)
    size = config["input_size"][-1]
    preprocessing = Preprocessing(
        size=size,
        resize=int(size / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    classifiers = module.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    return Architecture(module, module.head_hidden_size, tuple(classifiers), preprocessing)


def _import_timm() -> Any:
    # here: it takes a second, and most backbones are torchvision's
    with without_compiler():
        import timm

    return timm


def _own_name(name: str) -> str:
    timm, own = _import_timm(), name.removeprefix(PREFIX)
    if not timm.is_model(own):
        raise unknown_backbone(name, [PREFIX + known for known in timm.list_models()])
    tagged = timm.list_pretrained(own.partition(".")[0])
    if "." in own and own not in tagged:
        raise unknown_backbone(name, [PREFIX + known for known in tagged])
    return own


def _source(name: str) -> tuple[str, str, Sequence[str]]:
    """URL, Hugging Face repository and file names of timm's weights; empty where there is none."""
    config = _import_timm().get_pretrained_cfg(_own_name(name))
    files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    return config.url or "", config.hf_hub_id or "", files


FAMILY = Timm()
