"""Images listed in a CSV or Parquet table: a row that makes no sense is an error.

A file that cannot be opened is none: it is left out, and named.
"""

import math
import os
import stat
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from extract.errors import FxError
from extract.image_source import SPLIT_NAMES, ImageEntry, ImageSource, shown

_COLUMNS = ("path", "label", "split", "group")


def from_table(table: Path) -> ImageSource:
    """List the images of a table; what it may hold is said at ``find_images``."""
    columns = _read_table(table)
    if not columns["path"]:
        raise FxError(f"{shown(table)} lists no images; fill it in: a row an image")
    root = table.parent.absolute()
    entries: set[ImageEntry] = set()
    skipped: set[tuple[str, str]] = set()
    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    for number, (cell, label, split, group) in enumerate(rows, start=1):
        path = _path_in_table(cell, root)
        if path is None:
            raise FxError(f"{shown(table)}: row {number} has no path; fill it in or drop the row")
        side = _text(split)
        if side is not None and side.lower() not in SPLIT_NAMES:
            raise FxError(
                f"{shown(table)}: unknown split {side!r} in row {number}; "
                "it must be train, val or test, or empty"
            )
        reason = _why_no_file(root, path)
        if reason:
            skipped.add((path, reason))
            continue
        known = SPLIT_NAMES[side.lower()] if side else None
        entries.add(ImageEntry(path, _text(label), known, _text(group)))
    if not entries:
        path, reason = min(skipped)
        raise FxError(
            f"none of the {len(columns['path'])} files listed in {shown(table)} can be opened; "
            f"{path!r}: {reason}; paths must be absolute or relative to the table's folder"
        )
    return ImageSource(root, "table", tuple(sorted(entries, key=_order)), tuple(sorted(skipped)))


def _order(entry: ImageEntry) -> tuple[str, str, str, str]:
    return entry.path, entry.label or "", entry.split or "", entry.group or ""


def _read_table(table: Path) -> dict[str, list[Any]]:
    """Return the cells of the known columns, a list of None for each that is not there."""
    try:
        if table.suffix.lower() == ".parquet":
            with parquet.ParquetFile(table) as file:
                known = _known_columns(table, file.schema_arrow.names)
                read = file.read(columns=list(known.values()))
        else:
            lines = csv.ParseOptions(newlines_in_values=True)
            with csv.open_csv(table, parse_options=lines) as file:
                known = _known_columns(table, file.schema.names)
            # nothing is guessed from a cell's looks: 007 is a label; file names are bytes
            types = dict.fromkeys(known.values(), pa.string())
            types[known["path"]] = pa.binary()
            read = csv.read_csv(
                table,
                parse_options=lines,
                convert_options=csv.ConvertOptions(column_types=types, include_columns=list(types)),
            )
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        text = " ".join(str(error).split())
        raise FxError(
            f"{shown(table)} cannot be read as a {table.suffix[1:]} table: {text}"
        ) from error
    nothing = [None] * read.num_rows
    return {
        name: read.column(known[name]).to_pylist() if name in known else nothing
        for name in _COLUMNS
    }


def _known_columns(table: Path, names: list[str]) -> dict[str, str]:
    """Return what the columns that mean something are called in the table."""
    tidy = [name.strip().lower() for name in names]
    for name in _COLUMNS:
        if tidy.count(name) > 1:
            raise FxError(f"{shown(table)} has {tidy.count(name)} columns {name!r}; keep one")
    if "path" not in tidy:
        found = ", ".join(map(repr, names))
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
