"""`fx serve` under load, against `fx predict` on the same images, in the same run.

The generator is a process of its own: as many threads as requests at once, each with a connection
that it keeps, and one image a request, as a form. `fx predict` is timed as the difference between
many images and a few, so that neither has to pay for its start. Rounds are interleaved, and medians
are taken of them, for other programs may be running. What the generator's CPU takes from the server
is subtracted: its seconds, divided by the cores, are no part of the time. Where a machine is busy,
the ratio of CPU seconds an image says more than that of the throughputs.

    fx fit-head logreg && python benchmarks/serving.py runs/logreg-… ../shared/data/photos
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

FEW = 64  # images, of the shorter prediction
BOUNDARY = "-----------------boundary"


def predict(model: Path, images: list[Path]) -> dict[str, float]:
    """Seconds, and seconds of CPU, of an image."""
    from fx.options import Options
    from fx.stages.predict import predict_images

    def timed(count: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            for number, image in zip(range(count), itertools.cycle(images), strict=False):
                (Path(folder) / f"{number:06d}{image.suffix}").symlink_to(image.resolve())
            wall, cpu = time.perf_counter(), time.process_time()
            found = predict_images(
                model, Path(folder), Options(), begin=lambda what: lambda done, total: None
            )
            assert len(found.predictions) == count
            return time.perf_counter() - wall, time.process_time() - cpu

    timed(FEW)
    few, many = timed(FEW), timed(FEW + len(images))
    return {
        "seconds": (many[0] - few[0]) / len(images),
        "cpu": (many[1] - few[1]) / len(images),
    }


def generate(port: int, images: list[Path], concurrency: int) -> dict[str, Any]:
    """Latencies and errors of one request an image, and the seconds that all took."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="i"\r\n\r\n'
    tail = f"\r\n--{BOUNDARY}--\r\n"
    bodies = [head.encode() + image.read_bytes() + tail.encode() for image in images]
    left, latencies, errors = iter(bodies), list[float](), list[str]()
    lock = threading.Lock()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                body = next(left, None)
            if body is None:
                return
            begun = time.perf_counter()
            try:
                kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
                connection.request("POST", "/predict", body, kind)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    errors.append(f"{answer.status} {content[:200]!r}")
            except OSError as error:
                errors.append(repr(error))
            latencies.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=ask) for _ in range(concurrency)]
    wall, cpu = time.perf_counter(), time.process_time()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "latencies": latencies,
        "errors": errors,
    }


@contextmanager
def server(model: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start `fx serve`; gives the port, and the process that answers."""
    command = [sys.executable, "-m", "fx", "serve", str(model), "--port", "0", "--json"]
    process = subprocess.Popen([*command, "--no-explain"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        lines = itertools.takewhile(lambda line: line != "}\n", process.stdout)
        told = json.loads("".join(lines) + "}")
        port = int(told["url"].rstrip("/").rpartition(":")[2])
        (answering,) = psutil.Process(process.pid).children() or [psutil.Process(process.pid)]
        yield port, answering
    finally:
        process.terminate()
        process.wait()


def in_a_process(*words: object) -> dict[str, Any]:
    """Run this script with words, as a process of its own; give what it prints."""
    run = subprocess.run(
        [sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE
    )
    return dict(json.loads(run.stdout))


def measure(model: Path, folder: Path, levels: list[int], count: int, rounds: int) -> None:
    """Print a table of the levels of concurrency."""
    rows: dict[int, list[dict[str, float]]] = {level: [] for level in levels}
    predictions: list[dict[str, float]] = []
    errors = 0
    with server(model) as (port, process):
        in_a_process("--generate", port, folder, count, 8)  # not counted
        quiet = process.memory_info().rss
        for _ in range(rounds):
            predictions.append(in_a_process("--predict", model, folder, count))
            for level in levels:
                before = sum(process.cpu_times()[:2])
                found = in_a_process("--generate", port, folder, count, level)
                cpu = sum(process.cpu_times()[:2]) - before
                latencies: list[float] = found["latencies"]
                errors += len(found["errors"])
                cuts = statistics.quantiles(latencies, n=100)
                net = found["seconds"] - found["cpu"] / (os.cpu_count() or 1)
                rows[level].append(
                    {"50": cuts[49], "95": cuts[94], "99": cuts[98]}
                    | {"rate": count / net, "cpu": cpu / count, "generator": found["cpu"] / count}
                )
        grown = process.memory_info().rss
    each = statistics.median(one["seconds"] for one in predictions)
    cpu = statistics.median(one["cpu"] for one in predictions)
    print(f"fx predict: {1000 * each:.1f} ms an image, {1000 * cpu:.1f} ms of CPU")
    print("at once   50 %   95 %   99 %   throughput   CPU   generator (in those of fx predict)")
    for level, found_rows in rows.items():
        of = {name: statistics.median(one[name] for one in found_rows) for name in found_rows[0]}
        print(
            f"{level:7}  {of['50'] / each:5.1f}  {of['95'] / each:5.1f}  {of['99'] / each:5.1f}"
            f"  {of['rate'] * each:11.2f}  {of['cpu'] / cpu:4.2f}  {of['generator'] / cpu:10.2f}"
        )
    print(f"errors: {errors}; memory: {quiet / 2**20:,.0f} MB, at the end {grown / 2**20:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="a folder")
    parser.add_argument("--count", type=int, default=600, help="images of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="1,8,64")
    words = parser.parse_args()
    levels = [int(level) for level in words.concurrency.split(",")]
    measure(words.model, words.images, levels, words.count, words.rounds)


def some(folder: str, count: str) -> list[Path]:
    """So many images of a folder, the same ones again where it has fewer."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return list(itertools.islice(itertools.cycle(files), int(count)))


if __name__ == "__main__":
    if sys.argv[1] == "--predict":
        print(json.dumps(predict(Path(sys.argv[2]), some(*sys.argv[3:5]))))
    elif sys.argv[1] == "--generate":
        files = some(*sys.argv[3:5])
        print(json.dumps(generate(int(sys.argv[2]), files, int(sys.argv[5]))))
    else:
        main()
