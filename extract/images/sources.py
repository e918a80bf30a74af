"""Which images there are, with their labels, splits and groups; what else there is, is counted.

The entries of a source depend on the names of files and folders, or on a table, not on the order
in which a disk lists them. Files are opened only where their names do not say what they are.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from extract.errors import FxError, NoImages, listed
from extract.images.decoding import is_image
from extract.images.entries import (
    ImageEntry,
    ImageSource,
    Reading,
    Split,
    composed,
    shown,
    split_named,
    split_within,
)
from extract.images.tables import from_table

_READ = "jpg jpeg jpe jfif mpo png webp bmp tif tiff gif ppm pgm pbm pnm avif heic heif hif"
# of images and films that are not read: a class of which there is nothing else is lost
_UNREAD = (
    "jp2 j2k jxl jxr psd xcf tga svg ico eps exr hdr pcx dcm nii dng cr2 cr3 nef arw orf raf rw2 "
    "npy npz mat mp4 mov avi mkv webm mpg"
)
# of disk stations, archives and systems, in lower case; thumbnails lie in some of them
_OF_THE_SYSTEM = (
    "__macosx/__pycache__/@eadir/@tmp/@recycle/@recently-snapshot/#recycle/#snapshot/$recycle.bin/"
    "system volume information/lost+found"
)
SUFFIXES, UNREAD_SUFFIXES = frozenset(_READ.split()), frozenset(_UNREAD.split())
SYSTEM_FOLDERS = frozenset(_OF_THE_SYSTEM.split("/"))
_MOST_KINDS = 20  # of files, told one by one

_TABLES = (".csv", ".tsv", ".parquet")
_LAYOUTS = (
    "give a folder of class folders, train/, val/ and test/ with class folders in each, "
    "a .csv or .parquet table with a path column, a folder of images, or one image"
)


def find_images(images: str | Path, reading: Reading | None = None) -> ImageSource:
    """List the images of a folder or a table.

    Parameters
    ----------
    images : str or Path
        A folder of class folders: the label is the name of the first folder, however deep the
        image lies in it, and images beside the class folders have none. Or train/, val/ and test/
        with class folders in each, if all folders with images are called so, or in another usual
        way (`split_named`, `split_within`), and train/ is among them. Or a CSV, TSV or Parquet
        table with a column path, relative to the table's folder or absolute, and, if there, label,
        split and group; empty cells say nothing. Or a folder of images without labels, or one
        image.
        Labels and groups are in composed Unicode form (NFC), whatever the folders' or cells' is.

        Of folders, those files are listed whose names end like an image's (`SUFFIXES`, in either
        case), and of the others those that begin like one. What begins with a dot, and folders
        such as ``__MACOSX`` and ``@eaDir``, are passed over. Links are followed; a folder that
        lies in itself is not entered again.
    reading : Reading
        How; by default as said above.

    Returns
    -------
    ImageSource
        With at least one entry.

    Raises
    ------
    FxError
        If there is nothing at `images`, nothing that is understood, or no image in it, if
        `reading` does not suit it, or if its folders may be splits and may be classes.
    """
    reading = reading or Reading()
    return replace(
        _listed(Path(images), reading),
        max_image_mb=reading.max_image_mb,
        min_images=reading.min_images,
    )


def _listed(path: Path, reading: Reading) -> ImageSource:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NoImages(_nothing_at(path), path) from None
    except OSError as error:
        raise FxError(f"{shown(path)} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and path.suffix.lower() in _TABLES:
        return from_table(path, reading)
    reading.check_is_of_folders(path)
    if stat.S_ISDIR(mode):
        return _from_folder(path, reading.layout)
    if stat.S_ISREG(mode) and (_named_like_image(path.name) or is_image(path)):
        entry = ImageEntry(path.name, None, None, None)
        return ImageSource(path.parent.absolute(), "unlabelled", (entry,), ())
    raise FxError(f"{shown(path)} is neither a folder nor an image nor a table; {_LAYOUTS}")


def _from_folder(root: Path, layout: str | None) -> ImageSource:
    found = _walk(root)
    paths, skipped = sorted(found.images), sorted(found.skipped)
    if not paths:
        raise NoImages(_no_images_below(root, skipped, found.others), root)
    folders = _Folders.of(root, paths, layout)
    entries = tuple(folders.entry(path) for path in paths if not folders.is_outside(path))
    outside = len(paths) - len(entries)
    return ImageSource(
        root.absolute(),
        folders.kind,
        entries,
        tuple(skipped),
        passed_over=_passed_over(found, entries, folders.depth, outside),
        lost=() if folders.kind == "unlabelled" else _lost_classes(found, entries, folders),
    )


@dataclass(frozen=True)
class _Folders:
    """What the folders of a source mean.

    Attributes
    ----------
    kind : of the source
    splits : the first folders that are splits, and which
    doubled : those that hold one folder of their own name, as archives unpack: ``train/train/cat``
    """

    kind: Literal["classes", "splits", "unlabelled"]
    splits: dict[str, Split] = field(default_factory=dict)
    doubled: frozenset[str] = frozenset()

    @classmethod
    def of(cls, root: Path, paths: list[str], layout: str | None) -> _Folders:
        """Find out from where images lie.

        Raises
        ------
        FxError
            If folders may be splits and may be classes, or are no splits as `layout` says.
        """
        inner: dict[str, set[str]] = defaultdict(set)
        doubled: dict[str, bool] = {}
        for first, *more in (path.split("/")[:-1] for path in paths if "/" in path):
            inner[first] |= {*more[:1]}
            doubled[first] = doubled.get(first, True) and len(more) > 1 and more[0] == first
        splits = _splits_of(root, inner, layout) if layout != "classes" else {}
        if splits:
            twice = frozenset(folder for folder in splits if doubled[folder])
            return cls("splits", splits, twice)
        return cls("classes" if inner else "unlabelled")

    @property
    def depth(self) -> int:
        """How many folders deep the images of a class lie."""
        return 2 if self.splits else 1

    def is_outside(self, path: str) -> bool:
        """Whether an image lies in a folder beside the splits."""
        first, inside, _ = path.partition("/")
        return bool(self.splits and inside and first not in self.splits)

    def entry(self, path: str) -> ImageEntry:
        """Give an image the label and split of its folders."""
        *folders, _ = path.split("/")
        split = None
        if self.splits and folders:
            first = folders.pop(0)
            split = self.splits.get(first)
            if split is None or (first in self.doubled and folders[:1] == [first]):
                folders = folders[1:] if split else []
        return ImageEntry(path, composed(folders[0]) if folders else None, split, None)


def _splits_of(root: Path, inner: dict[str, set[str]], layout: str | None) -> dict[str, Split]:
    """Say which first folders are splits, none where all are classes; `inner` are theirs."""
    exact = {folder: split for folder in inner if (split := split_named(folder))}
    named = {f: split for f in inner if (split := exact.get(f) or split_within(f))}
    splits, others = {*named.values()}, sorted(inner.keys() - named.keys())
    if layout == "splits":
        if "train" in splits:
            return named
        raise FxError(
            f"{shown(root)} has no folder of training images; it has {_some(inner)}; "
            "name one train, or take `layout=classes`"
        )
    nested = all(inner[folder] for folder in named)
    certain = len(exact) == len(named) or (nested and len(splits) == len(named))
    if "train" in splits and not others and certain:
        return named
    if (
        (len(splits) > 1 and ("train" in splits or any(inner[folder] for folder in named)))
        # one of them alone may be a class, unless it holds folders as a split does
        or any(inner[folder] for folder in exact)
    ):
        beside = f" and passes over {_some(others)}" if others else ""
        raise FxError(
            f"folders of {shown(root)} may be splits or classes: `layout=splits` takes "
            f"{_some(named)} as splits{beside}; `layout=classes` takes every folder as a class"
        )
    shared = set.intersection(*inner.values()) if inner else set()
    if len(shared) > 1 and 2 * len(shared) >= len(set.union(*inner.values())):
        raise FxError(
            f"{_some(inner)} in {shown(root)} may be classes or not: they hold folders of the same "
            f"names, {_some(shared)}; `layout=classes` takes the outer folders as classes; "
            + _otherwise(root, inner, shared)
        )
    return {}


def _otherwise(root: Path, inner: Iterable[str], shared: Iterable[str]) -> str:
    """Say what to do where folders in folders are not meant as parts of classes."""
    if any(map(split_named, shared)):
        return "where the inner ones are splits, make them the outer ones"
    first, *more = sorted(inner)
    if more:
        return "`layout=splits` takes them as splits if they are named train, val and test"
    return f"where the inner ones are the classes, give {shown(root / first)}"


def _some(names: Iterable[str]) -> str:
    return listed(map(repr, sorted(names)), 4)


def _passed_over(
    found: _Found, entries: Sequence[ImageEntry], depth: int, outside: int
) -> tuple[tuple[str, int], ...]:
    """Count what is no labelled image, by kind; class folders lie so many folders deep."""
    counts = Counter(map(_kind_of_file, found.others))
    rest = sum(count for _, count in counts.most_common()[_MOST_KINDS:])
    counts = Counter(dict(counts.most_common(_MOST_KINDS))) + Counter({"of other kinds": rest})
    counts["hidden"], counts["folders of the system"] = found.hidden, found.of_the_system
    filled = {"/".join(path.split("/")[:n]) for path in found.images for n in range(1, depth + 1)}
    empty = {one for one in found.folders if one.count("/") < depth} - filled
    counts["images in no split"] = outside
    counts["folders without images"] = len(empty)
    if any(entry.label is not None for entry in entries):
        counts["images without a label"] = sum(entry.label is None for entry in entries)
    return tuple((+counts).most_common())


def _kind_of_file(path: str) -> str:
    suffix = re.fullmatch(r".+\.(\w{1,10})", path.rpartition("/")[2], re.ASCII)
    return f".{suffix[1].lower()}" if suffix else "without a suffix"


def _lost_classes(
    found: _Found, entries: Iterable[ImageEntry], folders: _Folders
) -> tuple[tuple[str, str, str], ...]:
    """Find classes that there are files of, and no image that could be opened."""
    kept = {entry.label for entry in entries}
    lost: dict[str, tuple[str, str]] = {}
    unread = [
        (path, f"{kind} files are not read")
        for path in found.others
        if (kind := _kind_of_file(path))[1:] in UNREAD_SUFFIXES
    ]
    for path, reason in sorted(found.skipped) + sorted(unread):
        # what cannot be opened may be the class folder itself
        inside = f"{path}/" if reason.startswith("folder") else path
        label = folders.entry(inside).label
        if label is not None and label not in kept:
            lost.setdefault(label, (path, reason))
    return tuple((label, *one) for label, one in sorted(lost.items()))


@dataclass
class _Found:
    """What lies below a folder; paths are relative to it.

    Attributes
    ----------
    images : paths of files that are named, or begin, like images
    others : paths of other files
    folders : paths of all folders that were entered
    skipped : what cannot be opened, with the reason
    hidden, of_the_system : how many files and folders were passed over for their names
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0
    of_the_system: int = 0


def _walk(root: Path) -> _Found:
    """Find what lies below a folder."""
    found = _Found()
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
            found.skipped.append((prefix[:-1], f"folder cannot be read: {error.strerror}"))
            continue
        for child in children:
            path = prefix + child.name
            if child.name.startswith("."):
                found.hidden += 1
                continue
            try:
                if child.is_dir():
                    if child.name.lower() in SYSTEM_FOLDERS:
                        found.of_the_system += 1
                        continue
                    # by device and inode on the way down: two links to a folder are no circle
                    identity = _identity(child.path)
                    if identity in above:
                        found.skipped.append((path, "link to a folder that it lies in"))
                    else:
                        found.folders.append(path)
                        waiting.append((child.path, path + "/", above | {identity}))
                elif child.is_file():
                    named = _named_like_image(child.name) or is_image(Path(child.path))
                    (found.images if named else found.others).append(path)
                elif child.is_symlink() and not Path(child.path).exists():
                    found.skipped.append((path, "link to nothing"))
                elif _named_like_image(child.name):
                    found.skipped.append((path, "not a regular file"))
                else:
                    found.others.append(path)
            except OSError as error:
                found.skipped.append((path, f"cannot be read: {error.strerror}"))
    return found


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


def _no_images_below(root: Path, skipped: list[tuple[str, str]], others: list[str]) -> str:
    message = f"no images below {shown(root)}"
    if skipped:
        path, reason = skipped[0]
        message += f", {len(skipped)} left out ({path!r}: {reason})"
    if others:
        kinds = ", ".join(
            f"{n:,} {k}" for k, n in Counter(map(_kind_of_file, others)).most_common(5)
        )
        message += f", only other files ({kinds})"
    return f"{message}; {_LAYOUTS}"
