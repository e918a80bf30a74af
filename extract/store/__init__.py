"""The feature store: features by spec and key, in a Zarr group."""

from extract.store.feature_set import DTYPES, FeatureSet, Spec, channels_of
from extract.store.garbage import Garbage, collect, find_garbage
from extract.store.stamps import known_file_stats
from extract.store.store import NETWORK_SUFFIXES, FeatureStore, check_snapshot_name
from extract.store.writer import FeatureWriter

__all__ = [
    "DTYPES",
    "NETWORK_SUFFIXES",
    "FeatureSet",
    "FeatureStore",
    "FeatureWriter",
    "Garbage",
    "Spec",
    "channels_of",
    "check_snapshot_name",
    "collect",
    "find_garbage",
    "known_file_stats",
]
