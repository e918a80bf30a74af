"""Ways from JPEG files to a network's pixels, each in threads or processes: images a second.

Every way reads the same files and ends with the centre squares that the network would see. The
photographs are taken as they are, and a sample of them enlarged, as cameras make them: there a
JPEG that is decoded at a reduced scale saves most. In the last column the pixels feed the network
in fx's own engine (fp32), which takes the cores that decoding leaves.

All ways have their turn in every round. Rates are medians over the rounds, and ratios medians of
the ratios within a round, to fx's read_pixels in two threads. simplejpeg is no dependency of fx:

    pip install simplejpeg
    python benchmarks/decoding.py ../shared/data/photos --runs 7
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import InterpolationMode, v2

from extract.backbones import load_backbone
from extract.engines import Engine, make_engine
from extract.images import Preprocessing, read_pixels
from extract.images.crops import prepare

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

BATCH = 32
Read = Callable[[str], NDArray[np.uint8]]


def by_fx(file: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    return read_pixels(Path(file).read_bytes(), preprocessing)


def by_pillow(file: str, steps: v2.Transform) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(steps(image.convert("RGB")))


def by_torchvision(file: str, steps: v2.Transform) -> NDArray[np.uint8]:
    square = steps(decode_jpeg(read_file(file), mode=ImageReadMode.RGB))
    return square.permute(1, 2, 0).contiguous().numpy()


def by_simplejpeg(
    file: str, preprocessing: Preprocessing, steps: v2.Transform | None = None
) -> NDArray[np.uint8]:
    least = 2 * preprocessing.resize  # the margin that read_pixels keeps
    data = Path(file).read_bytes()
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
    if steps is None:
        return prepare(Image.fromarray(pixels), preprocessing)
    return steps(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).contiguous().numpy()


def enlarge(file: Path, times: int, folder: Path) -> str:
    target = folder / f"{times}-{file.name}"
    with Image.open(file) as image:
        size = (times * image.width, times * image.height)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
    return str(target)


def decoded(files: list[str], read: Read, pool: Executor) -> float:
    began = time.perf_counter()
    for _ in pool.map(read, files, chunksize=4):
        pass
    return len(files) / (time.perf_counter() - began)


def fed(files: list[str], read: Read, pool: Executor, engine: Engine) -> float:
    size = engine.preprocessing.size
    began = 0.0

    def batches() -> Iterator[NDArray[np.uint8]]:
        nonlocal began
        for _ in range(8):  # until the network is compiled, and every request has run
            yield np.zeros((BATCH, size, size, 3), np.uint8)
        began = time.perf_counter()
        squares = pool.map(read, files, chunksize=4)
        while batch := list(islice(squares, BATCH)):
            yield np.stack(batch).reshape(-1, size, size, 3)

    for _ in engine.run(batches()):
        pass
    return len(files) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, weights=options.weights)
    pre = backbone.preprocessing
    engine = make_engine(backbone.module, pre, batch_size=BATCH, identity=backbone.weights_hash)
    torch.set_num_threads(1)  # one thread for one image: the pool has the others
    interpolation = InterpolationMode(pre.interpolation)
    steps = v2.Compose([v2.Resize(pre.resize, interpolation), v2.CenterCrop(pre.size)])
    one, two, four = (ThreadPoolExecutor(number) for number in (1, 2, 4))
    processes = ProcessPoolExecutor(2, get_context("spawn"))
    fx = partial(by_fx, preprocessing=pre)
    ways: dict[str, tuple[Read, Executor]] = {
        "read_pixels, 2 threads": (fx, two),
        "read_pixels, 1 thread": (fx, one),
        "read_pixels, 4 threads": (fx, four),
        "read_pixels, 2 processes": (fx, processes),
        "Pillow in full, torchvision's Resize": (partial(by_pillow, steps=steps), two),
        "torchvision.io, v2.Resize": (partial(by_torchvision, steps=steps), two),
    }
    if simplejpeg:
        simple = partial(by_simplejpeg, preprocessing=pre)
        ways["simplejpeg, fx's prepare"] = (simple, two)
        ways["simplejpeg, v2.Resize"] = (partial(simple, steps=steps), two)
    with tempfile.TemporaryDirectory() as scratch:
        photos = sorted(options.photos.iterdir())
        files = {"as they are": [str(file) for file in photos]}
        for times in (4, 10):
            to_size = partial(enlarge, times=times, folder=Path(scratch))
            files[f"{times} x"] = list(two.map(to_size, photos[:: max(1, len(photos) // 40)]))
        columns = [*files, "network fed"]
        rates: dict[tuple[str, str], list[float]] = defaultdict(list)
        for column in columns:
            for turn in range(options.runs + 1):
                for way, (read, pool) in ways.items():
                    if column in files:
                        rate = decoded(files[column], read, pool)
                    else:
                        rate = fed(2 * files["as they are"], read, pool, engine)
                    if turn:  # in the first, processes start and files come from the disk
                        rates[column, way].append(rate)
    print(f"{'images/s, ratio':36}" + "".join(f"{column:>15}" for column in columns))
    for way in ways:
        line = f"{way:36}"
        for column in columns:
            pairs = zip(rates[column, way], rates[column, "read_pixels, 2 threads"], strict=True)
            ratio = statistics.median(rate / base for rate, base in pairs)
            line += f"{statistics.median(rates[column, way]):9.1f} {ratio:5.2f}"
        print(line)


if __name__ == "__main__":
    main()
