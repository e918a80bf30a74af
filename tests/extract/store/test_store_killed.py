"""Killed at any moment, a run loses no committed row, and the next one goes on from there."""

import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import write_classes
from crashing import die, warm_process
from msgspec.structs import replace
from test_store import RUN, SPEC, keys_of, rows_of

from extract.backbones import Backbone, load_backbone
from extract.engines import TorchEngine
from extract.errors import FxError
from extract.extraction import extract
from extract.images import find_images
from extract.images import workers as readers
from extract.store import FeatureStore, FeatureWriter
from extract.store import catalogue as catalogue_module
from extract.store import writer as writer_module
from extract.store.catalogue import Catalogue
from extract.store.metadata import StoreMetadata
from extract.store.writer import RowBuffer

LAYERS = [(replace(SPEC, layer="one"), 5), (replace(SPEC, layer="two"), 5)]
BEFORE, ALL = 9, 15


def fill(path: str, stop: int = ALL, dtype: str | None = None, parts: int = 4) -> None:
    """What an extraction of two layers does on the disk, in several commits."""
    store = FeatureStore.create(path)
    with store.lock():
        writer = store.start(LAYERS, RUN, dtype=dtype)
        lacking = [n for n in range(stop) if keys_of(range(n, n + 1))[0] not in writer.known]
        for part in (lacking[i : i + parts] for i in range(0, len(lacking), parts)):
            keys = [keys_of(range(n, n + 1))[0] for n in part]
            rows = np.concatenate([rows_of(range(n, n + 1)) for n in part])
            writer.append(keys, [rows, -rows], np.zeros((len(part), 32), np.uint8))
            writer.commit()
        store.write_snapshot("s", b"rows up to %d" % stop, stop)


def nothing(path: Path) -> None:
    pass


def some_rows(path: Path) -> None:
    fill(str(path), BEFORE)


def some_rows_and_a_tail(path: Path) -> None:
    some_rows(path)
    for name in Catalogue(path).names():
        for array in ("features", "keys", "hashes"):
            opened = zarr.open_group(path / name, mode="r+")[array]
            opened.resize((ALL + 20, opened.shape[1]))
            opened[BEFORE:] = 7


def a_lost_shard(path: Path) -> None:
    some_rows(path)
    (path / Catalogue(path).names()[0] / "features" / "c" / "0" / "0").unlink()


def a_lost_shard_found(path: Path) -> None:
    a_lost_shard(path)
    assert FeatureStore(path).verify()


def a_lost_root(path: Path) -> None:
    some_rows(path)
    (path / "zarr.json").write_bytes(b'{"attr')


SCENES = [
    (nothing, None),
    (some_rows, None),
    (some_rows_and_a_tail, None),
    (some_rows, "float16"),
    (a_lost_shard, None),
    (a_lost_shard_found, None),
    (a_lost_root, None),
]


def rows_in(path: Path) -> list[set[bytes]]:
    """Check every row that a reader finds, and return the keys of each layer."""
    known = dict(zip(keys_of(range(ALL)), rows_of(range(ALL)), strict=True))
    found = []
    for (spec, _), sign in zip(LAYERS, (1, -1), strict=True):
        feature_set = FeatureStore(path).find(spec)
        keys = [] if feature_set is None else list(feature_set.rows)
        if keys:
            expected = [sign * known[key] for key in keys]
            np.testing.assert_array_equal(feature_set.features(keys), expected)
        found.append(set(keys))
    return found


def check_what_a_reader_sees(path: Path, before: str) -> None:
    """Check that nothing is wrong, and nothing lost that was there before."""
    if "lost_shard" in before:
        # rows that are there no more: an error, until the next run has given them up
        with suppress(FxError):
            rows_in(path)
        return
    one, two = rows_in(path)
    assert one == two
    if before != "nothing":
        assert one >= set(keys_of(range(BEFORE)))
        assert FeatureStore(path).read_snapshot()[0] == "s"


def kill_at(steps: Iterable[int], before: Path, dtype: str | None, path: Path) -> None:
    """Kill a run at each of these steps, each time on a copy of the store as it was before."""
    for step in steps:
        shutil.rmtree(path, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, path)
        assert warm_process().run(fill, path, ALL, dtype, at_step=step).killed
        try:
            FeatureStore(path)
        except FxError:
            # before its root was there
            assert before.name == "nothing"
        else:
            check_what_a_reader_sees(path, before.name)
        fill(str(path), ALL, dtype)
        assert rows_in(path) == [set(keys_of(range(ALL)))] * 2
        store = FeatureStore(path)
        assert store.read_snapshot() == ("s", b"rows up to %d" % ALL)
        assert store.verify() == []
        assert not list(path.rglob("*.partial"))


def steps_of(
    prepare: Callable[[Path], None], dtype: str | None, tmp_path: Path
) -> tuple[Path, int]:
    """Make a store to begin with, and count the steps of an undisturbed run from there."""
    before = tmp_path / prepare.__name__
    prepare(before)
    path = tmp_path / "f.zarr"
    if before.exists():
        shutil.copytree(before, path)
    return before, warm_process().run(fill, path, ALL, dtype).steps


def kill_at_some(kills: int, prepare, dtype: str | None, tmp_path: Path) -> None:
    before, steps = steps_of(prepare, dtype, tmp_path)
    assert steps > 2 * kills
    some = np.random.default_rng(kills).choice(steps, kills, replace=False) + 1
    kill_at(map(int, some), before, dtype, tmp_path / "f.zarr")


@pytest.mark.parametrize(("prepare", "dtype"), SCENES)
def test_killed_at_a_step_on_the_disk(prepare, dtype, tmp_path: Path) -> None:
    kill_at_some(1, prepare, dtype, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "dtype"), SCENES)
def test_killed_at_many_steps_on_the_disk(prepare, dtype, tmp_path: Path) -> None:
    kill_at_some(12, prepare, dtype, tmp_path)


SIZE, PER_CLASS, INTERVAL = 32, 150, 0.1


@functools.cache
def two_layers() -> Backbone:
    return load_backbone("efficientnet_lite0", size=SIZE).at_layers(["pool", "blocks.2"])


warm_up = two_layers


def extract_two_layers(images: str, store: str, log: str, interval: float = INTERVAL) -> dict:
    """Extract, writing down when how many rows were computed, and when they were committed."""
    writer_module.COMMIT_INTERVAL = interval
    # so that shards get full between two commits
    writer_module.ROWS_PER_SHARD = writer_module.ROWS_PER_CHUNK = 16
    # and images are read by processes, which must not outlive a killed run with its lock
    readers.FEW_CORES = readers.FEW_IMAGES = 0
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def after(name: str) -> None:
        before = getattr(FeatureWriter, name)

        def noted(self: FeatureWriter, *arguments: object) -> None:
            before(self, *arguments)
            line = [name, time.monotonic(), len(self.known), self.sets[0].committed]
            os.write(file, json.dumps(line).encode() + b"\n")

        setattr(FeatureWriter, name, noted)

    for name in ("__init__", "append", "commit"):
        after(name)
    backbone = two_layers()
    engine = TorchEngine(backbone.module, backbone.preprocessing, torch.device("cpu"), batch_size=4)
    opened = FeatureStore.create(store)
    result = extract(find_images(images), backbone=backbone, engine=engine, store=opened)
    return {"new": result.new, "reused": result.reused}


def features_of(store: Path) -> dict[tuple[str, bytes], np.ndarray]:
    """Every committed row of every layer, by layer and key."""
    found = {}
    for feature_set in FeatureStore(store).sets():
        keys = list(feature_set.rows)
        for key, row in zip(keys, feature_set.features(keys), strict=True):
            found[str(feature_set.spec.layer), key] = row
    return found


def check_equal(found: dict, expected: dict) -> None:
    for name, row in found.items():
        assert np.linalg.norm(row - expected[name]) < 1e-5 * np.linalg.norm(expected[name])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict, float]:
    """Images, their rows as an undisturbed run computes them, and how long that takes."""
    root = tmp_path_factory.mktemp("undisturbed")
    images = write_classes(root / "data", PER_CLASS)
    ended = warm_process().run(extract_two_layers, images, root / "f.zarr", root / "log")
    assert ended.answer == {"new": 2 * PER_CLASS, "reused": 0}
    rows = features_of(root / "f.zarr")
    assert len(rows) == 4 * PER_CLASS
    return images, rows, ended.died - ended.began


def lost(log: Path, killed: float, committed: int) -> tuple[int, float, float]:
    """Rows and seconds of work lost in a killed run, and the seconds that may be lost."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not lines:
        return 0, 0.0, 0.0
    times = [line[1] for line in lines] + [killed]
    # a row waits for the first batch after the interval, and for the commit that this begins
    longest = max(b - a for a, b in pairwise(times))
    safe = max(time for _, time, known, _ in lines if known <= committed)
    rows = lines[-1][2] - committed
    return (rows, killed - safe, INTERVAL + 2 * longest) if rows > 0 else (0, 0.0, 0.0)


def kill_at_random(kills: int, undisturbed: tuple[Path, dict, float], tmp_path: Path) -> None:
    images, expected, seconds = undisturbed
    store, log = tmp_path / "f.zarr", tmp_path / "log"
    rng = np.random.default_rng(kills)
    told, finished = [], 0
    while len(told) < kills or not finished:
        delay = float(rng.uniform(0, 0.4 * seconds)) if len(told) < kills else None
        before = len(features_of(store)) // 2 if store.exists() else 0
        ended = warm_process().run(extract_two_layers, images, store, log, after=delay)
        if not ended.killed:
            assert ended.answer == {"new": 2 * PER_CLASS - before, "reused": before}
            assert features_of(store).keys() == expected.keys()
            shutil.rmtree(store)
            finished += 1
            continue
        found = features_of(store) if store.exists() and any(store.iterdir()) else {}
        check_equal(found, expected)
        layers = [{key for layer, key in found if layer == one} for one in ("pool", "blocks.2")]
        assert layers[0] == layers[1]
        assert len(layers[0]) >= before
        rows, waited, allowed = lost(log, ended.died, len(layers[0]))
        assert waited <= allowed
        told.append((rows, waited))
    rows, waited = map(max, zip(*told, strict=True))
    print(f"\n{kills} kills, {finished} runs: {rows} rows, {waited:.2f} s of work lost at most")


def extract_until(images: str, store: str, log: str, moment: str) -> None:
    """Extract with a commit a batch, and die in the second one, between the two layers."""
    calls = []

    def dying(before: Callable[..., None], wanted: Callable[..., bool], last: int) -> Any:
        def after(*arguments: Any, **options: Any) -> None:
            before(*arguments, **options)
            calls.extend([1] if wanted(*arguments, **options) else [])
            if len(calls) == last:
                die()

        return after

    if moment == "the rows of one are written":
        RowBuffer.write = dying(RowBuffer.write, lambda _: True, 3)
    elif moment == "the root is written":
        StoreMetadata.update = dying(StoreMetadata.update, lambda _, **a: [*a] == ["commit"], 2)
    elif moment == "the attributes of one are written":
        # each commit writes the attributes of both
        catalogue_module.set_attributes = dying(
            catalogue_module.set_attributes, lambda path, _: path.name in names_of(store), 3
        )
    extract_two_layers(images, store, log, interval=-1.0)


def names_of(store: str) -> list[str]:
    return [s.name for s in FeatureStore(store).sets() if s.committed]


@pytest.mark.parametrize(
    ("moment", "seen", "written"),
    [
        ("the rows of one are written", 4, [4, 4]),
        ("the root is written", 8, [4, 4]),
        ("the attributes of one are written", 8, [4, 8]),
    ],
)
def test_two_layers_killed_between_their_writes_agree(
    moment: str, seen: int, written: list[int], undisturbed, tmp_path: Path
) -> None:
    images, expected, _ = undisturbed
    store, log = tmp_path / "f.zarr", tmp_path / "log"
    assert warm_process().run(extract_until, images, store, log, moment).killed
    found = features_of(store)
    check_equal(found, expected)
    keys = [{key for layer, key in found if layer == one} for one in ("pool", "blocks.2")]
    assert keys[0] == keys[1]
    assert len(keys[0]) == seen
    sets = FeatureStore(store).sets()
    assert sorted(zarr.open_group(s.path).attrs["committed"] for s in sets) == written
    ended = warm_process().run(extract_two_layers, images, store, log)
    assert ended.answer == {"new": 2 * PER_CLASS - seen, "reused": seen}
    assert features_of(store).keys() == expected.keys()
    check_equal(features_of(store), expected)
    assert FeatureStore(store).verify() == []


def test_killed_at_a_few_random_moments(undisturbed, tmp_path: Path) -> None:
    kill_at_random(5, undisturbed, tmp_path)


@pytest.mark.slow
def test_killed_at_random_moments(undisturbed, tmp_path: Path) -> None:
    kill_at_random(15, undisturbed, tmp_path)
