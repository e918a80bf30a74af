"""Killed at any moment, a run loses no committed row, and the next one goes on from there."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import zarr
from crashing import warm_process
from test_store import RUN, SPEC, keys_of, rows_of

from extract import FeatureStore, FxError

LAYERS = [({**SPEC, "layer": "one"}, 5), ({**SPEC, "layer": "two"}, 5)]
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
    for name in FeatureStore(path)._names():
        for array in ("features", "keys", "hashes"):
            opened = zarr.open_group(path / name, mode="r+")[array]
            opened.resize((ALL + 20, opened.shape[1]))
            opened[BEFORE:] = 7


def a_lost_shard(path: Path) -> None:
    some_rows(path)
    (path / FeatureStore(path)._names()[0] / "features" / "c" / "0" / "0").unlink()


def a_lost_shard_found(path: Path) -> None:
    a_lost_shard(path)
    assert FeatureStore(path).verify()


def a_lost_root(path: Path) -> None:
    some_rows(path)
    (path / "zarr.json").write_bytes(b'{"attr')


def rows_in(path: Path) -> list[set[bytes]]:
    """Check every row that a reader finds, and return the keys of each layer."""
    found: list[set[bytes]] = []
    known = dict(zip(keys_of(range(ALL)), rows_of(range(ALL)), strict=True))
    for (spec, _), sign in zip(LAYERS, (1, -1), strict=True):
        feature_set = FeatureStore(path).find(spec)
        keys = [] if feature_set is None else list(feature_set.rows)
        if feature_set is not None:
            expected = np.array([sign * known[key] for key in keys], np.float32).reshape(-1, 5)
            np.testing.assert_array_equal(feature_set.features(keys), expected)
        found.append(set(keys))
    return found


SCENES = [
    (nothing, None),
    (some_rows, None),
    (some_rows_and_a_tail, None),
    (some_rows, "float16"),
    (a_lost_shard, None),
    (a_lost_shard_found, None),
    (a_lost_root, None),
]


def kill_at(steps: Iterable[int], before: Path, dtype: str | None, path: Path) -> None:
    """Kill a run at each of these steps, each time on a copy of the store as it was before."""
    whole = set(keys_of(range(BEFORE)))
    for step in steps:
        shutil.rmtree(path, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, path)
        ended = warm_process().run(fill, path, ALL, dtype, at_step=step)
        assert ended.killed
        try:
            FeatureStore(path)
        except FxError as error:
            # before its root was made or mended
            assert not before.exists() or "next fx extract" in str(error)
        else:
            one, two = rows_in(path)
            if "lost_shard" not in before.name:
                assert one == two, step
                assert not before.exists() or one >= whole, step
            assert not before.exists() or FeatureStore(path).read_snapshot()[0] == "s", step
        fill(str(path), ALL, dtype)
        assert rows_in(path) == [set(keys_of(range(ALL)))] * 2, step
        store = FeatureStore(path)
        assert store.read_snapshot() == ("s", b"rows up to %d" % ALL)
        assert store.verify() == [], step
        assert not list(path.rglob("*.partial"))


def steps_of(prepare, dtype: str | None, tmp_path: Path) -> tuple[Path, int]:
    """Make a store to begin with, and count the steps of an undisturbed run from there."""
    before = tmp_path / prepare.__name__
    prepare(before)
    path = tmp_path / "f.zarr"
    if before.exists():
        shutil.copytree(before, path)
    return before, warm_process().run(fill, path, ALL, dtype).steps


@pytest.mark.parametrize(("prepare", "dtype"), SCENES)
def test_killed_at_some_steps_on_the_disk(prepare, dtype, tmp_path: Path) -> None:
    before, steps = steps_of(prepare, dtype, tmp_path)
    some = np.random.default_rng(steps).choice(steps, 5, replace=False) + 1
    kill_at(map(int, some), before, dtype, tmp_path / "f.zarr")


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "dtype"), SCENES)
def test_killed_at_each_step_on_the_disk(prepare, dtype, tmp_path: Path) -> None:
    before, steps = steps_of(prepare, dtype, tmp_path)
    assert steps > 10
    kill_at(range(1, steps + 1), before, dtype, tmp_path / "f.zarr")
