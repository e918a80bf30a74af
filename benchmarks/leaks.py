"""Leaks across a split: how many planted copies are found, and what is reported besides.

Every second photograph is a training image; the others are test images without a copy. Copies of
the training images are planted among the test images, one kind at a time. The same with 200 of the
20,000 training images of CIFAR-10's four classes. What is reported of their 4,000 test images
themselves is for the eye to judge: ``--sheet`` draws it.

    python benchmarks/leaks.py ../shared/data/photos cifar4 --store leaks.zarr --sheet leaks.png
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps

from extract.images import ImageRow, Snapshot, decode
from extract.leaks import Leak, near_leaks
from extract.store import FeatureSet, FeatureStore
from fx.options import Options
from fx.stages.extract import extract_images

PLANTED = 200
Change = Callable[[Image.Image, int], Image.Image]


def crop(share: float) -> Change:
    """Take a share off width and height, at the four corners and around the centre in turn."""

    def change(image: Image.Image, number: int) -> Image.Image:
        off = round(share * image.width), round(share * image.height)
        x, y = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)][number % 5]
        left, top = int(x * off[0]), int(y * off[1])
        return image.crop((left, top, left + image.width - off[0], top + image.height - off[1]))

    return change


def mirrored(image: Image.Image, number: int) -> Image.Image:
    return ImageOps.mirror(image)


KINDS: dict[str, tuple[Change, int]] = {
    "encoded again, quality 75": (lambda image, number: image, 75),
    "mirrored": (mirrored, 95),
    "mirrored, quality 75": (mirrored, 75),
    **{f"{share} % taken off": (crop(share / 100), 95) for share in (3, 5, 10, 20, 30)},
    "10 % taken off, scaled to full size, quality 75": (
        lambda image, number: crop(0.1)(image, number).resize(image.size, Image.Resampling.LANCZOS),
        75,
    ),
    "mirrored, 10 % taken off": (lambda image, number: mirrored(crop(0.1)(image, number), 0), 95),
}


def extracted(folder: Path, options: Options) -> tuple[list[ImageRow], FeatureSet]:
    """Rows of a folder's images, under absolute paths, and their features."""
    extract_images(folder, options, begin=lambda what: lambda done, total: None)
    store = FeatureStore(options.store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = [replace(row, path=f"{snapshot.root}/{row.path}") for row in snapshot.rows]
    return [row for row in rows if row.readable], store.last_extracted()


def found(train: list[ImageRow], test: list[ImageRow], features: FeatureSet) -> list[Leak]:
    rows = [replace(row, split="train") for row in train]
    rows += [replace(row, split="test") for row in test]
    return near_leaks(Snapshot("/", tuple(rows), 0, 0), features)


def planted(
    train: list[ImageRow], sources: list[ImageRow], rest: list[ImageRow], options: Options
) -> list[Leak]:
    """Plant copies of training images, kind by kind, and print and return what is found."""
    besides = []
    for kind, (change, quality) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            for number, row in enumerate(sources):
                image = change(decode(Path(row.path).read_bytes()), number)
                image.save(Path(folder) / f"{number:03}.jpg", quality=quality)
            copies, features = extracted(Path(folder), options)
            leaks = found(train, copies + rest, features)
        of = {copy.path: row.path for copy, row in zip(copies, sources, strict=True)}
        right = [leak for leak in leaks if of.get(leak.path) == leak.near_copy]
        kinds = ", ".join(f"{n} {name}" for name, n in Counter(one.kind for one in right).items())
        wrong = [leak for leak in leaks if leak not in right]
        besides += [leak for leak in wrong if leak.path not in of]
        print(
            f"{kind}: {len(right)} of {len(sources)} ({kinds}); another image is named for "
            f"{sum(leak.path in of for leak in wrong)}; reported of the other {len(rest):,} test "
            f"images: {sum(leak.path not in of for leak in wrong)}",
            flush=True,
        )
    return besides


def draw(leaks: list[Leak], file: Path) -> None:
    """Draw what was reported, each beside its copy."""
    side, across = 64, 8
    sheet = Image.new("RGB", (across * (2 * side + 8), (len(leaks) // across + 1) * (side + 4)))
    for number, leak in enumerate(sorted(leaks, key=lambda leak: str(leak.kind))):
        row, column = divmod(number, across)
        for place, path in enumerate((leak.path, str(leak.near_copy))):
            image = decode(Path(path).read_bytes()).resize((side, side))
            sheet.paste(image, (column * (2 * side + 8) + place * side, row * (side + 4)))
    sheet.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("cifar4", type=Path, nargs="?", help="with train/ and test/")
    parser.add_argument(
        "--store", type=Path, required=True, help="features that are there are used"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--sheet", type=Path, help="picture of what cifar4's test images leak")
    asked = parser.parse_args()
    options = Options(store=asked.store, backbone="efficientnet_lite0", size=asked.size)
    rows, _ = extracted(asked.photographs, options)
    print(f"photographs, {asked.size} pixels")
    planted(rows[::2], rows[::2], rows[1::2], options)
    if not asked.cifar4:
        return
    rows, features = extracted(asked.cifar4, options)
    train, test = ([r for r in rows if r.split == split] for split in ("train", "test"))
    begun = time.process_time()
    leaks = found(train, test, features)
    print(
        f"cifar4, {asked.size} pixels: of {len(test)} test images against {len(train)}, reported "
        f"{Counter(leak.kind for leak in leaks)}; {time.process_time() - begun:.1f} s of CPU"
    )
    known = {leak.path for leak in leaks}
    rest = [row for row in test if row.path not in known]
    # the bound on pairs lets others of them come in where those that are known are left out
    leaks += planted(train, train[50 :: len(train) // PLANTED], rest, options)
    if asked.sheet:
        draw(list({leak.path: leak for leak in leaks}.values()), asked.sheet)


if __name__ == "__main__":
    main()
