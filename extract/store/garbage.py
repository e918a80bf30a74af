"""Garbage of a store: what no snapshot uses. What stays is copied, and switched to in one step."""

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from msgspec.structs import replace

from extract.errors import FxError
from extract.files import ObjectPath, Place
from extract.images import Snapshot
from extract.store.blobs import NETWORKS, SNAPSHOTS, blob_names, drop_blob
from extract.store.feature_set import FeatureSet
from extract.store.metadata import as_last_extracted
from extract.store.records import ExtractionRun, split_generation
from extract.store.store import FeatureStore


@dataclass(frozen=True)
class Garbage:
    """What can be dropped from a store.

    Attributes
    ----------
    snapshots : names, and why
    sets : names of feature sets that go whole, and why
    rows : names of feature sets that are written anew, and how many rows they lose
    networks : names of files of networks whose features are gone
    bytes : about how much room that gives
    """

    snapshots: dict[str, str]
    sets: dict[str, str]
    rows: dict[str, int]
    networks: list[str]
    bytes: int

    def __bool__(self) -> bool:
        return bool(self.snapshots or self.sets or self.rows or self.networks)


def find_garbage(store: FeatureStore, *, keep: int | None = None) -> Garbage:
    """Find what no snapshot uses.

    Parameters
    ----------
    store : FeatureStore
    keep : int, newest snapshots of each folder to keep; None keeps all
    """
    taken, damaged = _read_snapshots(store)
    older, of_root = dict[str, str](), Counter[str]()
    for snapshot in taken:
        of_root[snapshot.root] += 1
        if keep is not None and of_root[snapshot.root] > keep:
            older[snapshot.name] = f"older than the last {keep}"
    keys = _keys_of([snapshot for snapshot in taken if snapshot.name not in older])
    last_ns = max((snapshot.taken_ns for snapshot in taken), default=0)
    # without what could be done about them instead
    broken = {name: why.rpartition("; ")[0] for name, why in store.catalogue.broken().items()}
    snapshots, sets, rows, size = damaged | older, broken, dict[str, int](), 0
    opened = sorted(store.sets(), key=lambda s: split_generation(s.name))
    newest: dict[str, FeatureSet] = {}
    for feature_set in opened:
        spec, _ = split_generation(feature_set.name)
        if spec in newest:
            sets[newest[spec].name] = "an older generation"
        newest[spec] = feature_set
    # what a damaged snapshot used is not known: all rows stay until the collection after this one
    for feature_set in () if damaged else newest.values():
        used = int((feature_set.rows.find(keys) >= 0).sum())
        if not used:
            sets[feature_set.name] = "no snapshot uses it"
            if feature_set.last_written > last_ns:
                sets[feature_set.name] += "; its extraction has not finished"
        elif used < feature_set.committed:
            rows[feature_set.name] = feature_set.committed - used
            share = rows[feature_set.name] / feature_set.committed
            size += int(share * size_of(feature_set.path))
    for feature_set in newest.values():
        if not _network_is_whole(store, feature_set):
            # no image can be added, and no head on it can predict
            sets.setdefault(feature_set.name, "its network is damaged")
            rows.pop(feature_set.name, None)
    kept = [s for s in newest.values() if s.name not in sets]
    used_networks = {s.spec.network for s in kept}
    for feature_set in opened:
        # as long as it is open, it is not deleted
        feature_set.close()
    names = blob_names(store.path, NETWORKS)
    networks = [name for name in names if name.rpartition(".")[0] not in used_networks]
    size += sum(size_of(store.path / name) for name in sets)
    size += sum(size_of(store.path / SNAPSHOTS / name) for name in snapshots)
    size += sum(size_of(store.path / NETWORKS / name) for name in networks)
    return Garbage(snapshots, sets, rows, networks, size)


def collect(store: FeatureStore, *, keep: int | None = None) -> tuple[Garbage, list[str]]:
    """Drop what no snapshot uses.

    A set that loses rows is written anew as a generation of its own, which new readers find at
    once. A set that is still being read stays until the next collection.

    Returns
    -------
    garbage : what there was to drop
    in_use : names of sets that are still being read
    """
    with store.lock():
        garbage = find_garbage(store, keep=keep)
        for name in garbage.snapshots:
            store.drop_snapshot(name)
        for name in garbage.networks:
            drop_blob(store.path, NETWORKS, name)
        # before any set is written anew: the disk may be full
        in_use = [name for name in garbage.sets if not store.catalogue.drop(name)]
        keys = _keys_of(_read_snapshots(store)[0])
        for name in garbage.rows:
            _rewrite(store, name, keys)
            if not store.catalogue.drop(name):
                in_use.append(name)
        _forget_dropped_sets(store)
    return garbage, in_use


def _network_is_whole(store: FeatureStore, feature_set: FeatureSet) -> bool:
    network = feature_set.spec.network
    try:
        return network is None or bool(store.read_network(network))
    except FxError:
        return False


def _read_snapshots(store: FeatureStore) -> tuple[list[Snapshot], dict[str, str]]:
    """Read all snapshots, the newest first; of damaged ones, the names and what is wrong."""
    found, damaged = [], {}
    for name in reversed(store.snapshots()):
        try:
            found.append(Snapshot.from_parquet(*store.read_snapshot(name)))
        except FxError as error:
            reason = str(error).removeprefix(f"snapshot {name}: ")
            damaged[name] = reason.rpartition("; ")[0]
    return found, damaged


def _keys_of(snapshots: list[Snapshot]) -> set[bytes]:
    return {row.key for snapshot in snapshots for row in snapshot.rows if row.readable}


def _rewrite(store: FeatureStore, name: str, keys: Collection[bytes]) -> None:
    """Make a new generation of a set, of some images' rows."""
    old = store.open_set(name)
    last = old.runs[-1] if old.runs else ExtractionRun(engine="", taken_ns=0)
    run = replace(last, weights_source=old.weights_source)
    new = store.catalogue.new_generation(
        old.spec, old.dim, run, str(old.dtype), copied=old, keys=keys
    )
    old.close()
    if store.root.attributes().last_extracted == name:
        store.root.update(last_extracted=new)


def _forget_dropped_sets(store: FeatureStore) -> None:
    """Name no set in the root that is not there."""
    names = store.catalogue.names()
    root = store.root.attributes()
    commit = {n: a for n, a in root.commit.items() if n in names}
    last: dict[str, object] = {}
    if root.last_extracted not in names:
        newest = store.catalogue.newest()
        last = as_last_extracted(newest) if newest else {"last_extracted": None}
    store.root.update(commit=commit, **last)


def size_of(folder: Place) -> int:
    """Bytes of what lies in a folder, however deep."""
    if isinstance(folder, ObjectPath):
        return sum(stats.st_size for _, stats in folder.walk())
    with suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return 0
