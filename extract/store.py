"""Feature store: row i of features belongs to row i of keys, and rows count once committed.

A store is a Zarr v3 group with one sub-group a spec::

    features.zarr/                  attributes: fx_layout, last_extracted, last_snapshot, commit
        resnet50-1f2e3d4c5b6a/      attributes: spec, dim, committed, runs
            features  (n, d)        the vectors, in shards of 4,096 rows
            keys      (n, 32) uint8 SHA-256 of each image file; 32 zeros: a row given up
            hashes    (n, 32) uint8 perceptual hash of each image
        snapshots/NAME              the bytes of a Parquet table
        networks/HASH.xml, .bin     networks in int8 whose features are here

Rows beyond ``committed`` are unfinished work: the next writer overwrites them, fx never reads
them. Zarr writes each shard to a new file and renames it, so the growing last shard is whole at
any moment. A commit is one write of the root's ``commit``, which holds the new attributes of every
set that the pass fills; they are written to the sets right after, and again by the next writer if
this one was killed in between. Where the root is damaged, readers go by what lies below it, and
the next writer writes it anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import zarr
from zarr.errors import ContainsGroupError

from extract.blobs import (
    blob_attribute,
    blob_names,
    drop_blob,
    kind_damage,
    put_back_blobs,
    read_blob,
    write_blob,
)
from extract.errors import FxError
from extract.feature_set import (
    ROW_ARRAYS,
    Damage,
    FeatureSet,
    Spec,
    in_short,
    metadata_damage,
    spec_id,
    split_generation,
)
from extract.writer import (
    UNFINISHED,
    FeatureWriter,
    copy_rows,
    create_set,
    mark_damaged,
    sync,
)

LAYOUT = 1
SNAPSHOTS, NETWORKS = "snapshots", "networks"
# of OpenVINO's two files: the graph, and its tensors
NETWORK_SUFFIXES = (".xml", ".bin")
DTYPES = ("float32", "float16")


class FeatureStore:
    """A folder of feature sets and snapshots, read without a lock and written by one at a time.

    Parameters
    ----------
    path : where the store lies

    Raises
    ------
    FxError
        If there is no store, something else lies there, or its layout is another version's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FxError(f"no feature store at {self.path}; make one with fx extract")
        try:
            layout = self._written_root().get("fx_layout")
        except PermissionError:
            raise
        except Exception as error:  # zarr raises a different class for each way to be none
            if not self._names() and not blob_names(self.path, SNAPSHOTS):
                raise FxError(
                    f"{self.path} is not a feature store ({type(error).__name__}); "
                    "give the folder that fx extract wrote"
                ) from error
            # what it holds can be read, and the next writer writes the root anew
            layout = LAYOUT
        if layout is None and self.sets():
            layout = LAYOUT  # as above: a flipped bit may cost the attributes alone
        if layout is None:
            raise FxError(
                f"{self.path} is a Zarr group, but not a feature store; "
                "give the folder that fx extract wrote"
            )
        if layout != LAYOUT:
            raise FxError(
                f"{self.path} is not a feature store of this version; got layout {layout!r}, "
                f"expected {LAYOUT}; extract into a new one with --store"
            )

    @classmethod
    def create(cls, path: str | Path) -> FeatureStore:
        """Open a store, making an empty one where nothing lies yet."""
        path = Path(path)
        with _told_when_full(path):
            # also an empty folder: one made by hand, or by a run killed right here
            if not path.exists() or (
                path.is_dir() and all(child.name.endswith(UNFINISHED) for child in path.iterdir())
            ):
                path.mkdir(parents=True, exist_ok=True)
                with suppress(ContainsGroupError):  # another process made it just now
                    zarr.create_group(path, attributes={"fx_layout": LAYOUT})
                sync(path / "zarr.json")
        return cls(path)

    def _written_root(self) -> dict[str, Any]:
        return zarr.open_group(self.path, mode="r").attrs.asdict()

    def _root(self) -> dict[str, Any]:
        """Attributes of the root; where it is damaged, what can be told from what lies below."""
        if not self.root_damage():
            return self._written_root()
        attributes: dict[str, Any] = {"fx_layout": LAYOUT}
        newest = max(self.sets(), key=lambda s: s.last_written, default=None)
        if newest is not None:
            attributes |= _last_extracted(newest)
        snapshots = self.snapshots()
        if snapshots:
            attributes["last_snapshot"] = snapshots[-1]
        return attributes

    def _update_root(self, **attributes: Any) -> None:
        file = self.path / "zarr.json"
        if self.root_damage():
            attributes = self._root() | attributes
            file.unlink(missing_ok=True)
            zarr.create_group(self.path, attributes=attributes)
        else:
            zarr.open_group(self.path, mode="r+").attrs.update(attributes)
        sync(file)

    def root_damage(self) -> str:
        """Say what is wrong with the root's metadata; nothing if nothing is."""
        damage = metadata_damage(self.path)
        if not damage and "fx_layout" not in self._written_root() and self.sets():
            return f"{self.path / 'zarr.json'} is damaged (its attributes are lost)"
        return damage

    def _decided(self) -> dict[str, dict[str, Any]]:
        """Attributes of sets that a commit has decided on: nothing where the root is damaged."""
        with suppress(Exception):
            return cast(dict[str, dict[str, Any]], self._written_root().get("commit", {}))
        return {}

    def _names(self) -> list[str]:
        """Names of all feature sets, those that cannot be read among them."""
        names = []
        for folder in sorted(self.path.glob("*-*")):
            if re.fullmatch(r".+-[0-9a-f]{12}(\.g\d+)?", folder.name) and folder.is_dir():
                names.append(folder.name)
        return names

    def _open(self, name: str, *, write: bool = False) -> FeatureSet:
        path = self.path / name
        try:
            # opened anew: a zarr group keeps the attributes that it read first; and before the
            # root: a commit that comes in between is then seen in one of the two
            group = zarr.open_group(path, mode="r+" if write else "r")
            decided = self._decided().get(name, {})
            feature_set = FeatureSet(group, path, decided)
            if split_generation(name)[0] != spec_id(feature_set.spec):
                raise ValueError("its spec is not the one that its name is made of")
            return feature_set
        except Exception as error:
            folders = (path, *(path / array for array in ROW_ARRAYS))
            reasons = filter(None, map(metadata_damage, folders))
            reason = next(reasons, f"{path} cannot be read ({in_short(error)})")
            newest = max(self._generations(split_generation(name)[0]), default=name, key=_number)
            todo = "the next fx extract of its images computes them again"
            if newest != name:
                todo = f"{newest} has taken its place, and fx store gc drops it"
            raise FxError(f"{reason}; {todo}") from error

    def sets(self) -> list[FeatureSet]:
        """All feature sets that can be read, in the order of their names."""
        found = []
        for name in self._names():
            with suppress(FxError):  # ``verify`` tells of these
                found.append(self._open(name))
        return found

    def broken_sets(self) -> dict[str, str]:
        """Names of the feature sets that cannot be read, and why."""
        found = {}
        for name in self._names():
            try:
                self._open(name)
            except FxError as error:
                found[name] = str(error)
        return found

    def open_set(self, name: str) -> FeatureSet:
        """Open a feature set by the name that an extraction's result gives."""
        return self._open(name)

    def find(self, spec: Spec) -> FeatureSet | None:
        """Find the newest generation of a spec's features; None if there is none to be read."""
        # twice: a collection of garbage may be about to switch to another generation
        for _ in range(2):
            newest = max(self._generations(spec_id(spec)), key=_number, default=None)
            with suppress(FxError):
                return None if newest is None else self._open(newest)
        # an older one holds other rows, or ones that were found to differ
        return None

    def _generations(self, of: str) -> list[str]:
        return [name for name in self._names() if split_generation(name)[0] == of]

    @property
    def has_features(self) -> bool:
        """Whether anything has been extracted into this store."""
        return self._root().get("last_extracted") is not None and bool(self._names())

    def last_extracted(self) -> FeatureSet:
        """The feature set that an extraction wrote to or read last.

        Raises
        ------
        FxError
            If nothing has been extracted into this store, or the set cannot be read.
        """
        # twice: a collection of garbage may be about to switch to another generation
        for _ in range(2):
            name = self._root().get("last_extracted")
            if name is not None:
                try:
                    return self._open(str(name))
                except FxError:
                    if (self.path / str(name)).exists():
                        raise
        # it was deleted, by hand or by a collection that was killed
        newest = max(self.sets(), key=lambda s: s.last_written, default=None)
        if newest is None:
            raise FxError(f"{self.path} holds no features yet; fill it with fx extract")
        return newest

    def last_wanted(self) -> tuple[Spec, str]:
        """What was extracted last, also where it cannot be read: its spec, and the weights' source.

        Raises
        ------
        FxError
            If nothing has been extracted into this store.
        """
        root = self._root()
        if root.get("last_extracted") is None or "last_spec" not in root:
            last = self.last_extracted()
            return last.spec, last.weights_source
        return cast(Spec, root["last_spec"]), str(root["last_weights_source"])

    def write_snapshot(self, name: str, table: bytes, taken_ns: int) -> None:
        """Keep a snapshot's Parquet bytes under a name and make it the last one taken."""
        write_blob(self.path, SNAPSHOTS, name, table, taken_ns=taken_ns)
        # the folder's own number: in a copy of the store, no file is taken to be unchanged
        self._update_root(last_snapshot=name, inode=self.path.stat().st_ino)

    def read_snapshot(self, name: str | None = None) -> tuple[str, bytes]:
        """Return the name and Parquet bytes of a snapshot (default: the last one taken)."""
        known = self.snapshots()
        if name is None:
            last = self._root().get("last_snapshot")
            name = None if last is None else str(last)
        if name is None or name not in known:
            have = ", ".join(known) or "none"
            raise FxError(f"no snapshot {name!r} in {self.path}; it has: {have}; run fx extract")
        try:
            return name, read_blob(self.path, SNAPSHOTS, name)
        except FxError as error:
            raise FxError(f"snapshot {name}: {error}; run fx extract again") from error

    def snapshots(self) -> list[str]:
        """Names of the snapshots, oldest first; damaged ones before all others."""
        names = blob_names(self.path, SNAPSHOTS)
        taken = {name: blob_attribute(self.path, SNAPSHOTS, name, "taken_ns") for name in names}
        return sorted(names, key=lambda name: taken[name] or 0)

    @property
    def was_copied(self) -> bool:
        """Whether the store lies elsewhere than when its last snapshot was taken."""
        return bool(self._root().get("inode") != self.path.stat().st_ino)

    def write_network(self, name: str, parts: Sequence[bytes]) -> None:
        """Keep a network's graph and tensors; the caller holds the lock."""
        for suffix, data in zip(NETWORK_SUFFIXES, parts, strict=True):
            write_blob(self.path, NETWORKS, f"{name}{suffix}", data)

    def read_network(self, name: str) -> list[bytes]:
        """Read a network's graph and tensors.

        Raises
        ------
        FxError
            If one is not there or damaged.
        """
        return [read_blob(self.path, NETWORKS, f"{name}{suffix}") for suffix in NETWORK_SUFFIXES]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; the operating system lets go when the process dies.

        Raises
        ------
        FxError
            If another process holds it (the message says which), or the disk gets full.
        """
        # on the folder itself: a lock file inside would be foreign to Zarr, one beside it litter
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self._root().get("writer", "another process")
                raise FxError(
                    f"{self.path} is being written by {holder}; "
                    "wait for it, or give another --store"
                ) from None
            with _told_when_full(self.path):
                self._clear_after_a_killed_writer()
                yield
        finally:
            os.close(descriptor)

    def _clear_after_a_killed_writer(self) -> None:
        put_back_blobs(self.path)
        for leftover in [*self.path.rglob(f"*{UNFINISHED}")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        names = self._names()
        # a set that was deleted may come again, and has no rows then
        decided = {name: a for name, a in self._decided().items() if name in names}
        for name, attributes in decided.items():
            with suppress(FxError):  # a set that cannot be read is begun anew
                feature_set = self._open(name, write=True)
                if cast(int, feature_set.group.attrs["committed"]) < feature_set.committed:
                    feature_set.group.attrs.update(attributes)
                    sync(feature_set.path / "zarr.json")
                feature_set.close()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        holder = f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})"
        # the disk may be full, and this be the collection of garbage that makes room
        with suppress(OSError):
            self._update_root(writer=holder, commit=decided)

    def _publish(self, changes: dict[str, dict[str, Any]]) -> None:
        """Make new attributes of several sets count all at once: the root names them first."""
        self._update_root(commit=changes)
        for name, attributes in changes.items():
            zarr.open_group(self.path / name, mode="r+").attrs.update(attributes)
            sync(self.path / name / "zarr.json")

    def start(
        self,
        wanted: Sequence[tuple[Spec, int]],
        run: dict[str, Any],
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
        names = []
        for spec, dim in wanted:
            current = self.find(spec)
            kept = DTYPES[0] if current is None else str(current.dtype)
            if current is None or current.name in stale:
                name = self.new_generation(spec, dim, run, dtype or kept)
            elif dtype in (None, kept):
                name = current.name
            else:
                # float32 is made float16 from what is there; the other way it is computed anew
                rows = current if dtype == "float16" else None
                name = self.new_generation(spec, dim, run, str(dtype), copied=rows)
            names.append(name)
        sets = [self._open(name, write=True) for name in names]
        self._update_root(**_last_extracted(sets[0], run["weights_source"]))
        for feature_set in sets:
            # the file that the weights came from may since have moved
            feature_set.group.attrs.update({"weights_source": run["weights_source"]})
        return FeatureWriter(sets, self._publish, run)

    def new_generation(
        self,
        spec: Spec,
        dim: int,
        run: dict[str, Any],
        dtype: str,
        *,
        copied: FeatureSet | None = None,
        keys: Collection[bytes] | None = None,
    ) -> str:
        """Make a set for a spec beside those there are, in one step, and return its name.

        Parameters
        ----------
        spec, dim, run, dtype : as in ``start``
        copied : rows to begin with
        keys : which of them; None for all
        """
        before = [_number(name) for name in self._generations(spec_id(spec))]
        name = spec_id(spec) + (f".g{max(before) + 1}" if before else "")
        unfinished = f"{name}{UNFINISHED}"
        group = create_set(self.path, unfinished, spec, dim, dtype, run["weights_source"])
        if copied is not None:
            fresh = FeatureSet(group, self.path / unfinished, {})
            wanted = copied.rows if keys is None else keys
            copy_rows(copied, FeatureWriter([fresh], _publish_within(group), run), wanted)
            fresh.close()
        (self.path / unfinished).replace(self.path / name)
        sync(self.path / name)
        return name

    def rewrite(self, name: str, keys: Collection[bytes]) -> None:
        """Make a new generation of a set, of some images' rows; the caller holds the lock."""
        old = self._open(name)
        run = {**(old.runs[-1] if old.runs else {}), "weights_source": old.weights_source}
        new = self.new_generation(old.spec, old.dim, run, str(old.dtype), copied=old, keys=keys)
        old.close()
        if self._root().get("last_extracted") == name:
            self._update_root(last_extracted=new)

    def drop_snapshot(self, name: str) -> None:
        """Delete a snapshot; the caller holds the lock."""
        drop_blob(self.path, SNAPSHOTS, name)
        if self._root().get("last_snapshot") == name:
            remaining = self.snapshots()
            self._update_root(last_snapshot=remaining[-1] if remaining else None)

    def drop_network(self, name: str) -> None:
        """Delete a file of a network; the caller holds the lock."""
        drop_blob(self.path, NETWORKS, name)

    def forget_dropped_sets(self) -> None:
        """Name no set in the root that is not there; the caller holds the lock."""
        names = self._names()
        root = self._root()
        commit = {n: a for n, a in root.get("commit", {}).items() if n in names}
        last: dict[str, Any] = {}
        if root.get("last_extracted") not in names:
            newest = max(self.sets(), key=lambda s: s.last_written, default=None)
            last = _last_extracted(newest) if newest else {"last_extracted": None}
        self._update_root(commit=commit, **last)

    def verify(self) -> list[Damage]:
        """Read everything back and mark what is damaged, for the next extraction to mend."""
        damage = self.root_damage()
        found = [Damage(self.path.name, 0, 0, damage)] if damage else []
        with self.lock():
            found += [Damage(name, 0, 0, reason) for name, reason in self.broken_sets().items()]
            for name in [s.name for s in self.sets()]:
                feature_set = self._open(name, write=True)
                rows = feature_set.damage()
                spans = sorted({(d.start, d.stop) for d in rows})
                if spans != feature_set.damaged:
                    mark_damaged(feature_set, spans)
                found += rows
        for kind in (SNAPSHOTS, NETWORKS):
            reason = kind_damage(self.path, kind)
            if reason:
                found.append(Damage(kind, 0, 0, reason))
            for name in blob_names(self.path, kind):
                try:
                    read_blob(self.path, kind, name)
                except FxError as error:
                    found.append(Damage(f"{kind}/{name}", 0, 0, str(error)))
        return found


def _number(name: str) -> int:
    return split_generation(name)[1]


@contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FxError(
            f"{error.strerror}: {path}; make room and run the same command again: "
            "it goes on from what is committed"
        ) from error


def _last_extracted(feature_set: FeatureSet, weights_source: str | None = None) -> dict[str, Any]:
    """Attributes of the root that tell what is extracted next where nothing is asked for."""
    return {
        "last_extracted": feature_set.name,
        # also here: the set itself may come to be damaged
        "last_spec": feature_set.spec,
        "last_weights_source": weights_source or feature_set.weights_source,
    }


def _publish_within(group: zarr.Group) -> Any:
    """Publish to a set that nobody can see yet."""

    def publish(changes: dict[str, dict[str, Any]]) -> None:
        for attributes in changes.values():
            group.attrs.update(attributes)

    return publish


def check_snapshot_name(name: str | None) -> None:
    """Refuse a name that could not be a folder's within the store.

    Raises
    ------
    FxError
        If it has other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise FxError(
            f"a snapshot's name has letters, digits, '.', '_' and '-' only; got {name!r}; "
            "choose another for --snapshot"
        )
