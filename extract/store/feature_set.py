"""Reading features: the committed rows of one spec, checked as they are read."""

import hashlib
import os
import stat
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import google_crc32c
import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray

from extract.errors import FxError
from extract.files import ObjectPath, Place, StorageFailure, lock_folder, sync
from extract.store.key_index import KEY_BYTES, KeyIndex
from extract.store.records import Checksums, Commit, Damage, SetAttributes, split_generation
from extract.store.zarr_files import LARGEST, in_short, lengthen, open_group

ROW_ARRAYS = ("features", "keys", "hashes")
DTYPES = ("float32", "float16")


def checksum_of(rows: NDArray[Any], before: int = 0) -> int:
    """CRC-32C of numbers, row after row, as little-endian bytes, behind those of a checksum."""
    plain = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    return int(google_crc32c.extend(before, plain.reshape(-1).view(np.uint8)))


class FeatureSet:
    """The committed rows of one spec: what a reader sees is fixed when this object is made.

    A committed row never changes, and the checksums that were committed with it are compared
    whenever it is read: rows of another time, or of another set, are damage, as absent ones are.

    The set's folder is locked, shared, for as long as this object lives: what is collected as
    garbage meanwhile stays until its last reader is gone.

    Parameters
    ----------
    group : of the set
    path : its folder
    decided : what a commit has decided on, and may not have written here yet

    Attributes
    ----------
    spec : what the features mean
    dim : int, numbers a row
    dtype : that they are kept in, float32 or float16
    committed : int, rows that count
    runs : a record for each extraction that added rows
    checksums : of the committed rows, by array and chunk; None in a store of an earlier version
    arrays : zarr's, by name: ``features``, ``keys`` and ``hashes``
    damaged : spans of rows, first and one past the last, that ``FeatureStore.verify`` found damaged

    Raises
    ------
    ValueError
        If its attributes or arrays are not as fx writes them.
    """

    def __init__(self, group: zarr.Group, path: Place, decided: Commit | None) -> None:
        self.group = group
        self.path = path
        self.name = path.name
        self.arrays = {name: _row_array(group, name) for name in ROW_ARRAYS}
        there = min(array.shape[0] for array in self.arrays.values())
        attributes = msgspec.convert(group.attrs.asdict(), SetAttributes)
        # what is decided is there already: more rows than there are is a damaged root
        if decided is not None and attributes.committed < decided.committed <= there:
            changed = {name: getattr(decided, name) for name in decided.__struct_fields__}
            attributes = msgspec.structs.replace(attributes, **changed)
        self.spec = attributes.spec
        self.dim = attributes.dim
        self.committed = attributes.committed
        self.runs = attributes.runs
        self.weights_source = attributes.weights_source
        self.damaged = attributes.damaged
        self.checksums = attributes.checksums
        self.dtype = np.dtype(self.arrays["features"].dtype)
        if there < self.committed:
            raise ValueError(f"{there} rows are there, and {self.committed} are committed")
        _check_arrays(self.arrays, self.dim)
        if self.checksums is not None:
            for name in ROW_ARRAYS:
                if len(self.checksums.get(name, ())) != self.chunks(name):
                    raise ValueError(f"the checksums of {name} are not those of its chunks")
        self._rows: KeyIndex | None = None
        held = ExitStack()
        # on object storage nobody can lock it: garbage stays there for long enough
        if not isinstance(path, ObjectPath):
            try:
                descriptor = lock_folder(path, shared=True)
            except BlockingIOError:
                raise FileNotFoundError(f"{path} is being deleted") from None
            held.callback(os.close, descriptor)
            # the lock may be that of a folder which has been deleted before it was taken
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                held.close()
                raise FileNotFoundError(f"{path} was deleted")
        self.close = weakref.finalize(self, held.close)

    def resize(self, name: str, rows: int) -> None:
        """Give an array so many rows, of which none count yet."""
        if isinstance(self.path, ObjectPath):
            lengthen(self.path / name, rows)
            self.arrays[name] = _row_array(open_group(self.path, "r+"), name)
        else:
            self.arrays[name].resize((rows, self.arrays[name].shape[1]))
            sync(self.path / name / "zarr.json")

    def rows_per_chunk(self, name: str) -> int:
        """Rows that an array keeps in one file: a shard, or a chunk where it has no shards."""
        array = self.arrays[name]
        return int((array.shards or array.chunks)[0])

    def chunks(self, name: str) -> int:
        """Files of an array that hold committed rows."""
        return -(-self.committed // self.rows_per_chunk(name))

    def chunk_file(self, name: str, number: int) -> Place:
        """Path of one of an array's files."""
        return self.path / name / "c" / str(number) / "0"

    def try_chunk(self, name: str, number: int) -> tuple[NDArray[Any] | None, str]:
        """Read the committed rows of one chunk, or say what is wrong with it."""
        reason = self._file_damage(name, number)
        if reason:
            return None, reason
        rows, file = self.rows_per_chunk(name), self.chunk_file(name, number)
        start = number * rows
        try:
            values = np.asarray(self.arrays[name][start : min(start + rows, self.committed)])
        except (MemoryError, PermissionError, StorageFailure):
            raise
        except Exception as error:  # any decoder's failure means the same here
            return None, f"{file} is damaged ({in_short(error)})"
        if self.checksums and checksum_of(values) != self.checksums[name][number]:
            return None, f"{file} is damaged (it holds other rows than were committed)"
        return values, ""

    def _file_damage(self, name: str, number: int) -> str:
        """Say what is wrong with a chunk's file, without reading it; empty if nothing is."""
        file, array = self.chunk_file(name, number), self.arrays[name]
        # zarr would read zeros for what is not there, whole files or chunks of a shard
        try:
            status = file.stat()
        except FileNotFoundError:
            return f"{file} is missing"
        if not stat.S_ISREG(status.st_mode):
            return f"{file} is damaged (it is no regular file)"
        step = self.rows_per_chunk(name)
        rows = min(step, self.committed - number * step)
        # they are not compressed
        least = rows * array.shape[1] * array.dtype.itemsize
        size = status.st_size
        return f"{file} is damaged (it has {size:,} bytes of {least:,})" if size < least else ""

    def read_chunk(self, name: str, number: int) -> NDArray[Any]:
        """Read the committed rows of one chunk; raises FxError where they are damaged."""
        values, reason = self.try_chunk(name, number)
        if values is None:
            raise FxError(
                f"{reason}; verify the store {self.path.parent}, then extract the images again"
            )
        return values

    @property
    def last_written(self) -> int:
        """Time of the last extraction that added rows, nanoseconds since 1970; 0 for none."""
        return max((run.taken_ns for run in self.runs), default=0)

    @property
    def rows(self) -> KeyIndex:
        """Row number of every committed key, without rows that are known to be damaged."""
        if self._rows is None:
            keys = np.zeros((self.committed, KEY_BYTES), np.uint8)
            undamaged = np.ones(self.committed, bool)
            for first, last in self.damaged:
                undamaged[first:last] = False
            step = self.rows_per_chunk("keys")
            for number in range(self.chunks("keys")):
                chunk = slice(number * step, min((number + 1) * step, self.committed))
                if undamaged[chunk].any():
                    keys[chunk] = self.read_chunk("keys", number)
            # zeros stand for rows that an earlier version has given up
            self._rows = KeyIndex(keys, undamaged & keys.any(axis=1))
        return self._rows

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
            If a key has no row here, or a chunk is not what was committed.
        """
        return self.features_at(self._stored_rows(keys))

    def features_at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the features of rows by their numbers: float32 array of shape (len(rows), dim)."""
        return self._take_rows("features", rows).astype(np.float32, copy=False)

    def on_disk(self, keys: Sequence[bytes]) -> "StoredRows":
        """Give the features of some images as rows that are read chunk after chunk."""
        return StoredRows(self, self._stored_rows(keys))

    def hashes(self, keys: Sequence[bytes]) -> NDArray[np.uint8]:
        """Read perceptual hashes: uint8 array of shape (len(keys), 32)."""
        return self._take_rows("hashes", self._stored_rows(keys))

    def _take_rows(self, name: str, wanted: NDArray[np.int64]) -> NDArray[Any]:
        array = self.arrays[name]
        result = np.empty((len(wanted), array.shape[1]), dtype=array.dtype)
        step = self.rows_per_chunk(name)
        # a chunk at a time: beside the result, memory holds one of them
        for number in np.unique(wanted // step).tolist():
            inside = np.flatnonzero(wanted // step == number)
            result[inside] = self.read_chunk(name, number)[wanted[inside] - number * step]
        return result

    def _stored_rows(self, keys: Collection[bytes]) -> NDArray[np.int64]:
        """Find the rows of keys; raises FxError where some have none."""
        rows = self.rows.find(keys)
        if absent := int((rows < 0).sum()):
            raise FxError(
                f"{absent} of {len(keys)} images have no features in {self.path}; "
                "extract the images again"
            )
        return rows

    def in_batches(
        self, keys: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], list[NDArray[np.float32]], NDArray[np.uint8]]]:
        """Yield the rows of some images, at most a shard of them at a time, in their order here.

        Yields
        ------
        keys, [features], hashes : as ``FeatureWriter.append`` takes them
        """
        named, rows = list(keys), self.rows.find(keys)
        order = np.argsort(rows)[(rows < 0).sum() :]
        step = self.rows_per_chunk("features")
        for start in range(0, len(order), step):
            some = order[start : start + step]
            features = self.features_at(rows[some])
            hashes = self._take_rows("hashes", rows[some])
            yield [named[at] for at in some], [features], hashes

    def digest(self, keys: Collection[bytes]) -> str:
        """SHA-256, in hex, of the features and perceptual hashes of some images.

        It changes where damaged rows have been computed again. It depends on the spec, and neither
        on the order of the rows nor on the set's name.

        Raises
        ------
        FxError
            As ``features`` does.
        """
        self._stored_rows(keys)
        rows: dict[bytes, bytes] = {}
        for some, (features,), hashes in self.in_batches(keys):
            for key, row, perceptual in zip(some, features, hashes, strict=True):
                one = hashlib.sha256(row)
                one.update(perceptual)
                rows[key] = one.digest()
        found = hashlib.sha256(split_generation(self.name)[0].encode())
        for key in sorted(rows):
            found.update(key + rows[key])
        return found.hexdigest()

    def take_over(self, commit: Commit) -> None:
        """Take over what has just been committed."""
        self.committed, self.runs, self.checksums = commit.committed, commit.runs, commit.checksums
        self._rows = None

    def damage(self, *, thorough: bool = True) -> list[Damage]:
        """List the ranges of committed rows that cannot be read back as they were written.

        Parameters
        ----------
        thorough : read every row; else look at the files of all, and read the chunks that grow
        """
        found = []
        for name in ROW_ARRAYS:
            step, last = self.rows_per_chunk(name), self.chunks(name) - 1
            for number in range(last + 1):
                if thorough or number == last:
                    _, reason = self.try_chunk(name, number)
                else:
                    reason = self._file_damage(name, number)
                if reason:
                    start = number * step
                    stop = min(start + step, self.committed)
                    found.append(Damage(self.name, start, stop, reason))
        return found

    def without(self, spans: Collection[tuple[int, int]]) -> None:
        """Stop counting damaged rows: spans of a first row, and one past the last."""
        self.damaged = sorted(set(spans))
        self._rows = None

    def tail_is_damaged(self) -> bool:
        """Whether the last chunks hold unfinished rows that can be neither read nor overwritten."""
        for name in ROW_ARRAYS:
            array, step = self.arrays[name], self.rows_per_chunk(name)
            start = self.committed // step * step
            stop = min(start + step, array.shape[0])
            if start < self.committed < stop:
                try:
                    array[self.committed : stop]
                except (MemoryError, PermissionError, StorageFailure):
                    raise
                except Exception:  # as in try_chunk
                    return True
        return False

    def measured_checksums(self) -> Checksums:
        """Read every committed row and compute its chunk's checksum; raises FxError on damage."""
        return {
            name: [checksum_of(self.read_chunk(name, n)) for n in range(self.chunks(name))]
            for name in ROW_ARRAYS
        }


class StoredRows:
    """Rows of a set that are read again and again, those of a shard together.

    Attributes
    ----------
    shape : (n, d)
    chunks : positions of the rows of each shard, int arrays
    """

    def __init__(self, feature_set: FeatureSet, rows: NDArray[np.int64]) -> None:
        self.feature_set, self.rows = feature_set, rows
        self.shape = (len(rows), feature_set.dim)
        order = np.argsort(rows)
        shards = rows[order] // feature_set.rows_per_chunk("features")
        self.chunks = np.split(order, np.flatnonzero(np.diff(shards)) + 1)

    def __getitem__(self, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        """Read rows: float32 array of shape (len(positions), d)."""
        return self.feature_set.features_at(self.rows[positions])


def _row_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no array")
    # all zeros are written, too: a chunk that is not there is a chunk that was lost
    return array.with_config({"write_empty_chunks": True})


def _check_arrays(arrays: dict[str, zarr.Array[Any]], dim: int) -> None:
    """Raise ValueError unless the arrays are as ``create_set`` makes them."""
    for name, array in arrays.items():
        width, dtypes = (dim, DTYPES) if name == "features" else (KEY_BYTES, ("uint8",))
        if str(array.dtype) not in dtypes:
            raise ValueError(f"{name} is of {array.dtype}, not of {' or '.join(dtypes)}")
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"{name} has the shape {array.shape}, and not {width} columns")
        shard = array.shards or array.chunks
        if shard[1] != width or array.chunks[1] != width or shard[0] % array.chunks[0]:
            raise ValueError(f"{name} has chunks of {shard} and {array.chunks}")
        if shard[0] * width * array.dtype.itemsize > LARGEST:
            raise ValueError(f"{name} has chunks that are too large: {shard}")
        codecs: Any = array.metadata.to_dict()["codecs"]
        if array.shards:
            sharding = codecs[0]["configuration"]
            codecs = (*sharding["codecs"], *sharding["index_codecs"])
        names = [one["name"] for one in codecs]
        if names != ["bytes", "crc32c"] * (2 if array.shards else 1):
            raise ValueError(f"{name} has other codecs than bytes and crc32c: {names}")
