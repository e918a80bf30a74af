"""Predictions put together, saved as a table, and images sorted by them; without torch."""

import csv
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
from msgspec import UNSET
from msgspec.json import encode
from numpy.typing import NDArray

from extract.errors import FxError
from extract.files import Place, disk_full_as_fx_error, on_this_machine, write_whole
from extract.images import ImageEntry, ImageSource, Reading, find_images, image_place, open_image
from fx.stages.records import LikelyClass, Prediction, Predictions, Sorted

STANDARD_INPUT = Path("-")
TABLES = (".csv", ".jsonl", ".parquet")  # to write
READ_TABLES = (".csv", ".tsv", ".parquet")
NONE_OF_THESE = "none of these"
# bytes of an image, and of it at once
LARGEST_FILE, AT_ONCE = 2**32, 2**20
LONGEST_NAME = 200  # of a file, of which a number makes it longer


@dataclass(frozen=True)
class Wanted:
    """What is to be told of each image beside its label.

    Attributes
    ----------
    top : how many of the likeliest classes; 0 for the label alone
    probabilities : whether those of all classes
    """

    top: int = 0
    probabilities: bool = False

    def prediction(
        self, path: str, row: NDArray[np.floating[Any]], classes: Sequence[str], **more: Any
    ) -> Prediction:
        """Make a prediction of the probabilities of one image, of shape (classes,).

        ``more`` are other fields of it; with ``label=None`` no class is named.
        """
        best = int(row.argmax())
        label = more.pop("label", classes[best])
        order = (-row).argsort(kind="stable")[: self.top]
        return Prediction(
            path=path,
            label=label,
            # beside no label, that of a class would be read as the answer's
            probability=None if label is None else float(row[best]),
            top=tuple(LikelyClass(classes[i], float(row[i])) for i in order) or UNSET,
            probabilities=(
                dict(zip(classes, map(float, row), strict=True)) if self.probabilities else UNSET
            ),
            **more,
        )


def images_to_label(images: Path, reading: Reading) -> ImageSource:
    """Find the images of a folder, a table or a file, or those that standard input names.

    Of labels nothing is wanted, and so no folder can be mistaken. Standard input has a path a
    line, or between zero bytes, as ``find -print0`` writes them.

    Raises
    ------
    FxError
        If there are none.
    """
    if images != STANDARD_INPUT:
        layout = (
            None
            if images.suffix.lower() in (*TABLES, ".tsv") and not images.is_dir()
            else "classes"
        )
        return find_images(images, replace(reading, layout=layout))
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    paths = dict.fromkeys(os.fsdecode(line) for line in lines if line.strip())
    if not paths:
        raise FxError("no paths on standard input; give one a line")
    entries = tuple(ImageEntry(path, None, None, None) for path in paths)
    return ImageSource(Path.cwd(), "unlabelled", entries, (), reading.max_image_mb)


def save_predictions(file: Path, found: Predictions) -> None:
    """Write predictions as CSV, JSON lines or Parquet, by the file's suffix.

    Lists stand in a cell of a CSV as JSON; with all probabilities every class has a column,
    ``probability of CLASS``. Images that cannot be read are left out.

    Raises
    ------
    CannotWrite
        If there is no room, or nothing can be written there.
    FxError
        If the suffix is another.
    """
    suffix = check_table(file)
    records = [one.as_json() for one in found.predictions]
    if suffix == ".jsonl":
        _write(file, b"".join(encode(record) + b"\n" for record in records))
        return
    rows = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["path", "label"]
    if suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, columns, restval="")
        table.writeheader()
        table.writerows(
            {
                name: encode(value).decode() if isinstance(value, list | tuple) else value
                for name, value in row.items()
            }
            for row in rows
        )
        _write(file, text.getvalue().encode(errors="surrogateescape"))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({n: [row.get(n) for row in rows] for n in columns}), sink)
    _write(file, sink.getvalue())


def check_table(file: Path) -> str:
    """Give the suffix of a table that can be written; raises FxError where it cannot."""
    suffix = file.suffix.lower()
    if suffix not in TABLES:
        raise FxError(f"`save` takes a file of {', '.join(TABLES)}; got {file}")
    return suffix


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    probabilities = record.pop("probabilities", {})
    return record | {f"probability of {name}": value for name, value in probabilities.items()}


def _write(file: Path, data: bytes) -> None:
    with disk_full_as_fx_error(file.parent):
        write_whole(file, data)


def sort_images(
    into: Path, root: Place, predictions: Iterable[Prediction], *, links: bool = False
) -> Sorted:
    """Copy or link images into a folder for each label, where nothing is ever overwritten.

    Where another file has an image's name, the folders that it lies in are put before it, and
    then a number behind it; where the same bytes are there, nothing is done. Images without a
    label come into ``none of these``.

    Parameters
    ----------
    into : the folder of those folders
    root : folder that the predictions' paths are relative to
    predictions : of images that can be read
    links : whether they are symbolic links

    Raises
    ------
    CannotWrite
        If there is no room, or nothing can be written there.
    FxError
        If links are asked for of what lies on object storage or in a shard.
    """
    done = there = 0
    with disk_full_as_fx_error(on_this_machine(into)):
        for one in predictions:
            folder = into / _folder_name(one.label)
            folder.mkdir(parents=True, exist_ok=True)
            names = _names(PurePosixPath(one.path))
            target = folder / next(names)
            while os.path.lexists(target) and not _is_same(target, root, one.path):
                target = folder / next(names)
            if os.path.lexists(target):
                there += 1
                continue
            if links:
                target.symlink_to(_linked(root, one.path))
            else:
                _copy(root, one.path, target)
            done += 1
    return Sorted(str(into), done, there)


def _linked(root: Place, path: str) -> Path:
    source = image_place(root, path)
    if isinstance(source, Path) and (source := source.absolute()).exists():
        return source
    raise FxError(f"{source} is no file that a link could point to; copy images instead")


def _copy(root: Place, path: str, target: Path) -> None:
    """Copy an image to where there is no file, all of it or nothing."""
    with open_image(root, path, LARGEST_FILE) as (original, _), target.open("xb") as copy:
        try:
            shutil.copyfileobj(original, copy)
        except BaseException:
            target.unlink()
            raise


def _names(path: PurePosixPath) -> Iterator[str]:
    """Give names for a file, the one that it has first."""
    yield path.name
    inside = [part for part in path.parts if part not in ("/", "..")]
    together = PurePosixPath("-".join(inside)[-LONGEST_NAME:])
    yield together.name
    for number in itertools.count(2):
        yield f"{together.stem} ({number}){together.suffix}"


def _folder_name(label: str | None) -> str:
    """Name a folder after a label, whatever is in it."""
    if label is None:
        return NONE_OF_THESE
    safe = re.sub(r"[/\\\x00-\x1f]", lambda found: quote(found[0], safe=""), label)
    if safe.strip(". "):
        return safe
    # not this folder, nor the one above it
    return safe.replace(".", "%2E").replace(" ", "%20") or "%20"


def _is_same(target: Path, root: Place, path: str) -> bool:
    if target.is_symlink():
        return bool(target.readlink() == image_place(root, path).absolute())
    if not target.is_file():
        return False
    with open_image(root, path, LARGEST_FILE) as (source, _), target.open("rb") as copy:
        pairs = iter(lambda: (source.read(AT_ONCE), copy.read(AT_ONCE)), (b"", b""))
        return all(one == other for one, other in pairs)
