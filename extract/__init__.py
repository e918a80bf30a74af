"""Stage one: images, frozen backbones, and the store of their features."""

from extract.backbones import Backbone, load_backbone, make_spec
from extract.decode import UnreadableImage, decode, image_size
from extract.devices import (
    resolve_device,
    resolve_precision,
    training_precision,
    without_tf32,
)
from extract.engine import Engine, make_engine, normalise
from extract.errors import FxError
from extract.extract_result import ExtractResult
from extract.extraction import extract, extract_files, take_snapshot
from extract.feature_set import Damage, FeatureSet, Spec, channels_of
from extract.garbage import Garbage, collect, find_garbage
from extract.image_row import ImageRow
from extract.image_source import MAX_IMAGE_MB, ImageEntry, ImageSource
from extract.outlines import BackboneInfo, list_backbones, outline_backbone
from extract.perceptual import near_copies, near_copy_groups, perceptual_hash
from extract.preprocessing import Preprocessing
from extract.pretrained import resolve_weights
from extract.quantisation import Quantised, quantised_network
from extract.reading import batched, look, mean_of_crops
from extract.similarity import distance_from_training
from extract.snapshot import Snapshot
from extract.sources import find_images
from extract.splits import TEST_SHARE, position, unit_of
from extract.store import FeatureStore
from extract.without_compiler import import_compiler, importing_timm

__all__ = [
    "MAX_IMAGE_MB",
    "TEST_SHARE",
    "Backbone",
    "BackboneInfo",
    "Damage",
    "Engine",
    "ExtractResult",
    "FeatureSet",
    "FeatureStore",
    "FxError",
    "Garbage",
    "ImageEntry",
    "ImageRow",
    "ImageSource",
    "Preprocessing",
    "Quantised",
    "Snapshot",
    "Spec",
    "UnreadableImage",
    "batched",
    "channels_of",
    "collect",
    "decode",
    "distance_from_training",
    "extract",
    "extract_files",
    "find_garbage",
    "find_images",
    "image_size",
    "import_compiler",
    "importing_timm",
    "list_backbones",
    "load_backbone",
    "look",
    "make_engine",
    "make_spec",
    "mean_of_crops",
    "near_copies",
    "near_copy_groups",
    "normalise",
    "outline_backbone",
    "perceptual_hash",
    "position",
    "quantised_network",
    "resolve_device",
    "resolve_precision",
    "resolve_weights",
    "take_snapshot",
    "training_precision",
    "unit_of",
    "without_tf32",
]
