"""Which images there are, with their labels, splits and groups; no image is opened.

The entries of a source depend on the names of files and folders, or on a table, and on nothing
else: not on the order in which a disk lists them.
"""

import difflib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from extract.errors import FxError, NoImages
from extract.images.entries import MAX_IMAGE_MB, SPLIT_NAMES, ImageEntry, ImageSource, shown
from extract.images.tables import from_table

SUFFIXES = frozenset(["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"])

_TABLES = (".csv", ".parquet")
_LAYOUTS = (
    "give a folder of class folders, train/, val/ and test/ with class folders in each, "
    "a .csv or .parquet table with a path column, a folder of images, or one image"
)


def find_images(images: str | Path, *, max_image_mb: int = MAX_IMAGE_MB) -> ImageSource:
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
    max_image_mb : int, of 2**20 bytes
        Images that would take more as 8-bit RGB are not decoded; see ``extract.images.decoding``.

    Returns
    -------
    ImageSource
        With at least one entry.

    Raises
    ------
    FxError
        If there is nothing at `images`, nothing that is understood, or no image in it.
    """
    return replace(_listed(Path(images)), max_image_mb=max_image_mb)


def _listed(path: Path) -> ImageSource:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NoImages(_nothing_at(path), path) from None
    except OSError as error:
        raise FxError(f"{shown(path)} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return _from_folder(path)
    if stat.S_ISREG(mode) and path.suffix.lower() in _TABLES:
        return from_table(path)
    if stat.S_ISREG(mode) and _named_like_image(path.name):
        entry = ImageEntry(path.name, None, None, None)
        return ImageSource(path.parent.absolute(), "unlabelled", (entry,), ())
    raise FxError(f"{shown(path)} is neither a folder nor an image nor a table; {_LAYOUTS}")


def _from_folder(root: Path) -> ImageSource:
    skipped: list[tuple[str, str]] = []
    paths = sorted(_walk(root, skipped))
    skipped.sort()
    if not paths:
        raise NoImages(_no_images_below(root, skipped), root)
    folders = {path.split("/", 1)[0] for path in paths if "/" in path}
    kind: Literal["classes", "splits", "unlabelled"] = "classes" if folders else "unlabelled"
    names = {folder.lower() for folder in folders}
    if "train" in names and names <= SPLIT_NAMES.keys():
        kind = "splits"
    entries = tuple(_entry_in_folder(path, kind == "splits") for path in paths)
    return ImageSource(root.absolute(), kind, entries, tuple(skipped))


def _entry_in_folder(path: str, has_splits: bool) -> ImageEntry:
    *folders, _ = path.split("/")
    split = SPLIT_NAMES[folders.pop(0).lower()] if has_splits and folders else None
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
                raise FxError(f"{shown(root)} cannot be read: {error.strerror}") from error
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


def _nothing_at(path: Path) -> str:
    message = f"{shown(path)} does not exist"
    if path.is_symlink():
        message = f"{shown(path)} is a link to nothing"
    elif path.parent.is_dir():
        siblings: list[str] = []
        with suppress(OSError):  # a folder may let one through and not be listed
            siblings = [child.name for child in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        if near:
            message += f"; nearest: {shown(path.parent / near[0])}"
    return f"{message}; {_LAYOUTS}"


def _no_images_below(root: Path, skipped: list[tuple[str, str]]) -> str:
    message = f"no images below {shown(root)}"
    if skipped:
        path, reason = skipped[0]
        message += f", {len(skipped)} left out ({path!r}: {reason})"
    return f"{message}; {_LAYOUTS}"
