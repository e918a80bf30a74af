"""Reading features: the committed rows of one spec, checked as they are read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from extract.errors import FxError

ROW_ARRAYS = ("features", "keys", "hashes")
KEY_BYTES = 32

Spec = dict[str, Any]


def spec_id(spec: Spec) -> str:
    """Name a spec: its backbone and 12 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    return f"{str(spec['backbone']).replace('/', '_')}-{digest}"


def channels_of(spec: Spec) -> int:
    """Channels that the first convolution saw: 3 where the spec does not say."""
    return int(spec.get("channels", 3))


@dataclass(frozen=True)
class Damage:
    """Committed rows that cannot be read back as they were written.

    Attributes
    ----------
    group : name of the sub-group
    start, stop : first row, and one past the last; both 0 where it is not known which
    reason : what is wrong, with the file's name
    """

    group: str
    start: int
    stop: int
    reason: str


class FeatureSet:
    """The committed rows of one spec: what a reader sees is fixed when this object is made.

    The set's folder is locked, shared, for as long as this object lives: what is collected as
    garbage meanwhile stays until its last reader is gone.

    Parameters
    ----------
    group : of the set
    path : its folder
    decided : attributes that a commit has decided on, and may not have written here yet

    Attributes
    ----------
    spec : what the features mean
    dim : int, numbers a row
    dtype : that they are kept in, float32 or float16
    committed : int, rows that count
    runs : a record for each extraction that added rows
    """

    def __init__(self, group: zarr.Group, path: Path, decided: dict[str, Any]) -> None:
        self.group = group
        self.path = path
        attributes = group.attrs.asdict()
        there = min(self.array(name).shape[0] for name in ROW_ARRAYS)
        # what is decided is there already: more rows than there are is a damaged root
        if int(cast(int, attributes["committed"])) < int(decided.get("committed", 0)) <= there:
            attributes |= decided
        self.name = path.name
        self.spec = cast(Spec, attributes["spec"])
        self.dim = int(cast(int, attributes["dim"]))
        self.committed = int(cast(int, attributes["committed"]))
        self.runs = cast(list[dict[str, Any]], attributes["runs"])
        self.weights_source = str(attributes["weights_source"])
        self.damaged = [tuple(span) for span in cast(list[list[int]], attributes["damaged"])]
        if there < self.committed:
            raise ValueError(f"{there} rows are there, and {self.committed} are committed")
        if self.array("features").shape[1] != self.dim:
            raise ValueError(f"features has not the {self.dim} columns that it should have")
        self.dtype = np.dtype(self.array("features").dtype)
        self._rows: dict[bytes, int] | None = None
        descriptor = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(f"{path} is being deleted") from None
        except OSError:
            pass  # a file system without locks is no reason not to read
        # the lock may be that of a folder which has been deleted before it was taken
        if os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise FileNotFoundError(f"{path} was deleted")

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one of the row arrays: ``features``, ``keys`` or ``hashes``."""
        array = cast("zarr.Array[Any]", self.group[name])
        # all zeros are written, too: a shard that is not there is a shard that was lost
        return array.with_config({"write_empty_chunks": True})

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read rows that lie in one shard."""
        values, reason = self.look(name, start, stop)
        if values is None:
            raise FxError(f"{reason}; run fx store verify {self.path.parent}, then fx extract")
        return values

    def look(self, name: str, start: int, stop: int) -> tuple[NDArray[Any] | None, str]:
        """Read rows that lie in one shard, committed or not, or say what is wrong with it."""
        array = self.array(name)
        number = start // (array.shards or array.chunks)[0]
        file = self.path / name / "c" / str(number) / "0"
        # zarr would read zeros
        if not file.exists():
            return None, f"{file} is missing"
        try:
            return np.asarray(array[start:stop]), ""
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # any decoder's failure means the same here
            return None, f"{file} is damaged ({in_short(error)})"

    @property
    def last_written(self) -> int:
        """Time of the last extraction that added rows, nanoseconds since 1970; 0 for none."""
        return max((int(run["taken_ns"]) for run in self.runs), default=0)

    @property
    def rows(self) -> dict[bytes, int]:
        """Row number of every committed key, without rows given up or known to be damaged."""
        if self._rows is None:
            self._rows = {
                key.tobytes(): row
                for row, key in enumerate(self._keys(0, self.committed))
                if key.any()
            }
        return self._rows

    def _keys(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Keys of some rows as they are now, zeros for those that are known to be damaged."""
        keys = np.zeros((stop - start, KEY_BYTES), dtype=np.uint8)
        chunk = self.array("keys").chunks[0]
        for first in range(start // chunk * chunk, stop, chunk):
            some = slice(max(first, start), min(first + chunk, stop))
            if not any(a <= some.start and some.stop <= b for a, b in self.damaged):
                keys[some.start - start : some.stop - start] = self._read(
                    "keys", some.start, some.stop
                )
        for first, last in self.damaged:
            keys[max(first - start, 0) : max(last - start, 0)] = 0
        return keys

    def features(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Read the features of some images.

        Parameters
        ----------
        keys : SHA-256 digests of image files, 32 bytes each

        Returns
        -------
        float32 array of shape (len(keys), dim), in the order of ``keys``

        Raises
        ------
        FxError
            If a key has no row here, or a chunk fails its checksum.
        """
        return self._take("features", keys).astype(np.float32, copy=False)

    def hashes(self, keys: Sequence[bytes]) -> NDArray[np.uint8]:
        """Read perceptual hashes: uint8 array of shape (len(keys), 32)."""
        return self._take("hashes", keys)

    def _take(self, name: str, keys: Sequence[bytes]) -> NDArray[Any]:
        rows = self.rows
        absent = sum(key not in rows for key in keys)
        if absent:
            raise FxError(
                f"{absent} of {len(keys)} images have no features in {self.path}; "
                "run fx extract again"
            )
        wanted = np.array([rows[key] for key in keys], dtype=np.int64)
        array = self.array(name)
        result = np.empty((len(keys), array.shape[1]), dtype=array.dtype)
        step = (array.shards or array.chunks)[0]
        # a shard at a time: beside the result, memory holds one of them
        for number in np.unique(wanted // step):
            start = int(number) * step
            inside = np.flatnonzero(wanted // step == number)
            shard = self._read(name, start, min(start + step, self.committed))
            result[inside] = shard[wanted[inside] - start]
        self._check_still_there(keys, wanted)
        return result

    def _check_still_there(self, keys: Sequence[bytes], wanted: NDArray[np.int64]) -> None:
        # a run that mends the store gives up the keys of rows first, and only then the rows
        first, last = (wanted.min(), wanted.max() + 1) if len(wanted) else (0, 0)
        if self._keys(int(first), int(last))[wanted - first].tobytes() != b"".join(keys):
            raise FxError(f"rows of {self.path} have been given up as damaged; run fx extract")

    def in_batches(
        self, keys: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], list[NDArray[np.float32]], NDArray[np.uint8]]]:
        """Yield the rows of some images, at most a shard of them at a time, in their order here.

        Yields
        ------
        keys, [features], hashes : as ``FeatureWriter.append`` takes them
        """
        ordered = sorted((key for key in keys if key in self.rows), key=self.rows.__getitem__)
        step = (self.array("features").shards or self.array("features").chunks)[0]
        for start in range(0, len(ordered), step):
            some = ordered[start : start + step]
            yield some, [self.features(some)], self.hashes(some)

    def forget_rows(self) -> None:
        """Let the next look-up read the keys again: the writer has changed them."""
        self._rows = None

    def missing_shards(self, name: str) -> list[Path]:
        """Shard files that the committed rows need and lack (Zarr would read zeros)."""
        array = self.array(name)
        rows = (array.shards or array.chunks)[0]
        numbers = range(-(-self.committed // rows))
        files = (self.path / name / "c" / str(number) / "0" for number in numbers)
        return [file for file in files if not file.exists()]

    def damage(self) -> list[Damage]:
        """Read every committed row back, checksums included, and list the ranges that fail."""
        found = []
        for name in ROW_ARRAYS:
            array = self.array(name)
            step = (array.shards or array.chunks)[0]
            for start in range(0, self.committed, step):
                stop = min(start + step, self.committed)
                _, reason = self.look(name, start, stop)
                if reason:
                    found.append(Damage(self.name, start, stop, reason))
        return found


def split_generation(name: str) -> tuple[str, int]:
    """Split a feature set's name: that of its spec, and its generation (0, or behind ``.g``)."""
    # a backbone's own name may hold a ".g", too
    found = re.fullmatch(r"(.+)\.g(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def metadata_damage(folder: Path) -> str:
    """Say what is wrong with the metadata of a group or an array; nothing if nothing is."""
    file = folder / "zarr.json"
    if not file.exists():
        return f"{file} is missing"
    try:
        zarr.open(folder, mode="r")
    except Exception as error:  # zarr raises a different class for each way to be damaged
        return f"{file} is damaged ({in_short(error)})"
    return ""


def in_short(error: Exception) -> str:
    """Say in a few words what a reader of Zarr found wrong."""
    text = " ".join(str(error).split())
    if text.startswith("Stored and computed checksum"):
        return "its checksum does not match"
    if isinstance(error, json.JSONDecodeError):
        return "it is no whole JSON file"
    return f"{type(error).__name__}: {text}"
