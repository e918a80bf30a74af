"""Feature store: row i of features belongs to row i of keys, and rows count once committed.

A store is a Zarr v3 group with one sub-group a spec::

    features.zarr/                  attributes: fx_layout, last_extracted, last_snapshot, commit
        resnet50-1f2e3d4c5b6a/      attributes: spec, dim, committed, checksums, runs
            features  (n, d)        the vectors, in shards of at most 4,096 rows
            keys      (n, 32) uint8 SHA-256 of each image file
            hashes    (n, 32) uint8 perceptual hash of each image
        snapshots/NAME              the bytes of a Parquet table
        leaks/NAME                  leaks between the splits of that snapshot, as JSON
        networks/HASH.xml, .bin     networks that ran in a module's place

Rows beyond ``committed`` are unfinished work: the next writer overwrites them, fx never reads
them. Committed rows never change, and ``checksums`` has the CRC-32C of those of each chunk (of
``features``, each shard): what else lies there, or is not there, is damage, however whole it looks.
Rows that are not damaged are then copied to a new generation of the set.

Zarr writes each shard to a new file and renames it, so the growing last shard is whole at any
moment. A commit is one write of the root's ``commit``, which holds the new attributes of every set
that the pass fills; they are written to the sets right after, and again by the next writer if this
one was killed in between. Where the root is damaged, readers go by what lies below it, and the next
writer writes it anew. An empty folder is a store that holds nothing yet.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import to_builtins
from zarr.errors import ContainsGroupError

from extract.errors import FxError
from extract.files import (
    UNFINISHED,
    Lease,
    ObjectPath,
    Place,
    disk_full_as_fx_error,
    lock_folder,
    place,
    remote,
    remove,
)
from extract.store.blobs import (
    LEAKS,
    NETWORKS,
    SNAPSHOTS,
    blob_names,
    damaged_blobs,
    drop_blob,
    put_back_blobs,
    read_blob,
    snapshots_by_age,
    write_blob,
)
from extract.store.catalogue import Catalogue
from extract.store.feature_set import DTYPES, ROW_ARRAYS, FeatureSet
from extract.store.metadata import LAYOUT, StoreMetadata, as_last_extracted
from extract.store.networks import SUFFIXES, StoredNetwork
from extract.store.records import Damage, ExtractionRun, Spec
from extract.store.writer import FeatureWriter
from extract.store.zarr_files import create_root, set_attributes

# bytes of a snapshot's name; file systems take 255, and files of it have more behind it
LONGEST_NAME = 200


class FeatureStore:
    """A folder of feature sets and snapshots, read without a lock and written by one at a time.

    Parameters
    ----------
    path : where the store lies

    Attributes
    ----------
    root, catalogue : what it holds; changed only under the lock

    Raises
    ------
    FxError
        If there is no store, something else lies there, or its layout is another version's.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)
        if not self.path.exists():
            raise FxError(f"no feature store at {self.path}; extract images first")
        self.catalogue = Catalogue(self.path)
        self.root = StoreMetadata(self.path, self.catalogue)
        self.root.check_layout()

    @classmethod
    def create(cls, path: str | Place) -> "FeatureStore":
        """Open a store, making an empty one where nothing lies yet."""
        path = place(path)
        with disk_full_as_fx_error(path):
            if not path.exists() or StoreMetadata(path, Catalogue(path)).is_empty():
                with suppress(ContainsGroupError):  # another process made it just now
                    create_root(path, {"fx_layout": LAYOUT})
        return cls(path)

    def sets(self) -> list[FeatureSet]:
        """All feature sets that can be read, in the order of their names."""
        return self.catalogue.sets()

    def open_set(self, name: str) -> FeatureSet:
        """Open a feature set by the name that an extraction's result gives."""
        return self.catalogue.open(name)

    def find(self, spec: Spec) -> FeatureSet | None:
        """Find the newest generation of a spec's features; None if there is none to be read."""
        return self.catalogue.find(spec)

    @property
    def has_features(self) -> bool:
        """Whether anything has been extracted into this store."""
        return self.root.attributes().last_extracted is not None and bool(self.catalogue.names())

    def last_extracted(self) -> FeatureSet:
        """The feature set that an extraction wrote to or read last.

        Raises
        ------
        FxError
            If nothing has been extracted into this store, or the set cannot be read.
        """
        # twice: a collection of garbage may be about to switch to another generation
        for _ in range(2):
            name = self.root.attributes().last_extracted
            if name is not None:
                try:
                    return self.catalogue.open(name)
                except FxError:
                    if (self.path / name).exists():
                        raise
        # it was deleted, by hand or by a collection that was killed
        newest = self.catalogue.newest()
        if newest is None:
            raise FxError(f"{self.path} holds no features yet; extract images first")
        return newest

    def last_wanted(self) -> tuple[Spec, str]:
        """What was extracted last, also where it cannot be read: its spec, and the weights' source.

        Raises
        ------
        FxError
            If nothing has been extracted into this store.
        """
        root = self.root.attributes()
        if root.last_extracted and root.last_spec and root.last_weights_source:
            return root.last_spec, root.last_weights_source
        # what earlier versions wrote has one without the other where they were killed
        last = self.last_extracted()
        return last.spec, last.weights_source

    def write_snapshot(self, name: str, table: bytes, taken_ns: int) -> None:
        """Keep a snapshot's Parquet bytes under a name and make it the last one taken."""
        write_blob(self.path, SNAPSHOTS, name, table, taken_ns=taken_ns)
        # the folder's own number: in a copy of the store, no file is taken to be unchanged
        self.root.update(last_snapshot=name, inode=inode_of(self.path))

    def read_snapshot(self, name: str | None = None) -> tuple[str, bytes]:
        """Return the name and Parquet bytes of a snapshot (default: the last one taken)."""
        known = self.snapshots()
        if name is None:
            name = self.root.attributes().last_snapshot
        if name is None or name not in known:
            have = ", ".join(known) or "none"
            raise FxError(
                f"no snapshot {name!r} in {self.path}; it has: {have}; extract images first"
            )
        try:
            return name, read_blob(self.path, SNAPSHOTS, name)
        except FxError as error:
            raise FxError(f"snapshot {name}: {error}; extract the images again") from error

    def snapshots(self) -> list[str]:
        """Names of the snapshots, oldest first; damaged ones before all others."""
        return snapshots_by_age(self.path)

    def write_leaks(self, snapshot: str, found: bytes) -> None:
        """Keep what leaks between the splits of a snapshot; the caller holds the lock."""
        write_blob(self.path, LEAKS, snapshot, found)

    def read_leaks(self, snapshot: str) -> bytes:
        """Read what ``write_leaks`` kept; raises FxError where it is not there or damaged."""
        return read_blob(self.path, LEAKS, snapshot)

    @property
    def was_copied(self) -> bool:
        """Whether the store lies elsewhere than when its last snapshot was taken."""
        return self.root.attributes().inode != inode_of(self.path)

    def write_network(self, network: StoredNetwork) -> None:
        """Keep a network under its hash; the caller holds the lock."""
        for suffix, data in zip(SUFFIXES, (network.graph, network.tensors), strict=True):
            write_blob(self.path, NETWORKS, f"{network.hash}{suffix}", data)

    def read_network(self, name: str) -> StoredNetwork:
        """Read a network by its hash.

        Raises
        ------
        FxError
            If one of its files is not there or damaged.
        """
        return StoredNetwork(
            *(read_blob(self.path, NETWORKS, f"{name}{suffix}") for suffix in SUFFIXES)
        )

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the store for writing; the operating system lets go when the process dies.

        What a killed writer has left is cleared up first.

        Parameters
        ----------
        wait : until another process, or thread, lets go of it

        Raises
        ------
        FxError
            If another process holds it (the message says which), or the disk gets full.
        """
        with ExitStack() as held:
            try:
                if isinstance(self.path, ObjectPath):
                    lease = held.enter_context(closing(Lease(self.path, wait=wait)))
                    held.enter_context(self.root.written_under(lease))
                else:
                    held.callback(os.close, lock_folder(self.path, shared=False, wait=wait))
            except BlockingIOError:
                raise FxError(
                    f"{self.path} is being written by {self.root.attributes().writer}; wait for "
                    "it, or give another `store`"
                ) from None
            with disk_full_as_fx_error(self.path):
                self._clear_after_a_killed_writer()
                yield

    def _clear_after_a_killed_writer(self) -> None:
        put_back_blobs(self.path)
        for leftover in unfinished_below(self.path):
            remove(leftover)
        names = self.catalogue.names()
        # a set that was deleted may come again, and has no rows then
        decided = {name: c for name, c in self.catalogue.decided().items() if name in names}
        for name, commit in decided.items():
            with suppress(FxError):  # a set that cannot be read is begun anew
                feature_set = self.catalogue.open(name, write=True)
                if feature_set.group.attrs.asdict()["committed"] != feature_set.committed:
                    set_attributes(feature_set.path, to_builtins(commit))
                feature_set.close()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        holder = f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})"
        try:
            self.root.update(writer=holder, commit=decided)
        except OSError:
            # the disk may be full, and this be the collection of garbage that makes room
            if remote(self.path):
                raise

    def clear_up(self) -> None:
        """Remove what killed writers have left unfinished, unless a process writes now."""
        with suppress(FxError), self.lock():
            pass  # whoever takes the lock clears up first

    def start(
        self,
        wanted: Sequence[tuple[Spec, int]],
        run: ExtractionRun,
        *,
        stale: Collection[str] = (),
        dtype: str | None = None,
    ) -> FeatureWriter:
        """Begin to append to the features of one or several specs; the caller holds the lock.

        Parameters
        ----------
        wanted : what the features mean, and the length of their vectors
        run : engine, versions and time, recorded with the rows, and where the weights came from
        stale : names of sets to leave to their readers and begin anew
        dtype : ``float32`` or ``float16``; None for what a set has, float32 for a new one
        """
        names, replaced = [], []
        for spec, dim in wanted:
            current = self.find(spec)
            kept = DTYPES[0] if current is None else str(current.dtype)
            if current is None or current.name in stale:
                name = self.catalogue.new_generation(spec, dim, run, dtype or kept)
            else:
                damaged = self.give_up_damaged_rows(current)
                name = current.name
                if damaged or dtype not in (None, kept):
                    # float32 is made float16 from what is there; the other way it is computed anew
                    rows = None if (kept, dtype) == ("float16", "float32") else current
                    name = self.catalogue.new_generation(spec, dim, run, dtype or kept, copied=rows)
                if damaged:
                    replaced.append(current.name)
                current.close()
            names.append(name)
        for name in names:
            self._complete(name, run.weights_source)
        sets = [self.catalogue.open(name, write=True) for name in names]
        self.root.update(fx_layout=LAYOUT, **as_last_extracted(sets[0]))
        for name in replaced:
            # a set that is still read stays; the next collection of garbage drops it
            self.catalogue.drop(name)
        return FeatureWriter(sets, self.root.publish, run, self.root.check)

    def give_up_damaged_rows(self, feature_set: FeatureSet) -> bool:
        """Look for damage in a set, and count damaged rows no more; say whether there is any.

        Everything is read where damage is suspected, or where there are no checksums yet.
        """
        suspected = bool(
            feature_set.damaged
            or feature_set.checksums is None
            or self.was_copied
            or feature_set.damage(thorough=False)
        )
        found = feature_set.damage() if suspected else []
        feature_set.without([(one.start, one.stop) for one in found])
        return bool(found) or feature_set.tail_is_damaged()

    def _complete(self, name: str, weights_source: str) -> None:
        """Complete the attributes of a set: its checksums, and where its weights come from now."""
        feature_set = self.catalogue.open(name)
        changed: dict[str, Any] = {}
        if feature_set.checksums is None:
            changed["checksums"] = feature_set.measured_checksums()
        if feature_set.damaged:
            # they have been read since
            changed["damaged"] = []
        if feature_set.weights_source != weights_source:
            # the file that the weights came from may have moved
            changed["weights_source"] = weights_source
        if changed:
            set_attributes(feature_set.path, changed)

    def drop_snapshot(self, name: str) -> None:
        """Delete a snapshot; the caller holds the lock."""
        if name in blob_names(self.path, LEAKS):
            # the snapshot goes last: a collection that is killed in between finds it again
            drop_blob(self.path, LEAKS, name)
        drop_blob(self.path, SNAPSHOTS, name)
        if self.root.attributes().last_snapshot == name:
            remaining = self.snapshots()
            self.root.update(last_snapshot=remaining[-1] if remaining else None)

    def verify(self) -> list[Damage]:
        """Read everything back and mark what is damaged, for the next extraction to mend."""
        damage = self.root.damage()
        found = [Damage(self.path.name, 0, 0, damage)] if damage else []
        with self.lock():
            found += self.catalogue.verify()
        kinds = (SNAPSHOTS, LEAKS, NETWORKS)
        return found + [damage for kind in kinds for damage in damaged_blobs(self.path, kind)]


def inode_of(path: Place) -> int:
    """A number of a store's place: a copy of the store has another."""
    return path.inode if isinstance(path, ObjectPath) else path.stat().st_ino


def unfinished_below(path: Place) -> list[Place]:
    """What a killed writer has left in a store."""
    if isinstance(path, Path):
        return [*path.rglob(f"*{UNFINISHED}")]
    # an object is whole or not there, and to list all of them would take long
    names = [*Catalogue(path).names(), SNAPSHOTS, LEAKS, NETWORKS]
    below: list[Place] = [one for name in names for one in (path / name).iterdir()]
    # a set, or a blob, that was moved or deleted in part has no metadata; what else may lie here is
    # the user's
    blobs = [one for one in below if one.parent.name in names[-3:]]
    cut = [one for one in blobs if [part.name for part in one.iterdir()] == ["c"]]
    for name in names[:-3]:
        parts = {part.name for part in (path / name).iterdir()}
        if parts and parts <= {*ROW_ARRAYS}:
            cut.append(path / name)
    return cut + [one for one in [*path.iterdir(), *below] if one.name.endswith(UNFINISHED)]


def check_snapshot_name(name: str | None) -> None:
    """Refuse a name that could not be a folder's within the store.

    Raises
    ------
    FxError
        If it has other characters than letters, digits, ``.``, ``_`` and ``-``, or more than 200
        bytes.
    """
    if name is None:
        return
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > LONGEST_NAME:
        raise FxError(
            "a snapshot's name has letters, digits, '.', '_' and '-' only, and at most "
            f"{LONGEST_NAME} bytes; got {name[:80]!r}; choose another `snapshot`"
        )
