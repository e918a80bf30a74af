"""The feature store at many rows: CPU time a row, at one size against another, and memory.

Synthetic rows of 256 float16 columns go through the store itself, by one writer, as an extraction's
do: appended in batches, looked up, offered again, verified, and read at random. Only the store's
own CPU time counts, not that of making rows. Disk: 576 bytes a row.

    python benchmarks/store_at_size.py scratch --rows 1000000,20000000
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from extract.images import Preprocessing
from extract.store import ExtractionRun, FeatureStore, Spec

COLUMNS, BATCH = 256, 4096
SPEC = Spec(
    backbone="synthetic",
    weights="0" * 64,
    layer="pool",
    size=32,
    crops=1,
    preprocessing=Preprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    numerics="fp32",
)
RUN = ExtractionRun(engine="none", taken_ns=1)


def keys_of(batch: int) -> list[bytes]:
    """Keys of a batch, the same whenever they are made."""
    drawn = np.random.default_rng(batch).bytes(32 * BATCH)
    return [drawn[at : at + 32] for at in range(0, len(drawn), 32)]


def measure(path: Path, rows: int) -> dict[str, float]:
    """Microseconds of CPU a row, for each way of using the store, and bytes of memory a row."""
    shutil.rmtree(path, ignore_errors=True)
    spent: dict[str, float] = {}
    batches = rows // BATCH

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        spent[what] = spent.get(what, 0) + time.process_time() - begun

    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(BATCH, COLUMNS)).astype(np.float32) for _ in range(8)]
    hashes = rng.integers(0, 256, (BATCH, 32), np.uint8)
    store = FeatureStore.create(path)
    for what in ("append", "reuse"):
        with store.lock():
            with timed(what):
                writer = store.start([(SPEC, COLUMNS)], RUN, dtype="float16")
            for batch in range(batches):
                keys = keys_of(batch)
                with timed(what):
                    writer.append(keys, [blocks[batch % len(blocks)]], hashes)
            with timed(what):
                writer.commit()
        for feature_set in writer.sets:
            feature_set.close()
        del writer
    with timed("index"):
        opened = store.last_extracted()
        index = opened.rows
    memory = sum(one.nbytes for one in vars(index).values() if isinstance(one, np.ndarray))
    some = rng.integers(0, batches, 25)
    for batch in some.tolist():
        keys = keys_of(batch)
        with timed("look-up"):
            found = index.find(keys)
        assert (found == batch * BATCH + np.arange(BATCH)).all()
    reads = 0
    for _ in range(40):
        picked = [keys_of(batch)[at] for batch, at in rng.integers(0, (batches, BATCH), (16, 2))]
        with timed("random read"):
            opened.features(picked)
        reads += len(picked)
    with timed("verify"):
        damage = store.verify()
    assert not damage, damage
    count = {"look-up": BATCH * len(some), "random read": reads}
    result = {what: 1e6 * cpu / count.get(what, rows) for what, cpu in spent.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shutil.rmtree(path)
    return result | {"index, bytes a row": memory / rows, "peak, bytes a row": peak / rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, help="folder for the stores, which are deleted")
    parser.add_argument("--rows", default="1000000,20000000")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.scratch / "store.zarr", options.one)))
        return
    options.scratch.mkdir(parents=True, exist_ok=True)
    found = {}
    for rows in map(int, options.rows.split(",")):
        command = [sys.executable, __file__, str(options.scratch), "--one", str(rows)]
        found[rows] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    first, *others = found
    for what in found[first]:
        values = [f"{found[rows][what]:.4g} at {rows:,}" for rows in found]
        ratios = [f"{found[rows][what] / found[first][what]:.2f}" for rows in others]
        print(f"{what}: {', '.join(values)}; ratio {', '.join(ratios) or '-'}")


if __name__ == "__main__":
    main()
