"""Snapshots: which image had which bytes, label, group and split at one time.

A snapshot is kept as a Parquet table and comes back from it as it was, odd file names included.
"""

import hashlib
import io
import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from extract.errors import FxError, one_line
from extract.files import decoded
from extract.images.entries import FileStats, ImageRow
from extract.images.shards import cells, open_parquet
from extract.images.splits import has_given_test

SPLITS = ("train", "val", "test")
# columns of a snapshot's table, by how they are kept
_TEXTS = ("path", "label", "group", "note")
_PLAIN = ("key", "split", "readable")
_STATS = ("inode", "size", "mtime_ns", "ctime_ns")
_TYPES = {
    **dict.fromkeys((*_TEXTS, "key"), pa.binary()),
    **{"split": pa.string(), "readable": pa.bool_()},
    **dict.fromkeys(("size", "mtime_ns", "ctime_ns"), pa.int64()),
    "inode": pa.uint64(),
}
_COMPRESSIONS = ("SNAPPY", "UNCOMPRESSED")
# characters of a folder's name in a snapshot's
LONGEST_FOLDER = 100
# a row has its own path, and nearly always a key
MOST_ROWS_A_BYTE = 1


class FailedImage(msgspec.Struct, frozen=True):
    """An image that could not be read, and why."""

    path: str
    reason: str


class DuplicateImage(msgspec.Struct, frozen=True):
    """An image with the bytes of another."""

    path: str
    copy_of: str


@dataclass(frozen=True)
class Snapshot:
    """The rows of one image folder or table at one time.

    Attributes
    ----------
    root : absolute folder that the paths are relative to
    rows : in the order of their paths
    split_seed : what the split was drawn with
    taken_ns : time of the first look at the files, nanoseconds since 1970
    name : as kept in the store; by default the root's name and a hash of the rows
    """

    root: str
    rows: tuple[ImageRow, ...]
    split_seed: int
    taken_ns: int
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            # the store's files of it have longer names
            folder = Path(self.root).name[:LONGEST_FOLDER] or "images"
            safe = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in folder)
            object.__setattr__(self, "name", f"{safe}-{self.fingerprint[:8]}")

    @property
    def fingerprint(self) -> str:
        """Hash of what decides a result: paths, keys, labels, groups, splits; not times."""
        content = [(row.path, row.key.hex(), row.label, row.group, row.split) for row in self.rows]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def classes(self) -> list[str]:
        """Labels of all rows that are in a split, sorted."""
        return sorted({row.label for row in self.rows if row.split and row.label is not None})

    def split(self, name: str) -> list[ImageRow]:
        """Rows of one split."""
        return [row for row in self.rows if row.split == name]

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows per split and class."""
        found = {name: Counter(row.label for row in self.split(name)) for name in SPLITS}
        return {
            name: {label: counts[label] for label in self.classes}
            for name, counts in found.items()
            if counts
        }

    @property
    def test_was_given(self) -> bool:
        """Whether the test split is the user's own, not the one that is set aside by hash."""
        return has_given_test(self.rows, self.split_seed)

    def failed(self) -> list[FailedImage]:
        """Images that could not be read."""
        return [FailedImage(row.path, row.note) for row in self.rows if not row.readable]

    def duplicates(self) -> list[DuplicateImage]:
        """Images with the bytes of another, which counts in their place."""
        return [
            DuplicateImage(row.path, row.note.removeprefix("copy of "))
            for row in self.rows
            if row.note.startswith("copy of ")
        ]

    def conflicts(self) -> list[str]:
        """Paths of images whose bytes have several labels."""
        return [row.path for row in self.rows if row.note == "conflicting labels"]

    def to_parquet(self) -> bytes:
        """Write as a Parquet file."""
        columns: dict[str, list[Any]] = {
            **{name: [_bytes(getattr(row, name)) for row in self.rows] for name in _TEXTS},
            **{name: [getattr(row, name) for row in self.rows] for name in _PLAIN},
            **{name: [getattr(row.stats, name, None) for row in self.rows] for name in _STATS},
        }
        about = {"root": self.root, "split_seed": self.split_seed, "taken_ns": self.taken_ns}
        schema = pa.schema(list(_TYPES.items()), metadata={"fx": json.dumps(about)})
        sink = io.BytesIO()
        arrays = [_array(columns[name], kind) for name, kind in _TYPES.items()]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, name: str, data: bytes) -> "Snapshot":
        """Read what ``to_parquet`` wrote.

        Raises
        ------
        FxError
            If the bytes are no snapshot.
        """
        try:
            with open_parquet(io.BytesIO(data)) as file:
                return _read(name, file, len(data))
        except Exception as error:  # damaged files fail in as many ways as there are bytes
            raise FxError(
                f"snapshot {name} cannot be read ({one_line(error)}); extract the images"
            ) from error


class _About(msgspec.Struct, frozen=True):
    """What a snapshot's table says of itself."""

    root: str
    split_seed: int
    taken_ns: int


def _read(name: str, file: pq.ParquetFile, size: int) -> Snapshot:
    if file.metadata.num_rows > MOST_ROWS_A_BYTE * size:
        raise ValueError(f"{file.metadata.num_rows:,} rows in {size:,} bytes")
    for group in range(file.metadata.num_row_groups):
        for number in range(file.metadata.num_columns):
            if file.metadata.row_group(group).column(number).compression not in _COMPRESSIONS:
                raise ValueError("compressed in another way than snapshots are")
    # not read_table, which would import pandas
    table = file.read()
    kinds = {field.name: _plain(field.type) for field in table.schema}
    if kinds != _TYPES or len(table.schema) > len(_TYPES):
        raise ValueError("columns of other types than a snapshot's")
    about = decoded(table.schema.metadata[b"fx"], _About)
    columns = {n: cells(table.column(n), _text) for n in _TEXTS}
    columns |= {n: cells(table.column(n), lambda value: value) for n in ("key", "split")}
    columns |= {n: table.column(n).to_pylist() for n in ("readable", *_STATS)}
    if not _are_rows(columns):
        raise ValueError("a row that is no image's")
    all_stats = [
        None if values[0] is None else FileStats(*values)
        for values in zip(*(columns[n] for n in _STATS), strict=True)
    ]
    names = (*_TEXTS, *_PLAIN)
    rows = tuple(
        ImageRow(**dict(zip(names, values, strict=True)), stats=stats)
        for *values, stats in zip(*(columns[n] for n in names), all_stats, strict=True)
    )
    return Snapshot(about.root, rows, about.split_seed, about.taken_ns, name)


def _are_rows(columns: dict[str, list[Any]]) -> bool:
    """Whether values that are of their types are those of images' rows."""
    keys, readable = columns["key"], columns["readable"]
    without_stats = [[value is None for value in columns[name]] for name in _STATS]
    return (
        all(columns["path"])
        and not any(None in columns[name] for name in ("note", "key", "readable"))
        and {*columns["split"]} <= {None, *SPLITS}
        # of what cannot be read at all, there is none
        and {*map(len, keys)} <= {0, 32}
        and all(map(len, itertools.compress(keys, readable)))
        and all(one == without_stats[0] for one in without_stats)
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Build a column out of its buffers: from a list, pyarrow would first import pandas."""
    parts: list[Any]
    valid = _bits([value is not None for value in values])
    if pa.types.is_boolean(kind):
        parts = [_bits(values)]
    elif pa.types.is_integer(kind):
        parts = [np.array([value or 0 for value in values], dtype=kind.to_pandas_dtype())]
    else:
        given = [value.encode() if isinstance(value, str) else value or b"" for value in values]
        parts = [np.cumsum([0, *map(len, given)], dtype=np.int32), b"".join(given)]
    buffers = [pa.py_buffer(part) for part in (valid, *parts)]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _bits(values: list[bool]) -> NDArray[np.uint8]:
    return np.packbits(np.array(values, dtype=bool), bitorder="little")


def _bytes(text: str | None) -> bytes | None:
    # folders may have any bytes for a name
    return None if text is None else text.encode(errors="surrogateescape")


def _text(data: bytes | None) -> str | None:
    return data if data is None else data.decode(errors="surrogateescape")
