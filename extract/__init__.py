"""Stage one: images, frozen backbones, and the store of their features."""

from extract.backbones import (
    Backbone,
    list_backbones,
    load_backbone,
    outline_backbone,
    resolve_weights,
)
from extract.engine import (
    Engine,
    autocast,
    make_engine,
    normalise,
    resolve_device,
    resolve_precision,
    training_precision,
)
from extract.errors import FxError
from extract.extraction import ExtractResult, extract, make_spec, take_snapshot
from extract.feature_set import Damage, FeatureSet, Spec
from extract.preprocessing import Preprocessing
from extract.reading import look
from extract.snapshot import ImageRow, Snapshot, position, unit_of
from extract.sources import ImageEntry, ImageSource, find_images
from extract.store import FeatureStore

__all__ = [
    "Backbone",
    "Damage",
    "Engine",
    "ExtractResult",
    "FeatureSet",
    "FeatureStore",
    "FxError",
    "ImageEntry",
    "ImageRow",
    "ImageSource",
    "Preprocessing",
    "Snapshot",
    "Spec",
    "autocast",
    "extract",
    "find_images",
    "list_backbones",
    "load_backbone",
    "look",
    "make_engine",
    "make_spec",
    "normalise",
    "outline_backbone",
    "position",
    "resolve_device",
    "resolve_precision",
    "resolve_weights",
    "take_snapshot",
    "training_precision",
    "unit_of",
]
