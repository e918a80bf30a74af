"""Images listed in a CSV or Parquet table: a row that makes no sense is an error.

A file that cannot be opened is no error: it is left out, with the reason. Tables come from Excel,
Windows, macOS and pandas; what each writes is read alike, or refused.
"""

import codecs
import csv
import io
import json
import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from extract.errors import FxError, listed, one_line
from extract.files import ObjectPath, Place, place
from extract.images.entries import (
    FileStats,
    ImageEntry,
    ImageSource,
    Listing,
    Reading,
    composed,
    shown,
    split_named,
)
from extract.images.shards import (
    MOST_ROWS,
    SMALL_BLOCK,
    cells,
    check_size,
    forget_files,
    image_column,
    image_place,
    open_parquet,
    open_shard,
)

_COLUMNS = ("path", "label", "split", "group")
# names of columns in an error
SHOWN = 20
# of other objects that are listed for each one that a table names
MOST_BESIDE = 20
# bytes, of which only those of known columns are in memory
LARGEST_CSV = 2**29
# characters of a CSV
LONGEST_LINE, LONGEST_CELL = 2**24, 2**20
_SEPARATORS = ",;\t|"
_UNICODE_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, which it begins with
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_AS_UTF_8 = "save the table as UTF-8 (in Excel: CSV UTF-8)"

# what the known columns are called in a table, and their cells
_Cells = tuple[dict[str, str], dict[str, list[str | None]]]
_Readings = dict[str, Callable[[Any], str | None]]
# a file's path, what is wrong with it, and what is known of it
_FileAt = Callable[[str], tuple[str, str, FileStats | None]]


def from_table(table: Place, reading: Reading) -> ImageSource:
    """List the images of a table; what it may hold is said at ``find_images``."""
    if reading.layout is not None:
        raise FxError(f"`layout` is of folders; got {shown(table)}; leave it out")
    root = (reading.root or table.parent).absolute()
    names, columns = _read_table(table, root, reading)
    entries: set[ImageEntry] = set()
    skipped: set[tuple[str, str]] = set()
    lost: dict[str, tuple[str, str]] = {}
    unlabelled = listed = 0
    split_of = cache(split_named)
    paths = {path for path in columns["path"] if path is not None}
    places = {
        path: where for path in paths if not isinstance(where := image_place(root, path), Path)
    }
    objects = _objects(places)
    on_disk = cache(_files_below(root)) if isinstance(root, Path) else objects

    def file_at(path: str) -> tuple[str, str, FileStats | None]:
        return objects(path) if path in places else on_disk(path)

    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    for number, (path, label, side, group) in enumerate(rows, start=1):
        if path is None:
            if label is side is group is None:
                continue
            raise FxError(f"{shown(table)}: row {number} has no path; fill it in or drop the row")
        listed += 1
        known = split_of(side) if side is not None else None
        if side is not None and known is None:
            raise FxError(_unknown_split(table, side, number))
        path, reason, stats = file_at(path)
        if reason:
            skipped.add((path, reason))
            if label is not None:
                lost[label] = min((path, reason), lost.get(label, (path, reason)))
            continue
        unlabelled += label is None
        entries.add(ImageEntry(path, label, known, group, stats))
    if not listed:
        raise FxError(f"{shown(table)} lists no images; fill it in: a row an image")
    if not entries:
        path, reason = min(skipped)
        raise FxError(
            f"none of the {listed} files listed in {shown(table)} can be opened; "
            f"{path[:200]!r}: {reason}; paths must be absolute or relative to {shown(root)}, "
            "in the place of which `root` can name another folder"
        )
    kept = {entry.label for entry in entries}
    return ImageSource(
        root,
        "table",
        tuple(sorted(entries, key=lambda e: (e.path, e.label or "", e.split or "", e.group or ""))),
        tuple(sorted(skipped)),
        passed_over=(("rows without a label", unlabelled),)
        if unlabelled and kept != {None}
        else (),
        columns=tuple(names.items()),
        lost=tuple((label, *one) for label, one in sorted(lost.items()) if label not in kept),
    )


def list_rows(shard: Place, reading: Reading) -> Listing:
    """List the images whose bytes stand in a Parquet file: of other columns, those that are known.

    Numbers of labels have the names that Hugging Face's datasets writes into the schema.

    Raises
    ------
    FxError
        If no column holds bytes, a split is unknown, or the file is damaged.
    """
    forget_files()
    try:
        with open_shard(shard, SMALL_BLOCK) as (source, stats), open_parquet(source) as file:
            schema = file.schema_arrow
            column = image_column(schema, reading.path_column)
            if column is None:
                raise FxError(
                    f"{shown(shard)} has no column with the bytes of images; it has "
                    f"{listed(map(repr, schema.names), SHOWN)}; name one of them by `path_column`, "
                    "or give the table itself where it holds paths"
                )
            names = _known_columns(shard, schema.names, replace(reading, path_column=column))
            others = {name: called for name, called in names.items() if name != "path"}
            check_size(file, others.values())
            for name, called in others.items():
                _check_type(shard, name, schema.field(called).type)
            part = file.read(columns=list(dict.fromkeys(others.values())))
            count = file.metadata.num_rows
            found = {
                name: cells(_plain(part.column(called)), _named(schema, called))
                for name, called in others.items()
            }
    except (FxError, OSError):
        raise
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise FxError(f"{shown(shard)} cannot be read as Parquet: {one_line(error)}") from error
    labels, sides, groups = (found.get(name) or [None] * count for name in _COLUMNS[1:])
    listing = Listing(columns=names)
    default = image_column(schema) == column
    for number, (label, side, group) in enumerate(zip(labels, sides, groups, strict=True)):
        split = split_named(side) if side is not None else None
        if side is not None and split is None:
            raise FxError(_unknown_split(shard, side, number))
        path = str(number) if default else f"{column}/{number}"
        part_stats = FileStats.of_part(stats, number, 0)
        listing.images.append(ImageEntry(path, label, split, group, part_stats))
    return listing


def _named(schema: pa.Schema, column: str) -> Callable[[Any], str | None]:
    """Give what reads a cell, a class's number as its name."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
        known = {number: _text(name) for number, name in enumerate(names)}
    except (ValueError, LookupError, TypeError, RecursionError):
        return _text
    # -1 stands for no label
    return lambda cell: known.get(cell) if isinstance(cell, int) else _text(cell)


def _unknown_split(table: Place, side: str, number: int) -> str:
    return (
        f"{shown(table)}: unknown split {side[:80]!r} in row {number}; "
        "it must be train, val or test, or empty"
    )


def _objects(places: dict[str, ObjectPath]) -> _FileAt:
    """Look for a table's objects in few requests, where the storage can be listed at all."""
    wanted = defaultdict(list)
    for where in places.values():
        if not where.base.startswith("http"):
            wanted[where.base].append(where.parent.key)
    known: dict[ObjectPath, FileStats] = {}
    listed_whole = set()
    for base, folders in wanted.items():
        # a table may name a few of the many objects of a folder
        most = 1000 + MOST_BESIDE * len(folders)
        try:
            objects = list(islice(ObjectPath(base, os.path.commonpath(folders)).walk(), most))
        except PermissionError:
            # to list is another right than to read
            continue
        known |= {where: FileStats.of(stats) for where, stats in objects}
        if len(objects) < most:
            listed_whole.add(base)

    def file_at(path: str) -> tuple[str, str, FileStats | None]:
        where = places[path]
        if where in known or where.base not in listed_whole:
            return path, "", known.get(where)
        return path, "no such object", None

    return file_at


def _read_table(table: Place, root: Place, reading: Reading) -> _Cells:
    """Return the cells of the known columns, a list of None for each that is not there."""
    readings: _Readings = dict.fromkeys(_COLUMNS, _text)
    readings["path"] = lambda cell: _path_in_table(cell, root)
    read = _parquet if table.suffix.lower() == ".parquet" else _csv
    try:
        names, found = read(table, root, reading, readings)
    except FxError:
        raise
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise FxError(
            f"{shown(table)} cannot be read as a {table.suffix[1:]} table: {one_line(error)}"
        ) from error
    count = len(found["path"])
    return names, {name: found.get(name) or [None] * count for name in _COLUMNS}


def _parquet(table: Place, root: Place, reading: Reading, readings: _Readings) -> _Cells:
    with open_shard(table) as (source, _), open_parquet(source) as file:
        known = _known_columns(table, file.schema_arrow.names, reading)
        check_size(file, known.values())
        for name, column in known.items():
            _check_type(table, name, file.schema_arrow.field(column).type)
        part = file.read(columns=list(dict.fromkeys(known.values())))
    return known, {
        name: cells(_plain(part.column(column)), readings[name]) for name, column in known.items()
    }


def _csv(table: Place, root: Place, reading: Reading, readings: _Readings) -> _Cells:
    """Read a CSV line by line: what else is in it takes no memory."""
    largest_before = csv.field_size_limit(LONGEST_CELL)
    try:
        with open_shard(table) as (file, status):
            if (size := status.st_size) > LARGEST_CSV:
                raise ValueError(
                    f"{size:,} bytes, where {LARGEST_CSV:,} are most; keep known columns"
                )
            encoding = _encoding(file.read(2**16))
            file.seek(0)
            # bytes that are no UTF-8 may be a file's name
            errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
            with io.TextIOWrapper(file, encoding, errors, newline="") as text:
                return _cells_of_csv(table, _lines(text), root, reading, readings)
    finally:
        csv.field_size_limit(largest_before)


def _encoding(start: bytes) -> str:
    for mark, name in _UNICODE_MARKS.items():
        if start.startswith(mark):
            return name
    # text without a mark: every other byte of Latin letters in UTF-16 is zero
    if start.count(0) > len(start) // 4:
        return "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
    return "utf-8"


def _lines(file: io.TextIOBase) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
        yield line


def _cells_of_csv(
    table: Place, lines: Iterator[str], root: Place, reading: Reading, readings: _Readings
) -> _Cells:
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise ValueError("it is empty")
    # Excel's own way to name the separator
    if said := re.fullmatch(r'"?sep=(.)"?\s*', first):
        first = next((line for line in lines if line.strip()), "")
    separator = said[1] if said else _separator(first, reading.path_column or "path")
    # blanks may belong to a file's name, but not where a quote follows
    blanks = f'{separator} "' in first
    rows = csv.reader(
        chain([first], lines), delimiter=separator, skipinitialspace=blanks, strict=True
    )
    header = next(rows, [])
    known = _known_columns(table, header, reading)
    places = {name: header.index(column) for name, column in known.items()}
    converted = {name: cache(readings[name]) for name in known}
    found: dict[str, list[str | None]] = {name: [] for name in known}
    number = 0
    try:
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            number += 1
            if number > MOST_ROWS:
                raise ValueError(f"more than {MOST_ROWS:,} rows")
            if len(row) < len(header) or any(row[len(header) :]):
                raise ValueError(
                    f"row {number} has {len(row)} cells, the header {len(header)}; "
                    f"between them stands {separator!r}"
                )
            if any("\n" in cell or "\r" in cell for cell in row):
                _check_no_rows_inside(row, separator, places["path"], root, number)
            for name, column in places.items():
                cell = row[column]
                if name != "path" and not cell.isascii() and _is_no_text(cell):
                    raise ValueError(f"{name} in row {number} is not UTF-8; {_AS_UTF_8}")
                found[name].append(converted[name](cell))
    except csv.Error as error:
        raise ValueError(f"row {number + 1}: {error}; a quote may be too many there") from error
    return known, found | {n: _as_integers(found[n]) for n in ("label", "group") if n in found}


def _as_integers(column: list[str | None]) -> list[str | None]:
    """Read as integers what pandas has written as floats, as it does where one is missing."""
    if not all(re.fullmatch(r"-?\d+(\.0)?", text) for text in {*column} if text is not None):
        return column
    return [text and text.removesuffix(".0") for text in column]


def _separator(header: str, path_column: str) -> str:
    """Find what stands between the cells of a header: what makes a column of paths."""
    for mark in _SEPARATORS:
        names = next(csv.reader([header], delimiter=mark), [])
        if _tidy(path_column) in map(_tidy, names):
            return mark
    return max(_SEPARATORS, key=header.count)


def _check_no_rows_inside(
    row: list[str], separator: str, column: int, root: Place, number: int
) -> None:
    """Refuse a cell that an opening quote too many has made of several rows."""
    inside = [line.split(separator) for cell in row for line in cell.splitlines()[1:]]
    # on a storage, every one would take a request
    if isinstance(root, Path) and any(
        len(one) > column and not _why_no_file(root, one[column]) for one in inside
    ):
        raise ValueError(f"row {number} holds other rows in a cell; a quote is not closed there")


def _is_no_text(cell: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in cell)


def _check_type(table: Place, name: str, kind: pa.DataType) -> None:
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


def _known_columns(table: Place, names: list[str], reading: Reading) -> dict[str, str]:
    """Return what the columns that mean something are called in the table."""
    tidy = [_tidy(name) for name in names]
    has = f"it has {listed((repr(name[:80]) for name in names), SHOWN)}"
    known = {}
    for name in _COLUMNS:
        asked = getattr(reading, f"{name}_column")
        count = tidy.count(_tidy(asked or name))
        if count > 1:
            raise FxError(f"{shown(table)} has {count} columns {asked or name!r}; keep one")
        if count:
            known[name] = names[tidy.index(_tidy(asked or name))]
        elif asked or name == "path":
            raise FxError(
                f"{shown(table)} has no column {asked or name!r}; {has}; "
                f"name one of them by `{name}_column`"
            )
    return known


def _tidy(name: str) -> str:
    return composed(name).strip().lower()


def _path_in_table(cell: Any, root: Place) -> str | None:
    """Return a cell as the path of an entry, without ``.`` and doubled slashes; or as a URL."""
    # blanks may belong to a file's name
    text = os.fsdecode(cell) if isinstance(cell, bytes | str) else _text(cell)
    if not text or not text.strip():
        return None
    where = place(text) if "://" in text else None
    if isinstance(where, ObjectPath):
        inside = isinstance(root, ObjectPath) and f"{where}".startswith(f"{root}".rstrip("/") + "/")
        return where.relative_to(root).as_posix() if inside else str(where)  # type: ignore[arg-type]
    path = PurePath(text)
    if isinstance(root, ObjectPath):
        return path.as_posix()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _text(cell: Any) -> str | None:
    """Return a cell without the blanks around it, None if nothing is left."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # pandas makes floats of integers where one is missing
    text = os.fsdecode(cell) if isinstance(cell, bytes) else str(cell)
    return composed(text).strip() or None


def _files_below(root: Path) -> _FileAt:
    """Give a function from a path in a table to the file's own, and why there is no such file."""

    @cache
    def by_composed_name(folder: Path) -> dict[str, str]:
        try:
            names = sorted(file.name for file in folder.iterdir())
        except OSError:
            return {}
        return {composed(name): name for name in names}

    def as_on_disk(path: str) -> str:
        """Replace each name in a path by that of a file which differs in its Unicode form only."""
        found = PurePath()
        for part in PurePath(path).parts:
            exists = os.path.lexists(root / found / part)
            names = {} if exists else by_composed_name(root / found)
            found /= names.get(composed(part), part)
        return found.as_posix()

    def file_at(path: str) -> tuple[str, str, FileStats | None]:
        reason = _why_no_file(root, path)
        if not reason:
            return path, "", None
        for other in _spellings(path):
            one = other if other.isascii() else as_on_disk(other)
            if not _why_no_file(root, one):
                return one, "", None
        return path, reason, None

    return file_at


def _spellings(path: str) -> list[str]:
    """Give ways in which other systems and programs may have meant a path to be written."""
    found = {path: None}
    for change in (str.strip, lambda text: text.replace("\\", "/"), _from_windows):
        found |= {PurePath(change(one)).as_posix(): None for one in found}
    return list(found)


def _from_windows(path: str) -> str:
    """Read bytes that are no UTF-8 as Windows wrote them in western countries."""
    return os.fsencode(path).decode("cp1252", "replace") if _is_no_text(path) else path


def _why_no_file(root: Path, path: str) -> str:
    try:
        mode = (root / path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        is_address = re.match(r"[a-z][a-z0-9]+:/", path)
        return "an address; download what it names" if is_address else "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:  # a NUL in it
        return "no path of a file"
    return "" if stat.S_ISREG(mode) else "not a regular file"
