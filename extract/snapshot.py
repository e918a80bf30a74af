"""Snapshots: which image had which bytes, label, group and split at one time.

A split depends on an image's key (or its group) and the split seed alone, so adding images never
moves another one. Copies count once; bytes under two labels are in no split.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from extract.errors import FxError
from extract.image_source import Split

TEST_SHARE = 0.2
# columns of a snapshot's table, by how they are kept
_TEXTS = ("path", "label", "group", "note")
_PLAIN = ("key", "split", "readable")
_STAMP = ("inode", "size", "mtime_ns", "ctime_ns")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file is unchanged without reading it (git's rule)."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a snapshot.

    Attributes
    ----------
    path : relative to the snapshot's root
    key : SHA-256 of the file's bytes; empty where it could not be read
    label, group : as given; None where there is none
    split : ``train``, ``val``, ``test``, or None for a row in no split
    note : why it is in no split: the reason it cannot be read, ``copy of …``, or
        ``conflicting labels``
    readable : whether it has features
    stamp : of the file, when it was read
    """

    path: str
    key: bytes
    label: str | None
    group: str | None
    split: Split | None
    note: str
    readable: bool
    stamp: FileStamp | None


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
    name: str = field(default="")

    def __post_init__(self) -> None:
        if not self.name:
            folder = Path(self.root).name or "images"
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
        result: dict[str, dict[str, int]] = {}
        for name in SPLITS:
            rows = self.split(name)
            if rows:
                result[name] = {
                    label: sum(row.label == label for row in rows) for label in self.classes
                }
        return result

    @property
    def test_was_given(self) -> bool:
        """Whether the test split is the user's own, not the one that is set aside by hash."""
        counted = [row for row in self.rows if _counts(row)]
        test = {unit_of(row) for row in counted if row.split == "test"}
        return test != _test_units(counted, self.split_seed)

    def failed(self) -> list[dict[str, str]]:
        """Images that could not be read, with the reason."""
        return [{"path": r.path, "reason": r.note} for r in self.rows if not r.readable]

    def to_parquet(self) -> bytes:
        """Write as a Parquet file."""
        columns: dict[str, list[Any]] = {
            **{name: [_bytes(getattr(row, name)) for row in self.rows] for name in _TEXTS},
            **{name: [getattr(row, name) for row in self.rows] for name in _PLAIN},
            **{name: [getattr(row.stamp, name, None) for row in self.rows] for name in _STAMP},
        }
        number = pa.int64()
        types = {
            **dict.fromkeys((*_TEXTS, "key"), pa.binary()),
            **{"split": pa.string(), "readable": pa.bool_()},
            **dict.fromkeys(("size", "mtime_ns", "ctime_ns"), number),
            "inode": pa.uint64(),
        }
        about = {"root": self.root, "split_seed": self.split_seed, "taken_ns": self.taken_ns}
        schema = pa.schema(list(types.items()), metadata={"fx": json.dumps(about)})
        sink = io.BytesIO()
        arrays = [_array(columns[name], kind) for name, kind in types.items()]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, name: str, data: bytes) -> Snapshot:
        """Read what ``to_parquet`` wrote.

        Raises
        ------
        FxError
            If the bytes are no snapshot.
        """
        try:
            # not read_table, which would import pandas
            table = pq.ParquetFile(io.BytesIO(data)).read()
            about = json.loads(table.schema.metadata[b"fx"])
            columns = {n: table.column(n).to_pylist() for n in (*_TEXTS, *_PLAIN, *_STAMP)}
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise FxError(f"snapshot {name} cannot be read ({error}); run fx extract") from error
        columns |= {n: [_text(value) for value in columns[n]] for n in _TEXTS}
        stamps = [
            None if values[0] is None else FileStamp(*values)
            for values in zip(*(columns[n] for n in _STAMP), strict=True)
        ]
        names = (*_TEXTS, *_PLAIN)
        rows = tuple(
            ImageRow(**dict(zip(names, values, strict=True)), stamp=stamp)
            for *values, stamp in zip(*(columns[n] for n in names), stamps, strict=True)
        )
        return cls(about["root"], rows, about["split_seed"], about["taken_ns"], name)


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


def position(seed: int, unit: str) -> float:
    """Map an image or group to a fixed place in [0, 1), uniform over units."""
    digest = hashlib.sha256(f"{seed}:{unit}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def unit_of(row: ImageRow) -> str:
    """What stays together in a split: the group where one is given, else the image's bytes."""
    return f"group:{row.group}" if row.group is not None else f"key:{row.key.hex()}"


def assign_splits(rows: Iterable[ImageRow], split_seed: int) -> tuple[ImageRow, ...]:
    """Decide every row's split.

    Rows come with the split that was given for them, or None. Where no test split is given, a
    fifth of the units of the rows without one, or with ``train``, is set aside by hash. Two
    exceptions, for classes with more than one unit: one that would have no test row gives up the
    unit with its lowest hash, and one that would have no other row keeps that with its highest.
    A class of one unit is for training.

    Parameters
    ----------
    rows : with key, label, group, given split
    split_seed : moves the whole split

    Returns
    -------
    the rows, sorted by path, with ``split`` and ``note`` decided
    """
    ordered = _settle_copies(sorted(rows, key=lambda row: row.path))
    counted = [row for row in ordered if _counts(row)]
    test_given = any(row.split == "test" for row in counted)
    aside = set() if test_given else _test_units(counted, split_seed)
    result = []
    for row in ordered:
        if not _counts(row):
            result.append(replace(row, split=None))
        elif row.split == "val" or test_given:
            result.append(replace(row, split=row.split or "train"))
        else:
            result.append(replace(row, split="test" if unit_of(row) in aside else "train"))
    return tuple(result)


def _counts(row: ImageRow) -> bool:
    return row.readable and not row.note and row.label is not None


def _test_units(rows: list[ImageRow], seed: int) -> set[str]:
    candidates = [row for row in rows if row.split != "val"]
    aside = {unit_of(row) for row in candidates if position(seed, unit_of(row)) < TEST_SHARE}
    units: dict[str, set[str]] = defaultdict(set)
    for row in candidates:
        units[str(row.label)].add(unit_of(row))
    for label in sorted(units):
        ordered = sorted(units[label], key=lambda unit: position(seed, unit))
        if len(ordered) > 1 and not units[label] & aside:
            aside.add(ordered[0])
        elif units[label] <= aside:
            aside.discard(ordered[-1])
    return aside


def _settle_copies(rows: list[ImageRow]) -> list[ImageRow]:
    """Mark rows with the bytes of another: in conflict, or copies of the one that counts.

    By their place and not their path: a table may list one path twice.
    """
    notes: dict[int, str] = {}
    for places in _same_bytes(rows):
        if len({rows[i].label for i in places if rows[i].label is not None}) > 1:
            notes.update((i, "conflicting labels") for i in places)
        else:
            first = rows[places[0]].path
            notes.update((i, f"copy of {first}") for i in places[1:])
    return [replace(row, note=notes[i]) if i in notes else row for i, row in enumerate(rows)]


def _same_bytes(rows: list[ImageRow]) -> list[list[int]]:
    """Places of rows that share a key; first the one that counts, where the labels agree."""
    by_key: dict[bytes, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.readable:
            by_key[row.key].append(place)
    # a copy that is given in the test split counts there: the test split stays what it was
    rank = {"test": 0, "val": 1, "train": 2, None: 2}
    return [
        sorted(same, key=lambda i: (rows[i].label is None, rank[rows[i].split], rows[i].path))
        for same in by_key.values()
        if len(same) > 1
    ]


def leaked_copies(rows: Iterable[ImageRow]) -> list[dict[str, str]]:
    """List byte-for-byte copies that the given splits put on different sides.

    Parameters
    ----------
    rows : with the splits that the folder or table gave
    """
    ordered = sorted(rows, key=lambda row: row.path)
    leaks = []
    for places in _same_bytes(ordered):
        first = ordered[places[0]]
        for row in (ordered[i] for i in places[1:]):
            if first.split and row.split and first.split != row.split:
                leaks.append(
                    {
                        "path": row.path,
                        "split": row.split,
                        "copy": first.path,
                        "other": first.split,
                    }
                )
    return leaks
