"""Feature store: row i of features belongs to row i of keys, and rows count once committed.

A store is a Zarr v3 group with one sub-group a spec::

    features.zarr/
        resnet50-1f2e3d4c5b6a/      attributes: spec, dim, committed, runs
            features  (n, d)        the vectors, in shards of 4,096 rows
            keys      (n, 32) uint8 SHA-256 of each image file; 32 zeros: a row given up
            hashes    (n, 32) uint8 perceptual hash of each image
        snapshots/NAME              the bytes of a Parquet table

Rows beyond ``committed`` are unfinished work: the next writer overwrites them, fx never reads
them. Zarr writes each shard to a new file and renames it, so the growing last shard is whole at
any moment.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from extract.errors import FxError
from extract.feature_set import Damage, FeatureSet, Spec, generation, spec_id
from extract.writer import (
    KEY_BYTES,
    KEYS_PER_CHUNK,
    ROWS_PER_CHUNK,
    ROWS_PER_SHARD,
    FeatureWriter,
    sync,
)

LAYOUT = 1
SNAPSHOTS = "snapshots"
# how the names end of what zarr, or fx itself, has not finished writing
UNFINISHED = ".partial"


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
            layout = zarr.open_group(self.path, mode="r").attrs.get("fx_layout")
        except Exception as error:  # zarr raises a different class for each way to be none
            raise FxError(
                f"{self.path} is not a feature store ({type(error).__name__}); "
                "give the folder that fx extract wrote"
            ) from error
        if layout != LAYOUT:
            raise FxError(
                f"{self.path} is not a feature store of this version; got layout {layout!r}, "
                f"expected {LAYOUT}; extract into a new one with --store"
            )

    @classmethod
    def create(cls, path: str | Path) -> FeatureStore:
        """Open a store, making an empty one where nothing lies yet."""
        path = Path(path)
        # also an empty folder: one made by hand, or by a run killed right here
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            path.mkdir(parents=True, exist_ok=True)
            zarr.create_group(path, attributes={"fx_layout": LAYOUT})
            sync(path / "zarr.json")
        return cls(path)

    def sets(self) -> list[FeatureSet]:
        """All feature sets, in the order of their names."""
        names = sorted(entry.parent.name for entry in self.path.glob("*/zarr.json"))
        unfinished = (SNAPSHOTS, UNFINISHED)
        return [self._open(name) for name in names if not name.endswith(unfinished)]

    def open_set(self, name: str) -> FeatureSet:
        """Open a feature set by the name that an extraction's result gives."""
        return self._open(name)

    def _open(self, name: str, *, write: bool = False) -> FeatureSet:
        try:
            # opened anew: a zarr group keeps the attributes that it read first
            group = zarr.open_group(self.path / name, mode="r+" if write else "r")
            return FeatureSet(group, self.path / name)
        except Exception as error:
            raise FxError(
                f"{self.path / name} cannot be read ({type(error).__name__}: {error}); "
                "delete that folder and extract again"
            ) from error

    def find(self, spec: Spec) -> FeatureSet | None:
        """Find the newest generation of a spec's features."""
        wanted = spec_id(spec)
        found = [s for s in self.sets() if s.name.split(".g")[0] == wanted]
        return max(found, key=lambda s: generation(s.name), default=None)

    @property
    def has_features(self) -> bool:
        """Whether anything has been extracted into this store."""
        return "last_extracted" in zarr.open_group(self.path, mode="r").attrs

    def last_extracted(self) -> FeatureSet:
        """The feature set that an extraction wrote to or read last.

        Raises
        ------
        FxError
            If nothing has been extracted into this store.
        """
        name = zarr.open_group(self.path, mode="r").attrs.get("last_extracted")
        if name is None or not (self.path / str(name)).exists():
            raise FxError(f"{self.path} holds no features yet; fill it with fx extract")
        return self._open(str(name))

    def write_snapshot(self, name: str, table: bytes, taken_ns: int) -> None:
        """Keep a snapshot's Parquet bytes under a name and make it the last one taken."""
        data = np.frombuffer(table, dtype=np.uint8)
        snapshots = zarr.open_group(self.path, mode="r+").require_group(SNAPSHOTS)
        folder = self.path / SNAPSHOTS / name
        # beside the old one, then in its place: a reader never finds half a snapshot
        new, old = (folder.with_name(f"{name}.{age}{UNFINISHED}") for age in ("new", "old"))
        array = snapshots.create_array(
            new.name,
            shape=data.shape,
            chunks=data.shape,
            dtype=data.dtype,
            compressors=[Crc32cCodec()],
            attributes={"taken_ns": taken_ns},
            overwrite=True,
        )
        array[:] = data
        sync(*new.rglob("*"))
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
        self._update_root(last_snapshot=name)

    def read_snapshot(self, name: str | None = None) -> tuple[str, bytes]:
        """Return the name and Parquet bytes of a snapshot (default: the last one taken)."""
        known = self.snapshots()
        if name is None:
            last = zarr.open_group(self.path, mode="r").attrs.get("last_snapshot")
            name = None if last is None else str(last)
        if name is None or name not in known:
            have = ", ".join(known) or "none"
            raise FxError(f"no snapshot {name!r} in {self.path}; it has: {have}; run fx extract")
        try:
            array = cast("zarr.Array[Any]", zarr.open(self.path / SNAPSHOTS / name, mode="r"))
            return name, np.asarray(array[:]).tobytes()
        except ValueError as error:
            raise FxError(f"snapshot {name} is damaged ({error}); run fx extract again") from error

    def snapshots(self) -> list[str]:
        """Names of the snapshots, oldest first."""
        if not (self.path / SNAPSHOTS).exists():
            return []
        group = zarr.open_group(self.path / SNAPSHOTS, mode="r")
        taken = {
            name: int(cast(int, array.attrs["taken_ns"]))
            for name, array in group.arrays()
            if not name.endswith(UNFINISHED)
        }
        return sorted(taken, key=lambda name: taken[name])

    def _update_root(self, **attributes: Any) -> None:
        zarr.open_group(self.path, mode="r+").attrs.update(attributes)
        sync(self.path / "zarr.json")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; the operating system lets go when the process dies.

        Raises
        ------
        FxError
            If another process holds it; the message says which.
        """
        # on the folder itself: a lock file inside would be foreign to Zarr, one beside it litter
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = zarr.open_group(self.path, mode="r").attrs.get("writer")
                raise FxError(
                    f"{self.path} is being written by {holder}; "
                    "wait for it, or give another --store"
                ) from None
            for leftover in [*self.path.rglob(f"*{UNFINISHED}")]:
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink(missing_ok=True)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
            self._update_root(
                writer=f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})"
            )
            yield
        finally:
            os.close(descriptor)

    def start(
        self, spec: Spec, dim: int, run: dict[str, Any], *, new_generation: bool = False
    ) -> FeatureWriter:
        """Begin to append to a spec's features; the caller holds the lock.

        Parameters
        ----------
        spec : what the features mean
        dim : length of one feature vector
        run : engine, versions and time, recorded with the rows, and where the weights came from
        new_generation : leave the rows that are there to their readers and begin anew
        """
        current = self.find(spec)
        if current is None or new_generation:
            name = spec_id(spec)
            if current is not None:
                name += f".g{generation(current.name) + 1}"
            unfinished = f"{name}{UNFINISHED}"
            group = zarr.open_group(self.path, mode="r+").create_group(unfinished)
            for array, width, dtype, chunk, shard in (
                ("features", dim, np.float32, ROWS_PER_CHUNK, ROWS_PER_SHARD),
                ("keys", KEY_BYTES, np.uint8, KEYS_PER_CHUNK, None),
                ("hashes", KEY_BYTES, np.uint8, KEYS_PER_CHUNK, None),
            ):
                group.create_array(
                    array,
                    shape=(0, width),
                    chunks=(chunk, width),
                    shards=None if shard is None else (shard, width),
                    dtype=dtype,
                    compressors=[Crc32cCodec()],
                )
            group.attrs.update(
                {
                    "spec": spec,
                    "weights_source": run["weights_source"],
                    "dim": dim,
                    "committed": 0,
                    "runs": [],
                    "damaged": [],
                }
            )
            (self.path / unfinished).replace(self.path / name)
        else:
            name = current.name
        self._update_root(last_extracted=name)
        feature_set = self._open(name, write=True)
        # the file that the weights came from may since have moved
        feature_set.group.attrs.update({"weights_source": run["weights_source"]})
        return FeatureWriter(feature_set, run)

    def verify(self) -> list[Damage]:
        """Read everything back and mark what is damaged, for the next extraction to mend."""
        found = []
        with self.lock():
            for name in [s.name for s in self.sets()]:
                feature_set = self._open(name, write=True)
                damage = feature_set.damage()
                spans = sorted({(d.start, d.stop) for d in damage})
                feature_set.group.attrs.update({"damaged": [list(span) for span in spans]})
                found += damage
        return found


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
