"""Fine-tuning against the plain eager loop, in images a second over five epochs.

The plain loop is what one writes in a notebook: ``ImageFolder``, ``DataLoader`` with a worker a
core, ``requires_grad = False`` on the frozen blocks, the whole network forward in eager fp32 (on a
GPU where there is one) for every batch of every epoch, AdamW. fx gets the features of stage one
(which it would have from the head that it starts from) and is timed from there to the delivered
model: head, activations at the freezing boundary, training, validation after each epoch, writing.
Both take the same images. ``fp32``, ``bf16`` and ``fp16`` are the precision of features and frozen
blocks, fx's ``--precision``; what trains does so in bf16 where the device has it.

    python benchmarks/finetuning.py ../shared/data/photos --unfreeze 1,2,all --runs 3
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
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
from extraction import write_files

if TYPE_CHECKING:
    from extract.backbones import Backbone

BATCH, EPOCHS = 32, 5
PRECISIONS = ("fp32", "bf16", "fp16")
MODES = ("plain", *PRECISIONS)


def plain(backbone: Backbone, folder: Path, unfreeze: int | str) -> int:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from extract.engines import resolve_device
    from finetune.blocks import cut

    device = resolve_device()
    pre = backbone.preprocessing
    steps = transforms.Compose(
        [
            transforms.Resize(pre.resize),
            transforms.CenterCrop(pre.size),
            transforms.ToTensor(),
            transforms.Normalize(pre.mean, pre.std),
        ]
    )
    module = backbone.module.requires_grad_(False)
    cut(module, backbone.trained_size, unfreeze)[1].requires_grad_(True)
    images = ImageFolder(str(folder), steps)
    network = nn.Sequential(module.eval(), nn.Linear(backbone.dim, len(images.classes))).to(device)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    workers = os.cpu_count() or 1
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=workers)
    print("ready", flush=True)
    for _ in range(EPOCHS):
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(network(pixels.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return EPOCHS * len(images)


def staged(
    backbone: Backbone, folder: Path, unfreeze: int | str, precision: str, scratch: Path
) -> int:
    from extract.engines import make_engine, resolve_device
    from extract.engines import training_precision as precision_for
    from extract.extraction import extract
    from extract.images import Snapshot, find_images
    from extract.store import FeatureStore
    from finetune.finetuning import TrainingData, finetune
    from finetune.settings import FinetuneSettings
    from finetune.split import Resources

    device = resolve_device()
    store = FeatureStore.create(scratch / "features.zarr")
    engine = make_engine(backbone.module, backbone.preprocessing, precision=precision)
    extract(find_images(folder), backbone=backbone, engine=engine, store=store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = [*snapshot.split("train"), *snapshot.split("test")]
    features = store.last_extracted().features
    print("ready", flush=True)
    result = finetune(
        backbone,
        # all images train; a few of them stand for what is validated and tested on
        TrainingData(folder, rows, rows[::16], rows[::16], snapshot.fingerprint),
        features,
        settings=FinetuneSettings(
            unfreeze=unfreeze,
            epochs=EPOCHS,
            patience=EPOCHS,
            batch_size=BATCH,
            precision=precision_for("auto", device),
        ),
        directory=scratch / "run",
        resources=Resources(device=device, cache=scratch / "cache", precision=precision),
    )
    return result.epochs * result.n_train


def child(mode: str, name: str, size: int, unfreeze: str, folder: Path) -> None:
    from extract.backbones import load_backbone

    backbone = load_backbone(name, weights="random", size=size)
    depth: int | str = unfreeze if unfreeze == "all" else int(unfreeze)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if mode == "plain":
            images = plain(backbone, folder, depth)
        else:
            images = staged(backbone, folder, depth, mode, Path(scratch))
        print(f"done {images}", flush=True)


def rate(mode: str, options: argparse.Namespace, unfreeze: str, folder: Path) -> float:
    """Images a second from the child's first line to its last."""
    command = [sys.executable, __file__, str(folder), "--child", mode, "--unfreeze", unfreeze]
    command += ["--backbone", options.backbone, "--size", str(options.size)]
    times: dict[str, float] = {}
    images = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, count = line.strip().partition(" ")
            times[word] = time.perf_counter()
            images = int(count or images)
    if process.returncode or not {"ready", "done"} <= times.keys():
        raise SystemExit(f"{' '.join(command)} failed")
    return images / (times["done"] - times["ready"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--unfreeze", default="1,2,all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--modes", default="plain,fp32,bf16")
    parser.add_argument("--child", choices=MODES)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.backbone, options.size, options.unfreeze, options.photos)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        write_files(options.photos, folder, options.copies)
        for unfreeze in options.unfreeze.split(","):
            rates: dict[str, list[float]] = {mode: [] for mode in options.modes.split(",")}
            for _ in range(options.runs):
                for mode, found in rates.items():
                    found.append(rate(mode, options, unfreeze, folder))
                    print(f"{unfreeze} {mode}: {found[-1]:.1f} images/s", file=sys.stderr)
            median = {mode: statistics.median(values) for mode, values in rates.items()}
            record = {"backbone": options.backbone, "size": options.size, "unfreeze": unfreeze}
            against = {
                f"{mode} against plain": median[mode] / median["plain"]
                for mode in median
                if mode != "plain" and "plain" in median
            }
            print(json.dumps({**record, **median, **against}))


if __name__ == "__main__":
    main()
