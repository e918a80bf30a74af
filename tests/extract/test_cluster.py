"""Extraction on a Ray cluster: the result is the single machine's, whatever fails on the way."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_image, upload, write_classes
from s3_server import S3Server

from extract.backbones import Backbone
from extract.cluster import fill_on
from extract.engines import Engine, make_engine
from extract.errors import FxError
from extract.extraction import ExtractResult, Fill, extract
from extract.images import ImageRow, Snapshot, find_images
from extract.store import FeatureStore

ray = pytest.importorskip("ray", reason="Ray is not installed")
from extract.cluster import filling, workers  # noqa: E402 (they import Ray)

ON_RAY = fill_on("ray")
SETTINGS = {
    "object_store_memory": 200 * 2**20,
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": "ERROR",
}
LAYERS = ("pool", "blocks.6")


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """Clusters that report to nobody, and keep their processes as those do that fx begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_num_workers_soft_limit", str(filling.PROCESSES_KEPT))
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One machine of two cores."""
    ray.init("local", num_cpus=2, **SETTINGS)
    yield
    ray.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixty images of two classes, a copy, one that is damaged, and one that is very narrow."""
    root = write_classes(tmp_path / "data", per_class=30)
    shutil.copy(root / "a" / "001.png", root / "a" / "copy.png")
    (root / "a" / "damaged.png").write_bytes((root / "a" / "002.png").read_bytes()[:300])
    make_image(1, 7).resize((300, 6)).save(root / "b" / "narrow.png")
    return root


def run(
    images: Path | str,
    store: Path | str,
    backbone: Backbone,
    fill: Fill | None = ON_RAY,
    **options: object,
) -> ExtractResult:
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu", batch_size=4)
    return extract(
        find_images(images),
        backbone=backbone,
        engine=engine,
        store=FeatureStore.create(store),
        fill=fill,
        **options,
    )


def contents(store: Path | str, result: ExtractResult) -> list[Any]:
    """All that an extraction leaves, without the order of the rows and times."""
    opened = FeatureStore(store)
    assert not opened.verify()
    where = opened.path
    files = where.rglob("*") if isinstance(where, Path) else [path for path, _ in where.walk()]
    assert not [file for file in files if ".partial" in str(file)]
    rows = Snapshot.from_parquet(*opened.read_snapshot()).rows
    found: list[Any] = [rows, result.odd, result.failed, result.duplicates]
    for layer in result.layers:
        feature_set = opened.open_set(layer.spec)
        assert len(feature_set.rows) == feature_set.committed
        found.append({key: feature_set.features([key]).tobytes() for key in feature_set.rows})
        found.append(feature_set.hashes(sorted(feature_set.rows)).tobytes())
    return found


@pytest.mark.usefixtures("cluster")
def test_a_cluster_leaves_what_one_machine_leaves(
    images: Path, tmp_path: Path, backbone: Backbone
) -> None:
    plain = run(images, tmp_path / "plain", backbone, None)
    spread = run(images, tmp_path / "spread", backbone)
    assert (spread.new, spread.images) == (61, 63)
    assert len(spread.failed) == len(spread.duplicates) == len(spread.odd) == 1
    assert contents(tmp_path / "spread", spread) == contents(tmp_path / "plain", plain)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_of_several_layers_are_written_by_machines(
    images: Path,
    tmp_path: Path,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
) -> None:
    two = backbone.at_layers(LAYERS)
    # 8 rows of the one layer are a shard, and 32 of the other
    monkeypatch.setattr("extract.store.writer.SHARD_BYTES", 8 * 1280 * np.dtype(dtype).itemsize)
    # some rows are there of one layer, which then ends within a shard
    few = tmp_path / "few"
    few.mkdir()
    for number in range(5):
        shutil.copy(images / "a" / f"{number:03d}.png", few)
    for fill, name in ((None, "plain"), (ON_RAY, "spread")):
        run(few, tmp_path / name, backbone, fill, dtype=dtype)
    monkeypatch.setattr(filling, "COMMIT_INTERVAL", 1000.0)
    adopted = []
    adopt = filling.FeatureWriter.adopt

    def count(self: Any, number: int, keys: list[bytes], *others: Any) -> None:
        adopt(self, number, keys, *others)
        adopted.append((number, len(keys)))

    monkeypatch.setattr(filling.FeatureWriter, "adopt", count)
    plain = run(images, tmp_path / "plain", two, None, dtype=dtype)
    spread = run(images, tmp_path / "spread", two, dtype=dtype)
    # of the first, five rows were there, and three came to them
    assert sorted(adopted) == [*6 * [(0, 8)], (1, 32)]
    assert contents(tmp_path / "spread", spread) == contents(tmp_path / "plain", plain)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_tar_is_listed_by_no_machine(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(images, "")
    plain = run(tmp_path / "images.tar", tmp_path / "plain", backbone, None)

    def read(table: Any, *, reading: Any) -> Any:
        from extract.images.shards import tars

        tars.list_tar = None  # type: ignore[assignment]
        return workers.read_images(table, reading=reading)

    monkeypatch.setattr(filling, "read_images", read)
    spread = run(tmp_path / "images.tar", tmp_path / "spread", backbone)
    assert spread.new == 61
    assert contents(tmp_path / "spread", spread) == contents(tmp_path / "plain", plain)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_what_is_stored_is_not_read_again(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.extraction.RACY_NS", -(10**12))
    (images / "a" / "damaged.png").unlink()
    run(images, tmp_path / "store", backbone)

    def no_cluster(*arguments: object) -> None:
        raise AssertionError("something was read")

    monkeypatch.setattr(filling, "_compute", no_cluster)
    again = run(images, tmp_path / "store", backbone, snapshot="again")
    assert (again.new, again.reused) == (0, 62)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_of_moved_images_only_new_ones_are_computed(
    images: Path, tmp_path: Path, backbone: Backbone
) -> None:
    run(images, tmp_path / "store", backbone, None)
    moved = images.rename(tmp_path / "moved")
    make_image(2, 999).save(moved / "a" / "new.png")
    again = run(moved, tmp_path / "store", backbone)
    assert (again.new, again.reused) == (1, 62)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_what_fails_once_is_done_again(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(images, tmp_path / "plain", backbone, None)
    monkeypatch.setattr(filling, "read_images", _failing_once(tmp_path / "read", RuntimeError))
    monkeypatch.setattr(filling, "records_of", _failing_once(tmp_path / "records", None))
    spread = run(images, tmp_path / "spread", backbone)
    assert (tmp_path / "read").exists()
    assert (tmp_path / "records").exists()
    assert contents(tmp_path / "spread", spread) == contents(tmp_path / "plain", plain)


def _failing_once(marker: Path, error: type[Exception] | None) -> Any:
    """Fail in place of a worker's function once, or die where there is no error."""
    function = workers.read_images if error else workers.records_of

    def once(*arguments: Any, **named: Any) -> Any:
        if not marker.exists():
            marker.touch()
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise error("once")
        return function(*arguments, **named)

    return once


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_what_always_fails_is_told_in_one_line(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(table: Any, *, reading: Any) -> None:
        raise RuntimeError("the network is down")

    monkeypatch.setattr(filling, "read_images", fail)
    with pytest.raises(FxError, match=r"^the cluster fails at 63 images: the network is down; "):
        run(images, tmp_path / "store", backbone)

    def refuse(table: Any, *, reading: Any) -> None:
        raise FxError("no folder here")

    monkeypatch.setattr(filling, "read_images", refuse)
    with pytest.raises(FxError, match="no folder here"):
        run(images, tmp_path / "store", backbone)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_machine_without_fx_is_told(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(table: Any, *, reading: Any) -> None:
        raise ModuleNotFoundError("No module named 'extract'")

    monkeypatch.setattr(filling, "read_images", fail)
    with pytest.raises(FxError, match="install fx there"):
        run(images, tmp_path / "store", backbone)


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_an_actor_that_is_killed_costs_nothing(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(images, tmp_path / "plain", backbone, None)

    class Dying(workers.Network):
        def __call__(self, table: Any) -> Any:
            if len(marks := list(tmp_path.glob("dead*"))) < 2:
                (tmp_path / f"dead{len(marks)}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(table)

    monkeypatch.setattr(filling, "Network", Dying)
    spread = run(images, tmp_path / "spread", backbone)
    assert len(list(tmp_path.glob("dead*"))) == 2
    assert contents(tmp_path / "spread", spread) == contents(tmp_path / "plain", plain)


def test_a_cluster_that_is_not_there_is_told(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cluster(*arguments: object, **options: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(filling, "ray", SimpleNamespace(**vars(ray)))
    monkeypatch.setattr(filling.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(filling.ray, "init", no_cluster)
    with pytest.raises(FxError, match=r"no Ray cluster at ray://far:10001 \(nobody answers\)"):
        run(images, tmp_path / "store", backbone, fill_on("ray://far:10001"))


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_machine_of_other_versions_is_told(
    images: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Engine.versions
    monkeypatch.setattr(Engine, "versions", lambda self: versions(self) | {"torch": "0.1"})
    with pytest.raises(FxError, match=r"has torch .* instead of 0\.1; install the same"):
        run(images, tmp_path / "store", backbone)


def test_images_that_only_this_machine_sees_are_told(images: Path, backbone: Backbone) -> None:
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu")
    source = find_images(images)
    rows = [
        ImageRow(e.path, b"", e.label, None, None, "No such file", False, None)
        for e in source.entries
    ]
    with pytest.raises(FxError, match="can be opened here, and not on a machine of the cluster"):
        filling._check_seen_by_all(source, engine, rows)
    shutil.rmtree(images)
    filling._check_seen_by_all(source, engine, rows)


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "extract.cluster.filling")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FxError, match=r"`cluster` takes Ray, .*fx-images\[ray\]"):
        fill_on("ray")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_a_client_of_a_cluster_leaves_what_one_machine_leaves(images: Path, tmp_path: Path) -> None:
    client = free_port()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    begun = f"start --head --block --port {free_port()} --ray-client-server-port {client}"
    settings = "--num-cpus 2 --object-store-memory 200000000 --include-dashboard false"
    head = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), *begun.split(), *settings.split()],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", client)):
                break
            time.sleep(0.5)
        results = []
        for name, more in (("plain", []), ("client", ["--cluster", f"ray://127.0.0.1:{client}"])):
            command = [sys.executable, "-m", "fx", "extract", images, "--size", "32", "--json"]
            done = subprocess.run(
                [*command, "--store", tmp_path / name, *more],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            results.append(json.loads(done.stdout))
        plain, spread = (FeatureStore(tmp_path / name) for name in ("plain", "client"))
        keys = sorted(plain.last_extracted().rows)
        assert sorted(spread.last_extracted().rows) == keys
        features = [one.last_extracted().features(keys) for one in (plain, spread)]
        np.testing.assert_array_equal(*features)
        for name in ("images", "new", "failed", "duplicates", "odd", "splits"):
            assert results[0][name] == results[1][name]
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()


DRIVER = """
import sys
from pathlib import Path
import ray
from test_cluster import SETTINGS, run
from extract.backbones import load_backbone
from extract.cluster import filling
import extract.store.writer
filling.COMMIT_INTERVAL, filling.CHUNK_IMAGES = 0.0, 4
extract.store.writer.SHARD_BYTES = 8 * 1280 * 4
ray.init("local", num_cpus=2, **SETTINGS)
backbone = load_backbone("efficientnet_lite0", size=32)
run(Path(sys.argv[1]), Path(sys.argv[2]), backbone)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_is_taken_up_again(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_classes(tmp_path / "data", per_class=200)
    store = tmp_path / "spread"
    command = [sys.executable, "-c", DRIVER, str(images), str(store)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen(command, env=environment)
    until = time.monotonic() + 120
    while _committed(store) < 40 and time.monotonic() < until:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = _committed(store)
    assert 40 <= before < 400
    assert subprocess.run(command, env=environment).returncode == 0
    plain = run(images, tmp_path / "plain", backbone, None)
    spread = run(images, store, backbone, None)
    assert (spread.new, spread.reused) == (0, 400)
    runs = FeatureStore(store).last_extracted().runs
    assert [one.rows for one in runs] == [before, 400 - before]
    assert contents(store, spread)[4:] == contents(tmp_path / "plain", plain)[4:]


def _committed(store: Path) -> int:
    try:
        return FeatureStore(store).last_extracted().committed
    except (FxError, OSError):
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("on_s3", [False, True])
def test_a_machine_that_is_lost_costs_nothing(
    tmp_path: Path,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    s3: str,
    s3_server: S3Server,
    on_s3: bool,
) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of other tests
    monkeypatch.setattr(filling, "CHUNK_IMAGES", 4)
    images = write_classes(tmp_path / "data", per_class=200)
    store = tmp_path / "spread"
    if on_s3:
        images, store = upload(images, s3), f"{s3}/spread.zarr"
    plain = run(images, tmp_path / "plain", backbone, None)
    machine = {"num_cpus": 1, "object_store_memory": SETTINGS["object_store_memory"]}
    machines = Cluster(initialize_head=True, head_node_args=machine)
    try:
        second = machines.add_node(**machine)
        ray.init(machines.address, log_to_driver=False, logging_level="ERROR")
        lost = []

        def lose(done: int, total: int) -> None:
            if done > total // 4 and not lost:
                lost.append(done)
                machines.remove_node(second, allow_graceful=False)
                if on_s3:
                    s3_server.stop()
                    threading.Timer(5, s3_server.start).start()

        chance = random.Random(0)
        s3_server.refuse = lambda _: 503 if chance.random() < 0.1 else None
        spread = run(images, store, backbone, progress=lose)
        s3_server.refuse = lambda _: None
        assert lost
        ours, theirs = contents(store, spread), contents(tmp_path / "plain", plain)
        assert [pair for pair in zip(ours[0], theirs[0], strict=True) if len(set(pair)) > 1] == []
        assert ours == theirs
    finally:
        s3_server.refuse = lambda _: None
        ray.shutdown()
        machines.shutdown()
