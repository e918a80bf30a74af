"""Images whose bytes stand in a column of a Parquet file, as Hugging Face's datasets writes them.

A file is read row group by row group, of which two are in memory: the one that is being read, and
the one before, which others may still ask for.
"""

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from extract.files import ObjectPath, Place
from extract.images.entries import FileStats
from extract.images.shards.parquet import check_footer
from extract.images.shards.ranges import SMALL_BLOCK, open_shard

# of the columns that hold bytes, those that are taken before others
_NAMES = ("image", "img", "image_bytes", "bytes", "jpg", "png")
# bytes of a row group's column, before it is compressed
_LARGEST_GROUP = 2**32
_MOST_FILES, _MOST_GROUPS = 8, 2

_reading = Lock()


def image_column(schema: pa.Schema, asked: str | None = None) -> str | None:
    """Say which column holds the bytes of images; None if none does, or not the one asked for."""
    structs = [one.name for one in schema if _is_struct(one.type)]
    plain = [one.name for one in schema if _is_bytes(one.type) and one.name.lower() != "path"]
    if asked is not None:
        return next((n for n in structs + plain if n.lower() == asked.strip().lower()), None)
    if not structs and "path" in (name.strip().lower() for name in schema.names):
        return None
    for names in (structs, plain):
        known = [name for name in _NAMES if name in names]
        if known or (names and (names is structs or len(names) == 1)):
            return (known or names)[0]
    return None


def read_row(where: Place, name: str, largest: int) -> tuple[bytes, FileStats]:
    """Read one image of a Parquet file.

    Parameters
    ----------
    where : the file
    name : the row's number, after ``COLUMN/`` where that is not the one that ``image_column`` finds
    largest : bytes that it may have

    Raises
    ------
    OSError
        If there is none, it is larger than `largest` bytes, or it cannot be read.
    """
    column, _, number = name.rpartition("/")
    with _reading:
        now = None if isinstance(where, ObjectPath) else FileStats.of(where.stat())
        try:
            file = _opened(where, now)
            column = column or image_column(file.schema) or ""
            if not number.isdecimal() or not column or int(number) >= file.starts[-1]:
                raise FileNotFoundError(errno.ENOENT, "no such row with an image", name)
            group = int(np.searchsorted(file.starts, int(number), side="right"))
            values = _row_group(where, now, column, group)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise OSError(errno.EIO, f"damaged Parquet: {error}"[:200], str(where)) from error
    value = values[int(number) - (file.starts[group - 1] if group else 0)]
    data = value.as_py() if value.is_valid else None
    if data is None:
        raise OSError(errno.ENODATA, "no bytes in this row", name)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"too large: {len(data):,} bytes", name)
    return data, FileStats.of_part(file.stats, int(number), 0)


def forget_files() -> None:
    """Close what is open: objects are not asked, image by image, whether they are the same."""
    with _reading:
        _opened.cache_clear()
        _row_group.cache_clear()


class _File:
    """An open Parquet file: its stats and schema, and the rows up to the end of each group."""

    def __init__(self, where: Place) -> None:
        with ExitStack() as stack:
            source, self.stats = stack.enter_context(open_shard(where, SMALL_BLOCK))
            check_footer(source)
            # no ahead-of-time buffers: row groups are large
            self.file = stack.enter_context(parquet.ParquetFile(source))
            self.schema = self.file.schema_arrow
            self.metadata = self.file.metadata
            groups = range(self.metadata.num_row_groups)
            self.starts: Sequence[int] = list(
                accumulate(self.metadata.row_group(group).num_rows for group in groups)
            ) or [0]
            self.close = stack.pop_all().close

    def __del__(self) -> None:
        if hasattr(self, "close"):
            self.close()


@lru_cache(_MOST_FILES)
def _opened(where: Place, now: FileStats | None) -> _File:
    return _File(where)


@lru_cache(_MOST_GROUPS)
def _row_group(where: Place, now: FileStats | None, column: str, group: int) -> Any:
    file = _opened(where, now)
    about = file.metadata.row_group(group)
    parts = [about.column(number) for number in range(about.num_columns)]
    mine = [one for one in parts if one.path_in_schema.split(".")[0] == column]
    if (size := sum(one.total_uncompressed_size for one in mine)) > _LARGEST_GROUP:
        raise ValueError(f"a row group of {size:,} bytes")
    values = file.file.read_row_group(group, columns=[column]).column(column)
    if pa.types.is_struct(values.type):
        place = values.type.get_field_index("bytes")
        values = pa.chunked_array([chunk.field(place) for chunk in values.chunks])
    return values


def _is_bytes(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(inner) or pa.types.is_large_binary(inner))


def _is_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    place = kind.get_field_index("bytes")
    return bool(place >= 0 and _is_bytes(kind.field(place).type))
