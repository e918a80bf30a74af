"""Stage one on a Ray cluster: what it costs beside the plain run, and what it survives.

The cost is CPU time, of this process and all below it, on one machine. What it takes to begin, the
cluster, its processes and the network, is what a few images take, and is told apart:

    python benchmarks/cluster.py cost ../shared/data/photos /tmp/stores --backbone resnet50

Chaos: a cluster of a head and two machines is pretended here, and the command runs on them. Images
and store lie on an S3 server of this process, which refuses a tenth of all requests. In each run,
in any order, a machine is killed and another comes, the command is killed and given again, and the
server is gone for ten seconds: each after the cluster has read a random number of images. Then each
key must have exactly one row, the plain run's.

    python benchmarks/cluster.py chaos ../shared/data/photos /tmp/stores --times 10 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from extract.engines import make_engine
from extract.extraction import extract
from extract.files import place, write_whole
from extract.images import Reading, find_images
from extract.store import FeatureStore
from fx.options import Options, open_backbone

if TYPE_CHECKING:
    from extract.extraction import ExtractResult

OBJECT_STORE = 300 * 2**20
TOLERANCE = 1e-3
# Seconds between two looks at the processes: each takes 20 ms.
SAMPLED = 1.0
# Images that cost next to nothing but the start.
FEW_IMAGES = 8
WORKERS = 2
# Images that are read before the next blow, at least and at most, as a share of all.
SHARES = 0.05, 0.3
# Share of requests that the server of chaos refuses, and seconds for which it is gone.
REFUSED, GONE = 0.1, 10.0


class CPUTime(threading.Thread):
    """CPU time of this process and all below it, those that have ended included.

    What a process took is what it had when it was last seen: its parent may not have waited for it.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._taken: dict[psutil.Process, float] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        while True:
            self.seconds()
            time.sleep(SAMPLED)

    def seconds(self) -> float:
        with self._lock:
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    self._taken[process] = sum(process.cpu_times()[:2])
                except psutil.Error:
                    continue
            return sum(self._taken.values())


def cost(arguments: argparse.Namespace) -> None:
    from extract.cluster import fill_on

    cpu_time = CPUTime()
    cpu_time.start()
    backbone = open_backbone(options(arguments))
    source = find_images(place(arguments.images), Reading())
    few = replace(source, entries=source.entries[:FEW_IMAGES], min_images=1)
    taken: dict[str, list[float]] = {"plain": [], "cluster": []}
    for kind, of_kind in taken.items():
        for images in (few, source):
            engine = make_engine(
                backbone.module, backbone.preprocessing, identity=backbone.identity
            )
            before, begun = cpu_time.seconds(), time.perf_counter()
            store = new_store(arguments, f"{kind}-{len(images.entries)}")
            fill = fill_on("ray") if kind == "cluster" else None
            done = extract(images, backbone=backbone, engine=engine, store=store, fill=fill)
            seconds = time.perf_counter() - begun
            of_kind.append(cpu_time.seconds() - before)
            said = f"{kind}: {done.new:,} images, {of_kind[-1]:.1f} s of CPU, {seconds:.1f} s"
            print(said, flush=True)
    (plain_start, plain), (start, cluster) = taken.values()
    print(
        f"the cluster takes {(cluster - start) / (plain - plain_start) - 1:+.1%} CPU time, start "
        f"apart ({start - plain_start:.1f} s), and {cluster / plain - 1:+.1%} with it"
    )


def on_s3(images: str) -> tuple[Any, str]:
    """Begin a server, have the images lie there, and give both the server and its bucket."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from s3_server import S3Server

    server = S3Server()
    os.environ.update(server.environment)
    bucket = server.new_bucket()
    for file in Path(images).rglob("*"):
        if file.is_file():
            write_whole(place(bucket) / "images" / str(file.relative_to(images)), file.read_bytes())
    return server, bucket


def chaos(arguments: argparse.Namespace) -> None:
    from ray.cluster_utils import Cluster

    from extract.cluster.filling import PROCESSES_KEPT

    # as where fx begins the cluster: these machines have few cores, too
    os.environ.setdefault("RAY_num_workers_soft_limit", str(PROCESSES_KEPT))
    backbone = open_backbone(options(arguments))
    source = find_images(place(arguments.images), Reading())
    plain = new_store(arguments, "plain")
    expected = extract(
        source,
        backbone=backbone,
        engine=make_engine(backbone.module, backbone.preprocessing, identity=backbone.identity),
        store=plain,
    )
    server, bucket = on_s3(arguments.images)
    generator, refusing = random.Random(arguments.seed), random.Random(arguments.seed)
    server.refuse = lambda _: 503 if refusing.random() < REFUSED else None
    machine = {"num_cpus": arguments.cores, "object_store_memory": OBJECT_STORE}
    for number in range(arguments.times):
        name = f"chaos-{arguments.seed}-{number}"
        machines = Cluster(initialize_head=True, head_node_args=machine | {"num_cpus": 0})
        workers = [machines.add_node(**machine) for _ in range(WORKERS)]
        command = [
            *(sys.executable, "-m", "fx", "extract", f"{bucket}/images", "--json"),
            *("--store", f"{bucket}/{name}", "--cluster", machines.address),
            *("--backbone", arguments.backbone, "--weights", arguments.weights),
            *(("--size", str(arguments.size)) if arguments.size else ()),
        ]
        coming = generator.sample(["machine", "command", "server"], 3)
        came: list[str] = []
        begun = time.perf_counter()
        running = begin(command)
        while coming:
            reads = server.requests["GET"]
            reads += generator.uniform(*SHARES) * len(source.entries)
            while server.requests["GET"] < reads and running.poll() is None:
                time.sleep(0.05)
            if running.poll() is not None:
                break
            came.append(coming.pop())
            if came[-1] == "machine":
                lost = workers.pop(generator.randrange(WORKERS))
                machines.remove_node(lost, allow_graceful=False)
                workers.append(machines.add_node(**machine))
            elif came[-1] == "command":
                running.kill()
                running.wait()
                running = begin(command)
            else:
                server.stop()
                time.sleep(GONE)
                server.start()
        running.wait()
        wrong = differences(plain, FeatureStore(place(bucket) / name), expected)
        print(
            f"{name}: status {running.returncode} after {time.perf_counter() - begun:.0f} s; "
            f"{', '.join(came)}; {wrong or 'all rows are there once, and right'}",
            flush=True,
        )
        machines.shutdown()


def begin(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def differences(plain: FeatureStore, store: FeatureStore, expected: ExtractResult) -> str:
    """Say what is lost, doubled or wrong; nothing if nothing is."""
    found = [str(damage) for damage in store.verify()]
    for layer in expected.layers:
        right, ours = plain.open_set(layer.spec), store.open_set(layer.spec)
        keys = sorted(right.rows)
        if sorted(ours.rows) != keys or ours.committed != len(keys):
            found.append(f"{layer.layer}: {len(ours.rows)} keys in {ours.committed} rows")
            continue
        distance = np.linalg.norm(ours.features(keys) - right.features(keys), axis=1)
        wrong = distance > TOLERANCE * np.linalg.norm(right.features(keys), axis=1)
        if wrong.any():
            found.append(f"{layer.layer}: {wrong.sum()} rows are others")
        if (ours.hashes(keys) != right.hashes(keys)).any():
            found.append(f"{layer.layer}: perceptual hashes are others")
    return "; ".join(found)


def options(arguments: argparse.Namespace) -> Options:
    chosen: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("backbone", "weights", "size")
    }
    return Options(store=place(arguments.stores) / "none", **chosen)


def new_store(arguments: argparse.Namespace, name: str) -> FeatureStore:
    return FeatureStore.create(place(arguments.stores) / f"{name}-{os.getpid()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "chaos"))
    parser.add_argument("images", help="folder")
    parser.add_argument("stores", help="folder of new stores")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--size", type=int)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of each machine")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given = parser.parse_args()
    {"cost": cost, "chaos": chaos}[given.what](given)
