"""Sample data sets, written as class folders of PNG files, of which there are all or none."""

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from extract.errors import FxError
from extract.files import (
    OWN_FILES,
    UNFINISHED,
    check_room,
    disk_full_as_fx_error,
    free_bytes,
    on_this_machine,
    remove,
    why_not_written,
    write_whole,
)
from extract.records import Record
from fx.output import Begin, Progress

# torchvision's classification sets that hold their labels in `classes` and can be downloaded
DOWNLOADED = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "mnist": "MNIST",
    "pets": "OxfordIIITPet",
    "stl10": "STL10",
}
NAMES = ("digits", *DOWNLOADED)
MARKER = f"{OWN_FILES}sample"
# what is being written; hidden, so that no command takes it for images
BEGUN = f"{MARKER}-images"
BLOCK = 4096  # bytes that the smallest file takes on most disks


class WrittenSample(Record, frozen=True):
    """A sample data set on the disk.

    Attributes
    ----------
    name : of the data set
    path : its folder
    images : how many
    classes : names of its sub-folders
    """

    name: str
    path: str
    images: int
    classes: tuple[str, ...]


def write_sample(name: str, directory: Path, *, begin: Begin) -> WrittenSample:
    """Write a sample data set below a folder, one sub-folder a class.

    Parameters
    ----------
    name : ``digits`` (scikit-learn's 1,797 of 8×8 pixels, no network), or one that torchvision
        downloads
    directory : must be missing or empty, or hold this sample already
    begin : given what is being done, returns a progress callback

    Raises
    ------
    CannotWrite
        If there is no room for it, or the folder cannot be written to.
    FxError
        If the name is unknown, the folder holds something else, or the download fails.
    """
    if name not in NAMES:
        raise FxError(f"unknown sample {name!r}; choose one of: {', '.join(NAMES)}")
    marker = on_this_machine(directory) / MARKER
    begun = f"{name} unfinished"
    state = marker.read_text() if marker.exists() else ""
    if state == name:
        files = list(directory.glob("*/*.png"))
    else:
        ours = ("README.md", MARKER, MARKER + UNFINISHED, BEGUN)
        others = [f for f in directory.glob("*") if f.name not in ours]
        if others and state != begun:
            raise FxError(
                f"{directory} is not empty ({others[0].name}); give another folder for {name}"
            )
        write_whole(marker, begun)
        images = list(_digits() if name == "digits" else _downloaded(name))
        encoded = _encoded(images, begin("encoding images"))
        files = _write(encoded, name, directory, begin("writing images"))
    classes = tuple(sorted({file.parent.name for file in files}))
    return WrittenSample(name, str(directory), len(files), classes)


def _encoded(images: Sequence[tuple[Any, str]], progress: Progress) -> list[tuple[bytes, str]]:
    found = []
    for number, (image, label) in enumerate(images, 1):
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        found.append((encoded.getvalue(), label.replace("/", "_")))
        progress(number, len(images))
    return found


def _write(
    images: Sequence[tuple[bytes, str]], name: str, directory: Path, progress: Progress
) -> list[Path]:
    """Write all images, then move them to where they belong, and say that they are there."""
    unfinished = directory / BEGUN
    files = []
    needs = sum(-(-len(data) // BLOCK) * BLOCK for data, _ in images)
    with disk_full_as_fx_error(directory, needs=needs):
        try:
            # what a killed run has left
            shutil.rmtree(unfinished, ignore_errors=True)
            # some disks pack small files closer
            if free_bytes(directory) < sum(len(data) for data, _ in images):
                check_room(directory, needs)
            for number, (data, label) in enumerate(images):
                file = unfinished / label / f"{number:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                files.append(directory / label / file.name)
                progress(number + 1, len(images))
            write_whole(unfinished / MARKER, name)
            for label in {file.parent.name for file in files}:
                remove(directory / label)
                (unfinished / label).replace(directory / label)
            (unfinished / MARKER).replace(directory / MARKER)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return files


def _digits() -> Iterable[tuple[Any, str]]:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for pixels, label in zip(digits.images, digits.target, strict=True):
        # 17 grey levels, 0 to 16, stretched over 8 bits
        yield Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)), str(label)


def _downloaded(name: str) -> Iterable[tuple[Any, str]]:
    import torch
    import torchvision

    cache = Path(torch.hub.get_dir()).parent / "datasets"
    try:
        with disk_full_as_fx_error(cache), _without_remains(cache):
            data = getattr(torchvision.datasets, DOWNLOADED[name])(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise FxError(
            f"{name} cannot be downloaded ({error}); without a network take digits"
        ) from error
    for image, label in data:
        yield image, str(data.classes[label])


@contextmanager
def _without_remains(folder: Path) -> Iterator[None]:
    """Delete what has come into a folder, where all cannot: torchvision leaves half a file."""
    before = set(folder.rglob("*"))
    try:
        yield
    except Exception as error:
        if why_not_written(error, folder):
            for path in sorted(set(folder.rglob("*")) - before, reverse=True):
                remove(path)
        raise
