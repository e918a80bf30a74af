"""Which images there are, with their labels, splits and groups; no image is opened.

The entries of a source depend on the names of files and folders, or on a table, and on nothing
else: not on the order in which a disk lists them.
"""

import difflib
import math
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import pyarrow as pa
from pyarrow import csv, parquet

from extract.errors import FxError

Split = Literal["train", "val", "test"]
SUFFIXES = frozenset(["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"])

_TABLES = (".csv", ".parquet")
_SPLITS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_LAYOUTS = (
    "give a folder of class folders, train/, val/ and test/ with class folders in each, "
    "a .csv or .parquet table with a path column, a folder of images, or one image"
)
_COLUMNS = ("path", "label", "split", "group")


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image file.

    Parameters
    ----------
    path : str
        Relative to the source's root, with ``/`` between its parts; absolute only where a table
        says so of a file outside of its folder. Bytes of a file name that are no UTF-8 are in it
        as surrogates (``os.fsdecode``), so that the file can be opened.
    label, split, group : str or None
        None where nothing is said.
    """

    path: str
    label: str | None
    split: Split | None
    group: str | None


@dataclass(frozen=True)
class ImageSource:
    """The images of a folder or a table.

    Parameters
    ----------
    root : Path
        Absolute: the folder, or the folder that holds the table or the single image.
    kind : {"classes", "splits", "table", "unlabelled"}
    entries : tuple of ImageEntry
        Sorted by path, then by label, split and group. A path comes twice only where a table
        lists it with different labels, splits or groups.
    skipped : tuple of (path, reason)
        What might have been images and cannot be opened, sorted.
    """

    root: Path
    kind: Literal["classes", "splits", "table", "unlabelled"]
    entries: tuple[ImageEntry, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels, sorted."""
        return tuple(sorted({entry.label for entry in self.entries if entry.label is not None}))

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return any(entry.label is not None for entry in self.entries)


def find_images(images: str | Path) -> ImageSource:
    """List the images of a folder or a table.

    Parameters
    ----------
    images : str or Path
        A folder of class folders: the label is the name of the first folder, however deep the
        image lies in it, and images beside the class folders have none. Or train/, val/ (also
        valid/ or validation/) and test/ with class folders in each, if all folders with images
        are called so, in either case, and train/ is among them. Or a CSV or Parquet table with a
        column path, relative to the table's folder or absolute, and, if there, label, split and
        group; empty cells say nothing. Or a folder of images without labels, or one image.

        Of folders, those files are listed whose names end like an image's (`SUFFIXES`, in either
        case). What begins with a dot, and ``__MACOSX``, is passed over. Links are followed; a
        folder that lies in itself is not entered again.

    Returns
    -------
    ImageSource
        With at least one entry.

    Raises
    ------
    FxError
        If there is nothing at `images`, nothing that is understood, or no image in it.
    """
    path = Path(images)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FxError(_nothing_at(path)) from None
    except OSError as error:
        raise FxError(f"{_shown(path)} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return _from_folder(path)
    if stat.S_ISREG(mode) and path.suffix.lower() in _TABLES:
        return _from_table(path)
    if stat.S_ISREG(mode) and _named_like_image(path.name):
        entry = ImageEntry(path.name, None, None, None)
        return ImageSource(path.parent.absolute(), "unlabelled", (entry,), ())
    raise FxError(f"{_shown(path)} is neither a folder nor an image nor a table; {_LAYOUTS}")


def _from_folder(root: Path) -> ImageSource:
    skipped: list[tuple[str, str]] = []
    paths = sorted(_walk(root, skipped))
    skipped.sort()
    if not paths:
        raise FxError(_no_images_below(root, skipped))
    folders = {path.split("/", 1)[0] for path in paths if "/" in path}
    kind: Literal["classes", "splits", "unlabelled"] = "classes" if folders else "unlabelled"
    names = {folder.lower() for folder in folders}
    if "train" in names and names <= _SPLITS.keys():
        kind = "splits"
    entries = tuple(_entry_in_folder(path, kind == "splits") for path in paths)
    return ImageSource(root.absolute(), kind, entries, tuple(skipped))


def _entry_in_folder(path: str, has_splits: bool) -> ImageEntry:
    *folders, _ = path.split("/")
    split = _SPLITS[folders.pop(0).lower()] if has_splits and folders else None
    return ImageEntry(path, folders[0] if folders else None, split, None)


def _walk(root: Path, skipped: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the paths of images below a folder; add what cannot be opened to `skipped`."""
    # no recursion: folders may be nested deeper than Python's calls
    waiting = [(os.fspath(root), "", frozenset([_identity(os.fspath(root))]))]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                children = list(listing)
        except OSError as error:
            if not prefix:
                raise FxError(f"{_shown(root)} cannot be read: {error.strerror}") from error
            skipped.append((prefix[:-1], f"folder cannot be read: {error.strerror}"))
            continue
        for child in children:
            if child.name.startswith(".") or child.name == "__MACOSX":
                continue
            path = prefix + child.name
            try:
                if child.is_dir():
                    # by device and inode on the way down: two links to a folder are no circle
                    identity = _identity(child.path)
                    if identity in above:
                        skipped.append((path, "link to a folder that it lies in"))
                    else:
                        waiting.append((child.path, path + "/", above | {identity}))
                elif child.is_file():
                    if _named_like_image(child.name):
                        yield path
                elif child.is_symlink() and not Path(child.path).exists():
                    skipped.append((path, "link to nothing"))
                elif _named_like_image(child.name):
                    skipped.append((path, "not a regular file"))
            except OSError as error:
                skipped.append((path, f"cannot be read: {error.strerror}"))


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _named_like_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in SUFFIXES and "." in name


def _from_table(table: Path) -> ImageSource:
    columns = _read_table(table)
    if not columns["path"]:
        raise FxError(f"{_shown(table)} lists no images; fill it in: a row an image")
    root = table.parent.absolute()
    entries: set[ImageEntry] = set()
    skipped: set[tuple[str, str]] = set()
    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    for number, (cell, label, split, group) in enumerate(rows, start=1):
        path = _path_in_table(cell, root)
        if path is None:
            raise FxError(f"{_shown(table)}: row {number} has no path; fill it in or drop the row")
        side = _text(split)
        if side is not None and side.lower() not in _SPLITS:
            raise FxError(
                f"{_shown(table)}: unknown split {side!r} in row {number}; "
                "it must be train, val or test, or empty"
            )
        reason = _why_no_file(root, path)
        if reason:
            skipped.add((path, reason))
            continue
        known = _SPLITS[side.lower()] if side else None
        entries.add(ImageEntry(path, _text(label), known, _text(group)))
    if not entries:
        path, reason = min(skipped)
        raise FxError(
            f"none of the {len(columns['path'])} files listed in {_shown(table)} can be opened; "
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
            f"{_shown(table)} cannot be read as a {table.suffix[1:]} table: {text}"
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
            raise FxError(f"{_shown(table)} has {tidy.count(name)} columns {name!r}; keep one")
    if "path" not in tidy:
        found = ", ".join(map(repr, names))
        raise FxError(f"{_shown(table)} has no column 'path'; it has {found}; rename one of them")
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


def _nothing_at(path: Path) -> str:
    message = f"{_shown(path)} does not exist"
    if path.is_symlink():
        message = f"{_shown(path)} is a link to nothing"
    elif path.parent.is_dir():
        siblings: list[str] = []
        with suppress(OSError):  # a folder may let one through and not be listed
            siblings = [child.name for child in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        if near:
            message += f"; nearest: {_shown(path.parent / near[0])}"
    return f"{message}; {_LAYOUTS}{_sample_hint(path)}"


def _no_images_below(root: Path, skipped: list[tuple[str, str]]) -> str:
    message = f"no images below {_shown(root)}"
    if skipped:
        path, reason = skipped[0]
        message += f", {len(skipped)} left out ({path!r}: {reason})"
    return f"{message}; {_LAYOUTS}{_sample_hint(root)}"


def _sample_hint(path: Path) -> str:
    """Return how to fill the folder that every command reads by default."""
    return "; 'fx sample digits data' writes an example" if path == Path("data") else ""


def _shown(path: Path) -> str:
    return repr(str(path))
