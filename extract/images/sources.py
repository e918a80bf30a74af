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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from extract.errors import FxError, NoImages, listed, one_line
from extract.files import OWN_FILES, ObjectPath, Place, place
from extract.images.decoding import is_image
from extract.images.entries import (
    SUFFIXES,
    FileStats,
    ImageEntry,
    ImageSource,
    Listing,
    Reading,
    Split,
    composed,
    shown,
    split_named,
    split_within,
)
from extract.images.shards import (
    SHARDS,
    SMALL_BLOCK,
    expand_pattern,
    image_column,
    list_tar,
    open_parquet,
    open_shard,
)
from extract.images.tables import from_table, list_rows

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
UNREAD_SUFFIXES = frozenset(_UNREAD.split())
SYSTEM_FOLDERS = frozenset(_OF_THE_SYSTEM.split("/"))
_MOST_KINDS = 20  # of files, told one by one

_TABLES = (".csv", ".tsv", ".parquet")
# these would have to be unpacked up to an image
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
# shards that are listed beside each other, and objects that are looked into for what they are
_AT_ONCE, _MOST_LOOKED_INTO = 8, 100
# of objects that are not looked into
_NO_IMAGES = (*_TABLES, ".tar", *_COMPRESSED, *(f".{one}" for one in _UNREAD.split()))
_LAYOUTS = (
    "give a folder of class folders, train/, val/ and test/ with class folders in each, "
    "a .csv or .parquet table with a path column, tars or .parquet files that hold images, "
    "a folder of images, or one image"
)


def find_images(images: str | Place, reading: Reading | None = None) -> ImageSource:
    """List the images of a folder, a table or shards, on a disk or on object storage.

    Parameters
    ----------
    images : str, Path or ObjectPath
        A folder of class folders: the label is the name of the first folder, however deep the
        image lies in it, and images beside the class folders have none. Or train/, val/ and test/
        with class folders in each, if all folders with images are called so, or in another usual
        way (`split_named`, `split_within`), and train/ is among them. Or a CSV, TSV or Parquet
        table with a column path, relative to the table's folder or absolute, and, if there, label,
        split and group; empty cells say nothing. Or a folder of images without labels, or one
        image.
        Or shards, which are never unpacked: a tar as WebDataset writes it, or a Parquet file that
        holds the images' bytes, or a folder of these and of nothing else that is an image, or
        several as in ``train-{000..012}.tar``. See ``extract.images.shards``.
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
    where = place(images)
    try:
        found = _listed(where, reading)
    except OSError as error:
        # of a storage it names the object
        at = error.filename or where
        raise FxError(f"{str(at)!r} cannot be read: {one_line(error)}") from error
    return replace(found, max_image_mb=reading.max_image_mb, min_images=reading.min_images)


def _listed(path: Place, reading: Reading) -> ImageSource:
    if reading.root is not None:
        reading = replace(reading, root=place(reading.root))
    if shards := expand_pattern(path):
        return _from_shards(*shards, reading)
    if isinstance(path, ObjectPath):
        return _listed_objects(path, reading)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NoImages(_nothing_at(path), path) from None
    if stat.S_ISREG(mode):
        return _from_file(path, reading)
    if stat.S_ISDIR(mode):
        return _from_folder(path, _walk(path), reading)
    raise _not_understood(path)


def _listed_objects(path: ObjectPath, reading: Reading) -> ImageSource:
    """List what lies on object storage, where a folder is what begins a name."""
    known = path.suffix.lower() in (*_TABLES, *SHARDS) or _named_like_image(path.name)
    known = known or path.name.lower().endswith(_COMPRESSED)
    if known and path.is_file():
        return _from_file(path, reading)
    if path.base.startswith("http"):
        raise FxError(
            f"{shown(path)} is no image, table or shard, and folders cannot be listed over HTTP; "
            "give one of those by its whole address, a pattern such as train-{000..012}.tar, "
            "or the folder by s3://"
        )
    return _from_folder(path, _walk_objects(path), reading)


def _from_file(path: Place, reading: Reading) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix in SHARDS and (suffix == ".tar" or _holds_images(path, reading)):
        return _from_shards(path.parent, [path], reading)
    if suffix in _TABLES:
        return from_table(path, reading)
    reading.check_is_of_folders(path)
    if path.name.lower().endswith(_COMPRESSED):
        raise FxError(_compressed(path))
    if _named_like_image(path.name) or is_image(path):
        entry = ImageEntry(path.name, None, None, None)
        return ImageSource(path.parent.absolute(), "unlabelled", (entry,), ())
    raise _not_understood(path)


def _compressed(path: Place) -> str:
    return (
        f"{shown(path)} is compressed, so that no image in it can be read alone; "
        "unpack it, or store it as a plain .tar: images are compressed as they are"
    )


def _not_understood(path: Place) -> FxError:
    return FxError(f"{shown(path)} is neither a folder nor an image nor a table; {_LAYOUTS}")


def _holds_images(path: Place, reading: Reading) -> bool:
    """Whether a Parquet file holds the bytes of images; not where it cannot be read at all."""
    try:
        with open_shard(path, SMALL_BLOCK) as (file, _), open_parquet(file) as table:
            return image_column(table.schema_arrow, reading.path_column) is not None
    except (ValueError, pa.ArrowException):
        return False


def _from_shards(root: Place, shards: Sequence[Place], reading: Reading) -> ImageSource:
    """List the images of shards, in their order; of what has no label, folders in them say it."""
    if any(shard.suffix.lower() == ".tar" for shard in shards):
        reading.check_is_of_folders(shards[0])
    elif reading.root is not None:
        raise FxError(f"`root` is of paths; {shown(shards[0])} holds the images; leave it out")
    root = root.absolute()
    # places of the root, so that they are the ones that are read by it
    names = sorted({place(shard.absolute()).relative_to(root).as_posix() for shard in shards})  # type: ignore[arg-type]

    def listing(name: str) -> Listing:
        where = root / name
        return list_tar(where) if where.suffix.lower() == ".tar" else list_rows(where, reading)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        listings = dict(zip(names, pool.map(listing, names), strict=True))
    found, columns = _Found(), dict[str, str]()
    for name, one in listings.items():
        found.images += [f"{name}/{image.path}" for image in one.images]
        found.others += [f"{name}/{path}" for path in one.others]
        found.skipped += [(f"{name}/{path}".rstrip("/"), reason) for path, reason in one.skipped]
        found.hidden += one.hidden
        columns |= one.columns
    if not found.images:
        raise NoImages(_no_images_below(root, found.skipped, found.others), root)
    folders = _Folders("unlabelled")
    inside = [image.path for one in listings.values() for image in one.images]
    if all(image.label is None for one in listings.values() for image in one.images):
        # a folder that everything lies in is the one that was packed
        while len({path.partition("/")[0] for path in inside}) == 1 and all(
            path.count("/") > 1 for path in inside
        ):
            inside = [path.partition("/")[2] for path in inside]
        folders = _Folders.of(root, inside, reading.layout)
    splits = _splits_of_shards(names) if reading.layout != "classes" else {}
    entries = []
    paths = iter(inside)
    for name, one in listings.items():
        for image in one.images:
            said = folders.entry(next(paths))
            entries.append(
                replace(
                    image,
                    path=f"{name}/{image.path}",
                    label=image.label or said.label,
                    split=image.split or splits.get(name) or said.split,
                )
            )
    kind: Literal["classes", "splits", "unlabelled"] = "unlabelled"
    if any(entry.label is not None for entry in entries):
        kind = "splits" if any(entry.split for entry in entries) else "classes"
    return ImageSource(
        root,
        kind,
        tuple(entries),
        tuple(sorted(found.skipped)),
        passed_over=_passed_over(found, entries, 0, 0),
        columns=tuple(columns.items()),
    )


def _splits_of_shards(names: Sequence[str]) -> dict[str, Split]:
    """Say which split each shard is of, by its folder's or its own name; none where one is not."""
    found = {}
    for name in names:
        *folders, file = name.split("/")
        said = (split_named(folders[0]) if folders else None) or split_within(
            file.partition(".")[0]
        )
        if said is not None:
            found[name] = said
    return found if len(found) == len(names) and "train" in found.values() else {}


def _from_folder(root: Place, found: _Found, reading: Reading) -> ImageSource:
    paths, skipped = sorted(found.images), sorted(found.skipped)
    if not paths:
        if shards := [root / one for one in found.others if one.lower().endswith(SHARDS)]:
            return _from_shards(root, shards, reading)
        for one in found.others:
            if one.lower().endswith(_COMPRESSED):
                raise FxError(_compressed(root / one))
        if isinstance(root, ObjectPath) and not (skipped or found.others or found.hidden):
            raise NoImages(f"{shown(root)} does not exist, or is empty; {_LAYOUTS}", root)
        raise NoImages(_no_images_below(root, skipped, found.others), root)
    reading.check_is_of_folders(root)
    folders = _Folders.of(root, paths, reading.layout)
    entries = tuple(
        replace(folders.entry(path), stats=found.stats.get(path))
        for path in paths
        if not folders.is_outside(path)
    )
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
    def of(cls, root: Place, paths: list[str], layout: str | None) -> _Folders:
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


def _splits_of(root: Place, inner: dict[str, set[str]], layout: str | None) -> dict[str, Split]:
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


def _otherwise(root: Place, inner: Iterable[str], shared: Iterable[str]) -> str:
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
    stats : of those that lie on object storage
    others : paths of other files
    folders : paths of all folders that were entered
    skipped : what cannot be opened, with the reason
    hidden, of_the_system : how many files and folders were passed over for their names
    """

    images: list[str] = field(default_factory=list)
    stats: dict[str, FileStats] = field(default_factory=dict)
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
                found.hidden += not child.name.startswith(OWN_FILES)
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


def _walk_objects(root: ObjectPath) -> _Found:
    """Find what lies below a place on object storage: one request for a thousand objects."""
    found = _Found()
    folders: set[str] = set()
    passed_over: set[str] = set()
    for where, stats in root.walk():
        path = where.relative_to(root).as_posix()
        parts = path.split("/")
        bad = next((i for i, part in enumerate(parts) if part.startswith(".")), len(parts))
        inside = [part.lower() in SYSTEM_FOLDERS for part in parts[:-1]]
        systems = inside.index(True) if True in inside else len(parts)
        if min(bad, systems) < len(parts):
            folder = "/".join(parts[: min(bad, systems) + 1])
            if folder not in passed_over:
                passed_over.add(folder)
                found.hidden += bad < systems
                found.of_the_system += systems < bad
            parts = parts[: min(bad, systems) + 1]
        elif _named_like_image(path):
            found.images.append(path)
            found.stats[path] = FileStats.of(stats)
        elif stats.st_size:
            found.others.append(path)
            found.stats[path] = FileStats.of(stats)
        else:  # what some programs write for a folder
            folders.add(path)
        folders |= {"/".join(parts[:n]) for n in range(1, len(parts))}
    found.folders = sorted(folders)
    unknown = [path for path in found.others if not path.lower().endswith(_NO_IMAGES)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        some = unknown[:_MOST_LOOKED_INTO]
        looked_into = dict(
            zip(some, pool.map(lambda path: is_image(root / path), some), strict=True)
        )
    found.images += [path for path, yes in looked_into.items() if yes]
    found.others = [path for path in found.others if not looked_into.get(path)]
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


def _no_images_below(root: Place, skipped: list[tuple[str, str]], others: list[str]) -> str:
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
