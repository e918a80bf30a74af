"""Zarr on S3 by two libraries: obstore, which fx uses, and fsspec with s3fs.

A set's shape of arrays is written, read whole, and read at random on a local S3 server, by turns.
Times are dominated by that server, which is Python; what can be compared is CPU time of the client
process, without the server's, and the number of requests.

    pip install s3fs
    python benchmarks/object_storage.py --runs 5
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

ROWS, COLUMNS, CHUNK, SHARD = 8192, 1280, 256, 1024
LIBRARIES = ("obstore", "fsspec")


def store_of(library: str, url: str) -> Any:
    if library == "obstore":
        from obstore.store import from_url
        from zarr.storage import ObjectStore

        return ObjectStore(from_url(url, client_options={"allow_http": True}))
    from zarr.storage import FsspecStore

    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    return FsspecStore.from_url(url, storage_options=options)


def measured(library: str, url: str) -> dict[str, float]:
    """Seconds of CPU of this process, for each of three jobs."""
    X = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    rows = np.random.default_rng(1).integers(0, ROWS, 100)
    found = {}
    group = zarr.create_group(store_of(library, url))
    array = group.create_array(
        "features",
        shape=X.shape,
        chunks=(CHUNK, COLUMNS),
        shards=(SHARD, COLUMNS),
        dtype=X.dtype,
        compressors=None,
    )
    begun = time.process_time()
    array[:] = X
    found["write"] = time.process_time() - begun
    opened: Any = zarr.open_group(store_of(library, url), mode="r")["features"]
    begun = time.process_time()
    assert (opened[:] == X).all()
    found["read"] = time.process_time() - begun
    begun = time.process_time()
    for row in rows.tolist():
        opened[row]
    found["read 100 rows at random"] = time.process_time() - begun
    return found


def serve(bucket: Any) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from s3_server import S3Server

    server = S3Server()
    bucket.send((server.environment, server.new_bucket()))
    bucket.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(there,))
    server.start()
    environment, bucket = here.recv()
    os.environ.update(environment)
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in LIBRARIES}
    for number in range(options.runs + 1):
        for library, found in runs.items():
            one = measured(library, f"{bucket}/{library}-{number}")
            # the first run of each imports
            if number:
                found.append(one)
    for job in runs["obstore"][0]:
        medians = [statistics.median(one[job] for one in runs[name]) for name in LIBRARIES]
        said = ", ".join(
            f"{name} {1000 * median:.0f} ms"
            for name, median in zip(LIBRARIES, medians, strict=True)
        )
        print(f"{job}: {said}, ratio {medians[1] / medians[0]:.2f}")
    here.send(None)
    server.join()


if __name__ == "__main__":
    main()
