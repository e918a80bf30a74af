"""Linear heads on rows that do not fit into memory: time, memory, and what memory would have given.

Synthetic features of ten classes (correlated, none below zero, as a network's are) go into a
feature store as float16. Each head is fitted on them by a process of its own, which reads them
again and again; and, on the first rows, by one that holds them all. Accuracies are of 20,000 other
rows.

    python benchmarks/heads_on_disk.py scratch --rows 400000,2000000 --in-memory 400000

With ``--whole ROWSxCOLUMNS`` it is logistic regression at one C in memory, with scikit-learn's own
beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from extract.images import Preprocessing
from extract.store import ExtractionRun, FeatureStore, Spec

COLUMNS, CLASSES, BATCH = 512, 10, 20_000
SAMPLE = 60_000  # rows that choose C and the temperature
SPEC = Spec(
    backbone="synthetic",
    weights="0" * 64,
    layer="pool",
    size=32,
    crops=1,
    preprocessing=Preprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    numerics="fp32",
)
HEADS = {"logreg": {"kind": "logreg"}, "svm": {"kind": "svm", "kernel": "linear"}}


def batch(number: int, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of BATCH rows, the same whenever they are made."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(number + 1)
    mixing = fixed.normal(size=(64, columns)) / 8
    means = fixed.normal(size=(CLASSES, 64))
    labels = rng.integers(0, CLASSES, BATCH)
    hidden = 0.45 * means[labels] + rng.normal(size=(BATCH, 64))
    noise = 0.3 * rng.normal(size=(BATCH, columns), loc=1)
    return np.maximum(hidden @ mixing + noise, 0).astype(np.float32), labels.astype(str)


def keys_of(number: int) -> list[bytes]:
    """Keys of a batch."""
    drawn = np.random.default_rng(number).bytes(32 * BATCH)
    return [drawn[at : at + 32] for at in range(0, len(drawn), 32)]


def batches(rows: int) -> range:
    """Numbers of the batches that so many rows are made of."""
    return range(rows // BATCH)


def fill(path: Path, rows: int) -> None:
    """Write a store of so many rows."""
    store = FeatureStore.create(path)
    with store.lock():
        run = ExtractionRun(engine="none", taken_ns=1)
        writer = store.start([(SPEC, COLUMNS)], run, dtype="float16")
        for number in batches(rows):
            features, _ = batch(number)
            writer.append(keys_of(number), [features], np.zeros((BATCH, 32), np.uint8))
        writer.commit()


def fit(path: Path, rows: int, name: str, on_disk: bool) -> dict[str, object]:
    """Fit a head on the first rows of a store, and measure it and the process."""
    from heads.fitting import fit_head, fit_head_on_disk

    features = FeatureStore(path).last_extracted()
    keys = [key for number in batches(rows) for key in keys_of(number)]
    labels = np.concatenate([batch(number)[1] for number in batches(rows)]).astype("S2")
    stored = features.on_disk(keys)
    del keys
    begun, busy = time.perf_counter(), time.process_time()
    head, *_ = fit_head_on_disk(stored, labels, sample_rows=SAMPLE, **HEADS[name])
    if not on_disk:  # at the same C, for the same optimum
        choices = {**HEADS[name], "c": head.c}
        begun, busy = time.perf_counter(), time.process_time()
        head = fit_head(stored[np.arange(rows)], labels, **choices)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
    X, y = batch(10**6)
    return {
        "accuracy": round(float((head.predict(X) == y).mean()), 5),
        "C": head.c,
        "seconds": round(seconds, 1),
        "CPU": round(cpu, 1),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def whole(rows: int, columns: int, ours: bool) -> dict[str, object]:
    """Fit logistic regression on rows in memory at C = 0.01, scaled alike."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    from heads.kinds.logreg import Logistic
    from heads.learner import standardiser

    X, y = np.empty((rows, columns), np.float32), np.empty(rows, "U1")
    for start in range(0, rows, BATCH):
        features, labels = batch(start // BATCH, columns)
        block, left = slice(start, start + BATCH), rows - start
        X[block], y[block] = features[:left], labels[:left]
    held = psutil.Process().memory_info().rss // 1024
    begun, busy = time.perf_counter(), time.process_time()
    if ours:
        with threadpool_limits(1):  # as in `fit_head`: it has threads of its own
            fitted = Logistic().fit(X, y, 0.01, jobs=2)
    else:
        scaler = standardiser([X])
        classifier = LogisticRegression(C=0.01, max_iter=1000).fit(scaler.transform(X), y)
        fitted = classifier
    seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
    T, truth = batch(10**6, columns)
    predicted = fitted.predict(T if ours else scaler.transform(T))
    return {
        "accuracy": round(float((predicted == truth).mean()), 5),
        "seconds": round(seconds, 1),
        "CPU": round(cpu, 1),
        "MB above the rows": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, help="folder for the store")
    parser.add_argument("--rows", default="400000,2000000")
    parser.add_argument("--in-memory", type=int, default=400_000, help="rows; 0 for none")
    parser.add_argument("--whole", help="such as 200000x1280")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.scratch / "rows.zarr"
    if options.one:
        print(json.dumps(run_task(path, json.loads(options.one))))
        return
    if options.whole:
        rows, columns = map(int, options.whole.split("x"))
        tasks = [("whole", rows, columns, True), ("whole", rows, columns, False)]
    else:
        sizes = [int(rows) for rows in options.rows.split(",")]
        if not path.exists():
            fill(path, max(sizes))
        tasks = [("fit", rows, name, True) for name in HEADS for rows in sizes]
        if options.in_memory:
            tasks += [("fit", options.in_memory, name, False) for name in HEADS]
    for task in tasks:
        command = [sys.executable, __file__, str(options.scratch), "--one", json.dumps(task)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(*task, done.stdout.strip(), flush=True)


def run_task(path: Path, task: list[object]) -> dict[str, object]:
    """Run one task, in a process of its own."""
    what, *arguments = task
    return fit(path, *arguments) if what == "fit" else whole(*arguments)


if __name__ == "__main__":
    main()
