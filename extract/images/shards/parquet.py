"""Untrusted Parquet: sizes are checked in the metadata first; repeated texts are kept once.

A few bytes may stand for a million rows of a megabyte each, so text columns are read as
dictionaries: the different texts, and which row has which.
"""

import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
from pyarrow import parquet

# of a table
MOST_ROWS = 5_000_000
# bytes of the columns that are read, before they are compressed
LARGEST_COLUMNS = 2**29
# bytes of what a file says of itself
LARGEST_FOOTER = 2**26

Cell = TypeVar("Cell")


def open_parquet(source: Path | BinaryIO) -> parquet.ParquetFile:
    """Open a Parquet file, so that texts are read once.

    Raises
    ------
    pyarrow.ArrowException, OSError
        If it is none.
    ValueError
        If it has more rows than any table, or says too much of itself.
    """
    check_footer(source)
    with parquet.ParquetFile(source) as file:
        columns = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        metadata = file.metadata
    if metadata.num_rows > MOST_ROWS:
        raise ValueError(f"{metadata.num_rows:,} rows, where {MOST_ROWS:,} are most")
    if not isinstance(source, Path):
        source.seek(0)
    return parquet.ParquetFile(source, read_dictionary=texts, metadata=metadata)


def check_footer(source: Path | BinaryIO) -> None:
    """Raise ValueError where a Parquet file says too much of itself."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(0)
    if length > LARGEST_FOOTER:
        raise ValueError(f"a footer of {length:,} bytes")


def check_size(file: parquet.ParquetFile, names: Collection[str]) -> None:
    """Raise ValueError where columns are larger than a table's may be, by their own account."""
    size = 0
    for group in range(file.metadata.num_row_groups):
        for number in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(number)
            if column.path_in_schema in names:
                size += column.total_uncompressed_size
    if size > LARGEST_COLUMNS:
        raise ValueError(f"{size:,} bytes in its columns, where {LARGEST_COLUMNS:,} are most")


def cells(column: pa.ChunkedArray, convert: Callable[[Any], Cell]) -> list[Cell]:
    """Give a column's values as they are converted, each different one once.

    Nothing here takes ``pyarrow.compute``, whose import takes 50 MB.
    """
    found: list[Cell] = []
    once = cache(convert)
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            values = [convert(value) for value in chunk.dictionary.to_pylist()]
            values.append(convert(None))
            found += [values[-1 if at is None else at] for at in chunk.indices.to_pylist()]
        else:
            found += map(once, chunk.to_pylist())
    return found
