"""Images listed in a CSV or Parquet table: a row that makes no sense is an error.

A file that cannot be opened is no error: it is left out, with the reason.
"""

import math
import os
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
from pyarrow import csv

from extract.errors import FxError, one_line
from extract.images.entries import SPLIT_NAMES, ImageEntry, ImageSource, shown
from extract.images.parquet import MOST_ROWS, cells, check_size, open_parquet

_COLUMNS = ("path", "label", "split", "group")
# names of columns in an error
SHOWN = 20
# bytes, of which only those of known columns are in memory
LARGEST_CSV = 2**29


def from_table(table: Path) -> ImageSource:
    """List the images of a table; what it may hold is said at ``find_images``."""
    root = table.parent.absolute()
    columns = _read_table(table, root)
    if not columns["path"]:
        raise FxError(f"{shown(table)} lists no images; fill it in: a row an image")
    entries: set[ImageEntry] = set()
    skipped: set[tuple[str, str]] = set()
    lost: dict[str, tuple[str, str]] = {}
    unlabelled = 0
    why_no_file = cache(_why_no_file)
    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    for number, (path, label, side, group) in enumerate(rows, start=1):
        if path is None:
            raise FxError(f"{shown(table)}: row {number} has no path; fill it in or drop the row")
        known = SPLIT_NAMES.get(side.lower()) if side is not None else None
        if side is not None and known is None:
            raise FxError(
                f"{shown(table)}: unknown split {side[:80]!r} in row {number}; "
                "it must be train, val or test, or empty"
            )
        reason = why_no_file(root, path)
        if reason:
            skipped.add((path, reason))
            if label is not None:
                lost[label] = min((path, reason), lost.get(label, (path, reason)))
            continue
        unlabelled += label is None
        entries.add(ImageEntry(path, label, known, group))
    if not entries:
        path, reason = min(skipped)
        raise FxError(
            f"none of the {len(columns['path'])} files listed in {shown(table)} can be opened; "
            f"{path[:200]!r}: {reason}; paths must be absolute or relative to the table's folder"
        )
    kept = {entry.label for entry in entries}
    return ImageSource(
        root,
        "table",
        tuple(sorted(entries, key=_order)),
        tuple(sorted(skipped)),
        passed_over=(("rows without a label", unlabelled),)
        if unlabelled and kept != {None}
        else (),
        lost=tuple((label, *one) for label, one in sorted(lost.items()) if label not in kept),
    )


def _order(entry: ImageEntry) -> tuple[str, str, str, str]:
    return entry.path, entry.label or "", entry.split or "", entry.group or ""


def _read_table(table: Path, root: Path) -> dict[str, list[str | None]]:
    """Return the cells of the known columns, a list of None for each that is not there."""
    readings: dict[str, Callable[[Any], str | None]] = dict.fromkeys(_COLUMNS, _text)
    readings["path"] = lambda cell: _path_in_table(cell, root)
    found: dict[str, list[str | None]] = {name: [] for name in _COLUMNS}
    count = 0
    try:
        read = _parquet if table.suffix.lower() == ".parquet" else _csv
        for known, part in read(table):
            count += part.num_rows
            if count > MOST_ROWS:
                raise ValueError(f"more than {MOST_ROWS:,} rows")
            for name, column in known.items():
                found[name] += cells(_plain(part.column(column)), readings[name])
    except FxError:
        raise
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise FxError(
            f"{shown(table)} cannot be read as a {table.suffix[1:]} table: {one_line(error)}"
        ) from error
    return {name: column or [None] * count for name, column in found.items()}


# names of known columns, what the table calls them, and some of its rows
_Parts = Iterator[tuple[dict[str, str], pa.Table]]


def _parquet(table: Path) -> _Parts:
    with open_parquet(table) as file:
        known = _known_columns(table, file.schema_arrow.names)
        check_size(file, known.values())
        for name, column in known.items():
            _check_type(table, name, file.schema_arrow.field(column).type)
        yield known, file.read(columns=list(known.values()))


def _csv(table: Path) -> _Parts:
    """Read a CSV some rows at a time: what else is in it takes no memory."""
    size = table.stat().st_size
    if size > LARGEST_CSV:
        raise ValueError(f"{size:,} bytes, where {LARGEST_CSV:,} are most; keep known columns")
    lines = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(table, parse_options=lines) as file:
        known = _known_columns(table, file.schema.names)
    # nothing is guessed from a cell's looks: 007 is a label; file names are bytes
    types = dict.fromkeys(known.values(), pa.string())
    types[known["path"]] = pa.binary()
    wanted = csv.ConvertOptions(column_types=types, include_columns=list(types))
    with csv.open_csv(table, parse_options=lines, convert_options=wanted) as file:
        for batch in file:
            yield known, pa.Table.from_batches([batch])


def _check_type(table: Path, name: str, kind: pa.DataType) -> None:
    """Refuse a column of what is neither text nor a number."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    others = [pa.types.is_nested, pa.types.is_duration, pa.types.is_interval]
    if name == "path":
        others += [pa.types.is_boolean, pa.types.is_floating]
        others += [pa.types.is_decimal, pa.types.is_temporal]
    if isinstance(inner, pa.BaseExtensionType) or any(is_of(inner) for is_of in others):
        raise FxError(f"{shown(table)}: column {name!r} holds {str(kind)[:80]}; write it as text")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write times and dates out; Python's own have no nanoseconds."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit))
    return column.cast(pa.string()) if pa.types.is_temporal(kind) else column


def _known_columns(table: Path, names: list[str]) -> dict[str, str]:
    """Return what the columns that mean something are called in the table."""
    tidy = [name.strip().lower() for name in names]
    for name in _COLUMNS:
        if tidy.count(name) > 1:
            raise FxError(f"{shown(table)} has {tidy.count(name)} columns {name!r}; keep one")
    if "path" not in tidy:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        found = ", ".join(repr(name[:80]) for name in names[:SHOWN]) + more
        raise FxError(f"{shown(table)} has no column 'path'; it has {found}; rename one of them")
    return {name: names[tidy.index(name)] for name in _COLUMNS if name in tidy}


def _path_in_table(cell: Any, root: Path) -> str | None:
    """Return a cell as the path of an entry, without ``.`` and doubled slashes."""
    # blanks may belong to a file's name
    text = os.fsdecode(cell) if isinstance(cell, bytes | str) else _text(cell)
    if not text:
        return None
    path = PurePath(text)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _text(cell: Any) -> str | None:
    """Return a cell without the blanks around it, None if nothing is left."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return (os.fsdecode(cell) if isinstance(cell, bytes) else str(cell)).strip() or None


def _why_no_file(root: Path, path: str) -> str:
    try:
        mode = (root / path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:  # a NUL in it
        return "no path of a file"
    return "" if stat.S_ISREG(mode) else "not a regular file"
