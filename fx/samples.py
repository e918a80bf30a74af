"""Sample data sets, written as class folders of PNG files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from extract.errors import FxError
from fx.output import Begin

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


def write_sample(name: str, directory: Path, *, begin: Begin) -> dict[str, Any]:
    """Write a sample data set below a folder, one sub-folder a class.

    Parameters
    ----------
    name : ``digits`` (scikit-learn's 1,797 of 8×8 pixels, no network), or one that torchvision
        downloads
    directory : must be missing or empty, or hold this sample already
    begin : given what is being done, returns a progress callback

    Returns
    -------
    ``name``, ``path``, ``images``, ``classes``

    Raises
    ------
    FxError
        If the name is unknown, the folder holds something else, or the download fails.
    """
    if name not in NAMES:
        raise FxError(f"unknown sample {name!r}; choose one of: {', '.join(NAMES)}")
    marker = directory / ".fx-sample"
    begun = f"{name} unfinished"
    state = marker.read_text() if marker.exists() else ""
    if state == name:
        files = list(directory.glob("*/*.png"))
    else:
        others = [f for f in directory.glob("*") if f.name not in ("README.md", marker.name)]
        if others and state != begun:
            raise FxError(
                f"{directory} is not empty ({others[0].name}); give another folder for {name}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        marker.write_text(begun)
        files = _write(_digits() if name == "digits" else _downloaded(name), directory, begin)
        marker.write_text(name)
    classes = sorted({file.parent.name for file in files})
    return {"name": name, "path": str(directory), "images": len(files), "classes": classes}


def _write(images: Iterable[tuple[Any, str]], directory: Path, begin: Begin) -> list[Path]:
    progress = begin("writing images")
    files = []
    todo = list(images)
    for number, (image, label) in enumerate(todo):
        file = directory / label.replace("/", "_") / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
        files.append(file)
        progress(number + 1, len(todo))
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
        data = getattr(torchvision.datasets, DOWNLOADED[name])(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise FxError(
            f"{name} cannot be downloaded ({error}); without a network take: fx sample digits"
        ) from error
    for image, label in data:
        yield image, str(data.classes[label])
