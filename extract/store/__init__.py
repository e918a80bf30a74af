"""The feature store: features by spec and key, in a Zarr group."""

from extract.store.feature_set import DTYPES, FeatureSet
from extract.store.garbage import Garbage, collect, find_garbage, size_of
from extract.store.networks import StoredNetwork
from extract.store.records import CHANNELS, ExtractionRun, Spec
from extract.store.staging import ShardForm, StagedShard
from extract.store.store import FeatureStore, check_snapshot_name
from extract.store.writer import COMMIT_INTERVAL, FeatureWriter
