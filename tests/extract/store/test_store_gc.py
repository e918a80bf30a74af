"""Garbage: what no snapshot uses goes, when it is asked for; what is used is never touched."""

import io
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from conftest import Said
from crashing import warm_process
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from test_store import DIM, RUN, SPEC, append, keys_of, read, rows_of

from extract.engines import Engine
from extract.errors import FxError
from extract.images import ImageRow, Snapshot
from extract.store import FeatureStore, StoredNetwork, collect, find_garbage

Fx = Callable[..., Said]
NAME = SPEC.id
NETWORK, OTHER = StoredNetwork(b"graph", b"tensors"), StoredNetwork(b"other", b"tensors")


def take(store: FeatureStore, numbers: Collection[int], name: str, when: int, root="/data") -> None:
    """Keep a snapshot of some images."""
    keys = [keys_of(range(n, n + 1))[0] for n in numbers]
    rows = [
        ImageRow(f"{n}.png", key, "a", None, "train", "", True, None)
        for n, key in zip(numbers, keys, strict=True)
    ]
    table = Snapshot(root, tuple(rows), 0, when, name).to_parquet()
    store.write_snapshot(name, table, when)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Ten rows, of which the last snapshot uses six, and the one before it eight."""
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(10))
    take(store, range(8), "first", 2)
    take(store, range(6), "second", 3)
    return store


def rows_there(store: FeatureStore) -> set[bytes]:
    return set(FeatureStore(store.path).find(SPEC).rows)


# What is garbage


def test_rows_that_no_snapshot_uses_are_dropped(store: FeatureStore) -> None:
    garbage, in_use = collect(store)
    assert (garbage.rows, garbage.sets, garbage.snapshots, in_use) == ({NAME: 2}, {}, {}, [])
    assert garbage.bytes > 0
    assert rows_there(store) == set(keys_of(range(8)))
    assert [s.name for s in store.sets()] == [f"{NAME}.g1"]
    assert store.last_extracted().name == f"{NAME}.g1"
    np.testing.assert_array_equal(read(store, range(8)), rows_of(range(8)))
    assert store.verify() == []
    assert not find_garbage(store)


def test_keep_drops_older_snapshots_of_each_folder_and_what_they_alone_used(
    store: FeatureStore,
) -> None:
    take(store, range(9, 10), "elsewhere", 1, root="/other")
    garbage, _ = collect(store, keep=1)
    assert garbage.snapshots == {"first": "older than the last 1"}
    assert garbage.rows == {NAME: 3}
    assert store.snapshots() == ["elsewhere", "second"]
    assert rows_there(store) == {*keys_of(range(6)), *keys_of(range(9, 10))}
    assert store.read_snapshot()[0] == "elsewhere"


def test_older_generations_and_broken_sets_are_dropped(store: FeatureStore) -> None:
    other = replace(SPEC, weights="9")
    append(store, range(8), spec=other)
    with store.lock():
        store.start([(SPEC, DIM)], RUN, stale=[NAME]).commit()
    append(store, range(8))
    (store.path / other.id / "zarr.json").unlink()
    garbage, in_use = collect(store)
    assert set(garbage.sets) == {NAME, other.id}
    assert garbage.sets[NAME] == "an older generation"
    assert "zarr.json is missing" in garbage.sets[other.id]
    assert (garbage.rows, in_use) == ({}, [])
    assert [s.name for s in store.sets()] == [f"{NAME}.g1"]
    assert store.verify() == []


def test_networks_go_with_their_features(store: FeatureStore) -> None:
    with store.lock():
        store.write_network(NETWORK)
        store.write_network(OTHER)
    append(store, range(8), spec=replace(SPEC, network=NETWORK.hash))
    garbage, _ = collect(store)
    assert sorted(garbage.networks) == [f"{OTHER.hash}.bin", f"{OTHER.hash}.xml"]
    assert store.read_network(NETWORK.hash) == NETWORK
    with pytest.raises(FxError):
        store.read_network(OTHER.hash)


def test_a_set_that_no_snapshot_uses_goes_whole(store: FeatureStore) -> None:
    append(store, range(20, 30), spec=replace(SPEC, weights="9"))
    garbage, _ = collect(store)
    assert garbage.sets == {replace(SPEC, weights="9").id: "no snapshot uses it"}
    assert store.last_extracted().name == f"{NAME}.g1"


def test_an_extraction_that_has_not_finished_is_called_by_name(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(3))
    expected = {NAME: "no snapshot uses it; its extraction has not finished"}
    assert find_garbage(store).sets == expected


def test_a_damaged_snapshot_takes_no_rows_with_it(store: FeatureStore) -> None:
    for file in store.path.glob("snapshots/*/c/0"):
        file.unlink()
    garbage, _ = collect(store)
    assert set(garbage.snapshots) == {"first", "second"}
    assert (garbage.sets, garbage.rows) == ({}, {})
    assert rows_there(store) == set(keys_of(range(10)))
    take(store, range(4), "third", 4)
    assert collect(store)[0].rows == {NAME: 6}


def test_rows_given_up_leave_no_hole(store: FeatureStore) -> None:
    (store.path / NAME / "features" / "c" / "0" / "0").unlink()
    append(store, range(6))
    assert [s.name for s in store.sets()] == [f"{NAME}.g1"]
    assert store.last_extracted().committed == 6
    assert not find_garbage(store)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_used_rows_are_bitwise_what_they_were(tmp_path_factory, data) -> None:
    images = 24
    store = FeatureStore.create(tmp_path_factory.mktemp("s") / "f.zarr")
    dtype = data.draw(st.sampled_from(["float32", "float16"]))
    values = np.random.default_rng(0).normal(size=(images, DIM)).astype(np.float32)
    order = data.draw(st.permutations(range(images)))
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN, dtype=dtype)
        for part in np.array_split(order, data.draw(st.integers(1, 4))):
            keys = [keys_of(range(n, n + 1))[0] for n in part]
            hashes = np.repeat(part.astype(np.uint8)[:, None], 32, axis=1)
            writer.append(keys, [values[part]], hashes)
            writer.commit()
    before = store.find(SPEC)
    for generation in range(2):
        used = data.draw(st.lists(st.sampled_from(order), unique=True, min_size=1))
        take(store, used, "s", 2)
        keys = [keys_of(range(n, n + 1))[0] for n in used if order]
        expected = before.features(keys), before.hashes(keys)
        order = used
        collect(store)
        after = FeatureStore(store.path).find(SPEC)
        assert set(after.rows) == set(keys), generation
        np.testing.assert_array_equal(after.features(keys), expected[0])
        np.testing.assert_array_equal(after.hashes(keys), expected[1])
        assert str(after.dtype) == dtype


# What is kept in them


def extract_as(fx: Fx, folder: Path, store: Path, *options: object) -> dict:
    words = ("--store", store, "--size", 32, "--engine", "torch", "--json", *options)
    said = fx("extract", folder, *words)
    assert said.status == 0, said.err
    return json.loads(said.out)


def test_float32_is_made_float16_from_what_is_there_and_the_other_way_anew(
    folder: Path, tmp_path: Path, fx: Fx
) -> None:
    path = tmp_path / "f.zarr"
    first = extract_as(fx, folder, path)
    assert (first["new"], first["dtype"]) == (16, "float32")
    keys = list(FeatureStore(path).last_extracted().rows)
    as_float32 = FeatureStore(path).last_extracted().features(keys)

    narrowed = extract_as(fx, folder, path, "--dtype", "float16")
    assert (narrowed["new"], narrowed["reused"], narrowed["dtype"]) == (0, 16, "float16")
    half = FeatureStore(path).last_extracted()
    expected = as_float32.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(half.features(keys), expected)
    assert half.features(keys).dtype == np.float32
    half.close()
    # what the store has, where nothing is said
    assert extract_as(fx, folder, path)["dtype"] == "float16"

    widened = extract_as(fx, folder, path, "--dtype", "float32")
    assert (widened["new"], widened["reused"], widened["dtype"]) == (16, 0, "float32")
    again = FeatureStore(path).last_extracted().features(keys)
    np.testing.assert_allclose(again, as_float32, rtol=1e-5, atol=1e-6)
    assert fx("store", "verify", path).status == 0
    fx("store", "gc", path, "--yes")
    assert [str(s.dtype) for s in FeatureStore(path).sets()] == ["float32"]


def test_float16_takes_half_the_room(tmp_path: Path) -> None:
    sizes = {}
    for dtype in ("float32", "float16"):
        store = FeatureStore.create(tmp_path / dtype)
        values = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
        with store.lock():
            writer = store.start([(SPEC, 500)], RUN, dtype=dtype)
            writer.append(keys_of(range(300)), [values], np.zeros((300, 32), np.uint8))
            writer.commit()
        (file,) = store.path.glob("*/features/c/0/0")
        sizes[dtype] = file.stat().st_size
        assert zarr.open(store.path)[NAME]["features"].dtype == dtype
    assert 1.9 < sizes["float32"] / sizes["float16"] < 2.1


@pytest.mark.parametrize("already", [False, True])
def test_what_float16_cannot_hold_is_refused_in_one_line(
    already: bool, folder: Path, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.zarr"
    compute = Engine.compute
    monkeypatch.setattr(Engine, "compute", lambda self, *given: compute(self, *given) * 1e7)
    if already:
        extract_as(fx, folder, path)
    command = ("extract", folder, "--store", path, "--size", 32, "--engine", "torch")
    said = fx(*command, "--dtype", "float16")
    assert (said.status, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert re.search(r"features of .* reach \S+, more than float16 holds; extract with", line)
    assert line.endswith("--dtype float32")
    assert extract_as(fx, folder, path, "--dtype", "float32")["reused"] == 16 * already
    assert fx("store", "verify", path).status == 0


def test_zarr_and_xarray_read_a_set_without_fx(store: FeatureStore) -> None:
    group = zarr.open(store.path, mode="r")
    assert group.attrs["last_extracted"] == NAME
    assert group[NAME].attrs["committed"] == 10
    np.testing.assert_array_equal(group[NAME]["features"][:], rows_of(range(10)))
    with xarray.open_zarr(store.path / NAME, consolidated=False) as opened:
        assert dict(opened.sizes) == {
            "row": 10,
            "features_column": DIM,
            "keys_column": 32,
            "hashes_column": 32,
        }
        np.testing.assert_array_equal(opened["features"], rows_of(range(10)))
        assert [key.tobytes() for key in opened["keys"].values] == keys_of(range(10))
        assert opened.attrs["spec"] == SPEC.to_dict()


# Who is asked


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def files_of(store: FeatureStore) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("typed", "status"), [("n\n", 0), ("\n", 0), ("", 1)])
def test_gc_asks_and_drops_nothing_without_a_yes(
    store: FeatureStore, fx: Fx, monkeypatch: pytest.MonkeyPatch, typed: str, status: int
) -> None:
    before = files_of(store)
    answer(monkeypatch, typed)
    said = fx("store", "gc", store.path)
    assert said.status == status
    assert said.out.startswith(f"features {NAME}: 2 rows that no snapshot uses\nabout 0.")
    assert "drop these? [y/N]:" in said.err
    assert ("nothing was dropped" in said.out) == (status == 0)
    assert files_of(store) == before


def test_gc_drops_after_a_yes_and_has_nothing_to_ask_then(
    store: FeatureStore, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "y\n")
    said = fx("store", "gc", store.path)
    assert (said.status, said.out.splitlines()[-1].strip()) == (0, "dropped")
    again = fx("store", "gc", store.path)
    assert (again.status, again.err) == (0, "")
    assert again.out == f"{store.path}: snapshots use all that it holds\n"


def test_gc_as_json_shows_alone_unless_it_takes_yes(store: FeatureStore, fx: Fx) -> None:
    before = files_of(store)
    shown = json.loads(fx("store", "gc", store.path, "--json").out)
    assert shown["garbage"]["rows"] == {NAME: 2}
    assert (shown["dropped"], shown["in_use"]) == (False, [])
    assert files_of(store) == before
    said = fx("store", "gc", store.path, "--json", "--yes", "--keep", 1)
    assert said.err == ""
    dropped = json.loads(said.out)
    assert dropped["dropped"]
    assert dropped["garbage"]["rows"] == {NAME: 4}
    assert dropped["garbage"]["snapshots"] == {"first": "older than the last 1"}
    assert rows_there(store) == set(keys_of(range(6)))


def test_gc_waits_for_no_writer_but_says_who_it_is(store: FeatureStore, fx: Fx) -> None:
    with store.lock():
        said = fx("store", "gc", store.path, "--yes")
    assert said.status == 1
    assert "is being written by process" in said.err


# Readers


def read_on(path: str, ready: str, done: str) -> list[list[float]]:
    """Open a set, and read it once another process is done."""
    feature_set = FeatureStore(path).last_extracted()
    Path(ready).touch()
    while not Path(done).exists():
        time.sleep(0.01)
    return feature_set.features(keys_of(range(10))).tolist()


def test_readers_of_a_collected_set_read_on_until_they_are_gone(
    store: FeatureStore, fx: Fx, tmp_path: Path
) -> None:
    ready, done = tmp_path / "ready", tmp_path / "done"
    here = store.last_extracted()
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(warm_process().run, read_on, store.path, ready, done)
        while not ready.exists():
            time.sleep(0.01)
        said = fx("store", "gc", store.path, "--yes")
        assert said.out.endswith(f"dropped\nstill read, and kept until the next gc: {NAME}\n")
        np.testing.assert_array_equal(here.features(keys_of(range(10))), rows_of(range(10)))
        here.close()
        # nor is it dropped while the other process reads it
        assert json.loads(fx("store", "gc", store.path, "--yes", "--json").out)["in_use"] == [NAME]
        done.touch()
        np.testing.assert_array_equal(there.result().answer, rows_of(range(10)))
    # new readers found the new one at once
    assert rows_there(store) == set(keys_of(range(8)))
    assert json.loads(fx("store", "gc", store.path, "--yes", "--json").out)["in_use"] == []
    assert not (store.path / NAME).exists()


def collect_often(path: str, times: int) -> None:
    """Add a row that nobody uses, collect it, and so on."""
    store = FeatureStore(path)
    for number in range(times):
        append(store, range(100 + number, 101 + number))
        collect(store)


def test_whoever_opens_a_store_during_gc_finds_its_rows(store: FeatureStore) -> None:
    collect(store)
    names, looks = set(), 0
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(warm_process().run, collect_often, store.path, 12)
        while not writer.done():
            opened = FeatureStore(store.path)
            for feature_set in (opened.last_extracted(), opened.find(SPEC)):
                np.testing.assert_array_equal(
                    feature_set.features(keys_of(range(8))), rows_of(range(8))
                )
                names.add(feature_set.name)
                feature_set.close()
            looks += 1
        writer.result()
    assert len(names) > 2
    assert looks > 10


# Killed


def collect_newest(path: str) -> None:
    collect(FeatureStore(path), keep=1)


def kill_at_steps(kills: int, store: FeatureStore) -> None:
    append(store, range(8), spec=replace(SPEC, weights="9"))
    append(store, range(20, 24), spec=replace(SPEC, weights="10"))
    before = store.path.with_name("before.zarr")
    store.path.rename(before)
    shutil.copytree(before, store.path)
    steps = warm_process().run(collect_newest, store.path).steps
    chosen = np.random.default_rng(kills).choice(steps, kills, replace=False)
    for step in chosen:
        shutil.rmtree(store.path)
        shutil.copytree(before, store.path)
        assert warm_process().run(collect_newest, store.path, at_step=int(step) + 1).killed
        for spec in (SPEC, replace(SPEC, weights="9")):
            found = FeatureStore(store.path).find(spec).features(keys_of(range(6)))
            np.testing.assert_array_equal(found, rows_of(range(6)))
        assert store.read_snapshot()[0] == "second"
        assert store.has_features
        assert len(store.last_extracted().rows) >= 4
        collect_newest(str(store.path))
        assert len(store.sets()) == 2
        assert store.verify() == []
        assert not find_garbage(store, keep=1)
        # also what was dropped can be had again
        append(store, range(20, 24), spec=replace(SPEC, weights="10"))


def test_killed_at_a_step_of_gc_a_store_has_every_row_that_is_used(store: FeatureStore) -> None:
    kill_at_steps(2, store)


@pytest.mark.slow
def test_killed_at_many_steps_of_gc_a_store_has_every_row_that_is_used(store: FeatureStore) -> None:
    kill_at_steps(40, store)


def test_a_collection_that_finds_nothing_clears_up_after_one_that_was_killed(
    store: FeatureStore, fx: Fx
) -> None:
    collect(store)
    half = store.path / f"{NAME}.partial" / "features"
    half.mkdir(parents=True)
    (half / "zarr.json").write_text("{}")
    with store.lock():
        half.mkdir(parents=True)
        # somebody writes: what is unfinished may be theirs
        assert fx("store", "gc", store.path, "--yes").status == 0
        assert half.exists()
    assert fx("store", "gc", store.path, "--yes").status == 0
    assert not list(store.path.rglob("*.partial"))
