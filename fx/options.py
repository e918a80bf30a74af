"""Options that mean the same in every command, and the defaults that depend on the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from extract.errors import FxError
from extract.files import Place, place

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.engines import Engine
    from extract.images import Reading, Snapshot
    from extract.store import FeatureSet, FeatureStore, StoredNetwork

DEFAULT_BACKBONE = "efficientnet_lite0"
NEAR_COPIES = ("group", "warn", "ignore")


def names_in(words: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip())


@dataclass(frozen=True)
class Options:
    """What was asked for; None leaves the choice to the store or to the weights.

    Attributes
    ----------
    store : of features
    out : folder for all other output
    backbone, weights, size : of the network; None takes what was extracted last
    layers : of the network, whose features are meant; none for the last extracted, or ``pool``
    crops : squares of an image that are averaged; None for the last extracted, or 1
    channels : that the first convolution sees, 3 or 1; None for the last extracted, or 3
    features : stored sets that a head takes side by side; none for one, by the options above
    snapshot : None takes the last one taken
    precision, device, engine : how networks are run
    batch_size : images in one forward pass; None for what suits the engine
    split_seed : random seed of the test split
    seed : of everything else that is random
    fresh : repeat what is finished
    near_copies : what becomes of those among the images to fit on: ``group`` keeps them in one
        fold, ``warn`` says them, ``ignore`` neither
    path_column, label_column, split_column, group_column, root : how a table is read
    layout : what the first folders are, ``splits`` or ``classes``; None to see from their names
    min_images : classes of fewer images are left out; at 0, a class of none is an error
    max_image_mb : 2**20 bytes that an image may take as 8-bit RGB; larger ones are not decoded
    """

    store: Place = Path("features.zarr")
    out: Place = Path("runs")
    backbone: str | None = None
    weights: str | None = None
    size: int | None = None
    layers: tuple[str, ...] = ()
    crops: int | None = None
    channels: int | None = None
    features: tuple[str, ...] = ()
    snapshot: str | None = None
    precision: str = "auto"
    device: str = "auto"
    engine: str = "auto"
    batch_size: int | None = None
    split_seed: int = 0
    seed: int = 0
    fresh: bool = False
    near_copies: str = "group"
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    root: Place | None = None
    layout: str | None = None
    min_images: int = 0
    max_image_mb: int = 512

    def __post_init__(self) -> None:
        for name in ("store", "out", "root"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, place(path))  # of a string, as scripts have them

    @property
    def reading(self) -> Reading:
        """How folders and tables of images are read."""
        from extract.images import Reading

        return Reading(**{one.name: getattr(self, one.name) for one in fields(Reading)})


def open_backbone(options: Options, *, seed: int = 0) -> Backbone:
    """Load the backbone asked for, by default the one last extracted, as it was extracted.

    ``seed`` draws random weights, where such are asked for.

    Raises
    ------
    FxError
        If it is unknown or its weights cannot be had.
    """
    from extract.backbones import load_backbone
    from extract.store import FeatureStore

    name, weights, size = options.backbone, options.weights, options.size
    channels = options.channels
    if name is None and options.store.exists():
        store = FeatureStore(options.store)
        if store.has_features:
            # not of the set itself, which may be damaged and about to be computed again
            spec, source = store.last_wanted()
            name = spec.backbone
            weights = weights or source
            size = size or spec.size
            channels = channels or spec.channels
    return load_backbone(
        name or DEFAULT_BACKBONE,
        weights=weights or "default",
        size=size,
        seed=seed,
        channels=channels or 3,
    )


def open_engine(
    options: Options,
    backbone: Backbone,
    quantised: Callable[[], StoredNetwork] | None = None,
) -> Engine:
    """Make the engine that runs a backbone as the options say.

    ``quantised`` gives the backbone in int8, where that is what runs.
    """
    from extract.engines import make_engine

    return make_engine(
        backbone.module,
        backbone.preprocessing,
        name=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        identity=backbone.identity,
        quantised=quantised,
    )


def choose_features(store: FeatureStore, options: Options) -> FeatureSet:
    """Find the stored features that the options mean: those asked for, or the last extracted.

    Raises
    ------
    FxError
        If the store has none such.
    """
    wanted = {
        "backbone": options.backbone,
        "size": options.size,
        "layer": _one_layer(options),
        "crops": options.crops,
        "numerics": None if options.precision == "auto" else options.precision,
        "channels": options.channels,
    }
    asked = {name: value for name, value in wanted.items() if value is not None}
    if not asked and options.weights is None:
        return store.last_extracted()
    sets = store.sets()
    found = [s for s in sets if all(getattr(s.spec, n) == value for n, value in asked.items())]
    if options.weights is not None:
        # which loads torch
        from extract.backbones import resolve_weights

        asked["weights"] = options.weights
        found = [
            s
            for s in found
            if s.weights_source == resolve_weights(s.spec.backbone, options.weights)
        ]
    if not found:
        what = ", ".join(f"{name} {value}" for name, value in asked.items())
        have = ", ".join(sorted({_described(s) for s in sets}))
        raise FxError(
            f"no features of {what} in {store.path}; it has: {have or 'none'}; "
            "extract the images with the same options"
        )
    last = store.last_extracted().name
    return max(found, key=lambda s: (s.name == last, s.last_written))


def choose_sets(store: FeatureStore, options: Options) -> list[FeatureSet]:
    """Find the sets that ``options.features`` names, or the one that the other options mean.

    A name is that of a set or how it begins, or a backbone, alone or as ``backbone:layer``; of
    several such sets the one that was written last.

    Raises
    ------
    FxError
        If the store has none such, or one is named twice.
    """
    if not options.features:
        return [choose_features(store, options)]
    chosen: list[FeatureSet] = []
    for name in options.features:
        found = [one for one in store.sets() if _is_named(one, name)]
        if not found:
            have = ", ".join(one.name for one in store.sets()) or "none"
            raise FxError(f"no features {name} in {store.path}; it has: {have}")
        # those in int8 cannot be joined
        best = max(found, key=lambda one: (one.spec.network is None, one.last_written))
        if best.name in [one.name for one in chosen]:
            raise FxError(f"`features` names {best.name} twice")
        chosen.append(best)
    if len(chosen) > 1 and any(one.spec.network for one in chosen):
        raise FxError("`features` joins no int8 features; extract them in another `precision`")
    return chosen


def _is_named(features: FeatureSet, name: str) -> bool:
    backbone, layer = features.spec.backbone, features.spec.layer
    return features.name.startswith(name) or name in (backbone, f"{backbone}:{layer}")


def _one_layer(options: Options) -> str | None:
    if len(options.layers) > 1:
        raise FxError(f"a head takes one `layer`; got {','.join(options.layers)}")
    return options.layers[0] if options.layers else None


def _described(feature_set: FeatureSet) -> str:
    spec = feature_set.spec
    text = f"{spec.backbone} at {spec.size}"
    if spec.layer != "pool":
        text += f", layer {spec.layer}"
    if spec.channels == 1:
        text += ", 1 channel"
    return text + (f", {spec.crops} crops" if spec.crops > 1 else "")


def read_snapshot(store: FeatureStore, options: Options) -> Snapshot:
    """Read the snapshot asked for, or the last one."""
    from extract.images import Snapshot

    return Snapshot.from_parquet(*store.read_snapshot(options.snapshot))
