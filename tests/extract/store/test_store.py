"""The store's promises: rows belong to keys, only committed rows count, damage is found."""

import hashlib
import multiprocessing
import os
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extract.errors import FxError
from extract.files import sync
from extract.images import Preprocessing
from extract.store import ExtractionRun, FeatureStore, Spec, check_snapshot_name
from extract.store import writer as writer_module

PREPROCESSING = Preprocessing(16, 16, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = Spec(
    backbone="net",
    weights="00",
    layer="pool",
    size=16,
    crops=1,
    preprocessing=PREPROCESSING,
    numerics="fp32",
)
RUN = ExtractionRun(engine="test", weights_source="default", taken_ns=1)
DIM = 5


def keys_of(numbers: range) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in numbers]


def rows_of(numbers: range) -> np.ndarray:
    return np.array([[number + i / 8 for i in range(DIM)] for number in numbers], np.float32)


def append(store: FeatureStore, numbers: range, *, spec: Spec = SPEC) -> None:
    with store.lock():
        writer = store.start([(spec, DIM)], RUN)
        writer.append(keys_of(numbers), [rows_of(numbers)], np.zeros((len(numbers), 32), np.uint8))
        writer.commit()


def read(store: FeatureStore, numbers: range) -> np.ndarray:
    return store.find(SPEC).features(keys_of(numbers))


@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.integers(1, 40), min_size=1, max_size=6), data=st.data())
def test_rows_come_back_by_key_in_any_order(tmp_path_factory, parts, data) -> None:
    store = FeatureStore.create(tmp_path_factory.mktemp("s") / "f.zarr")
    start = 0
    for count in parts:
        append(store, range(start, start + count))
        start += count
    order = data.draw(st.permutations(range(start)))
    keys = keys_of(range(start))
    found = store.find(SPEC).features([keys[i] for i in order])
    np.testing.assert_array_equal(found, rows_of(range(start))[list(order)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 25), st.sampled_from(["", "commit", "die"])), max_size=12))
def test_rows_come_back_whatever_shards_fill_between_commits(tmp_path_factory, steps) -> None:
    store = FeatureStore.create(tmp_path_factory.mktemp("s") / "f.zarr")
    committed = reached = 0
    writer = None
    with pytest.MonkeyPatch.context() as patch, store.lock():
        patch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
        patch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)
        for count, then in steps:
            writer = writer or store.start([(SPEC, DIM)], RUN)
            some = range(reached, reached + count)
            # rows of an earlier writer that never counted were other ones
            rows = rows_of(some) + (then == "die")
            hashes = np.full((count, 32), count, np.uint8)
            writer.append(keys_of(some), [rows], hashes)
            reached += count
            if then == "commit":
                writer.commit()
                committed = reached
            elif then == "die":
                writer, reached = None, committed
            found = store.find(SPEC)
            assert list(found.rows) == keys_of(range(committed))
        if writer:
            writer.commit()
            committed = reached
    assert committed == 0 or list(store.find(SPEC).rows) == keys_of(range(committed))
    if committed:
        np.testing.assert_array_equal(read(store, range(committed)), rows_of(range(committed)))
    assert store.verify() == []


def test_all_that_a_commit_counts_has_been_synced_as_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
    monkeypatch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)
    store = FeatureStore.create(tmp_path / "f.zarr")
    synced: dict[Path, int] = {}

    def noted(*files: Path) -> None:
        sync(*files)
        synced.update((file, file.stat().st_ino) for file in files)

    monkeypatch.setattr("extract.store.writer.sync", noted)
    monkeypatch.setattr("extract.store.feature_set.sync", noted)
    append(store, range(3))
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN)
        for start in range(3, 30, 5):
            some = range(start, start + 5)
            writer.append(keys_of(some), [rows_of(some)], np.zeros((5, 32), np.uint8))
        writer.commit()
        # every write is to a new file, which takes the place of the one before
        files = [f for f in (store.path / SPEC.id).rglob("*") if f.is_file()]
        written = {file: file.stat().st_ino for file in files if file.parent.name != SPEC.id}
        assert len(written) == 3 + 5 + 1 + 1
        assert written == {file: synced[file] for file in written}


def test_damage_of_what_does_not_count_costs_nothing_that_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
    monkeypatch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(4))
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN)
        some = range(4, 30)
        writer.append(keys_of(some), [rows_of(some)], np.zeros((26, 32), np.uint8))
    flip_a_bit(store.path / SPEC.id / "features" / "c" / "2" / "0")
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN)
        assert writer.known == set(keys_of(range(4)))
        some = range(4, 40)
        writer.append(keys_of(some), [rows_of(some)], np.zeros((36, 32), np.uint8))
        writer.commit()
    np.testing.assert_array_equal(read(store, range(40)), rows_of(range(40)))
    assert store.verify() == []


def test_memory_holds_a_shard_and_copies_of_it_not_all_that_waits(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    rows, dim = 1000, 512
    hashes = np.zeros((rows, 32), np.uint8)
    features = np.ones((rows, dim), np.float32)
    with store.lock():
        writer = store.start([(SPEC, dim)], RUN)
        tracemalloc.start()
        try:
            for number in range(40):
                keys = keys_of(range(number * rows, (number + 1) * rows))
                writer.append(keys, [features], hashes)
            writer.commit()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(store.find(SPEC).rows) == 40 * rows
    assert peak < 4.5 * writer_module.SHARD_BYTES < 40 * features.nbytes / 2


def test_rows_beyond_committed_are_not_seen_and_are_overwritten(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(4))
    group = zarr.open_group(store.path / SPEC.id, mode="r+")
    for name in ("features", "keys", "hashes"):
        array = group[name]
        array.resize((9, array.shape[1]))
        array[4:9] = 7
    assert len(store.find(SPEC).rows) == 4
    append(store, range(4, 6))
    np.testing.assert_array_equal(read(store, range(6)), rows_of(range(6)))


def test_any_zarr_reader_opens_the_store(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(10))
    store.write_snapshot("s", b"any bytes", 1)
    group = zarr.open(store.path, mode="r")
    features, keys = group[SPEC.id]["features"], group[SPEC.id]["keys"]
    assert (features.shape, keys.shape, keys.dtype) == ((10, DIM), (10, 32), np.uint8)
    assert [key.tobytes() for key in keys[:]] == keys_of(range(10))


def test_files_grow_by_thousands_of_rows_not_by_commits(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    for start in range(0, 400, 20):
        append(store, range(start, start + 20))
    files = [file for file in store.path.rglob("*") if file.is_file()]
    # three shards and the metadata of five groups and arrays
    assert len(files) == 8


def test_another_spec_never_finds_the_rows(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(3))
    for changed in (
        {"weights": "01"},
        {"size": 17, "preprocessing": PREPROCESSING.at_size(17)},
        {"numerics": "bf16"},
    ):
        assert store.find(replace(SPEC, **changed)) is None


def test_a_new_generation_leaves_the_old_rows(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(3))
    old = store.find(SPEC)
    with store.lock():
        store.start([(SPEC, DIM)], RUN, stale=[SPEC.id]).commit()
    assert len(store.find(SPEC).rows) == 0
    assert len(old.features(keys_of(range(3)))) == 3


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[10] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["features", "keys", "hashes"])
@pytest.mark.parametrize("harm", [Path.unlink, flip_a_bit, lambda f: f.write_bytes(b"")])
def test_damage_is_found_and_the_rows_count_as_missing(tmp_path: Path, name, harm) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(6))
    assert store.verify() == []
    harm(store.path / SPEC.id / name / "c" / "0" / "0")
    (damage,) = store.verify()
    assert name in damage.reason
    assert (damage.start, damage.stop) == (0, 6)
    with pytest.raises(FxError, match=r"extract(ion)? "):
        read(store, range(6))
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN)
        assert not writer.known
        writer.append(keys_of(range(6)), [rows_of(range(6))], np.zeros((6, 32), np.uint8))
        writer.commit()
    np.testing.assert_array_equal(read(store, range(6)), rows_of(range(6)))
    assert store.verify() == []


def test_damage_of_one_shard_costs_that_shard_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
    monkeypatch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)
    store = FeatureStore.create(tmp_path / "f.zarr")
    append(store, range(20))
    (store.path / SPEC.id / "features" / "c" / "1" / "0").unlink()
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN)
        kept = set(keys_of(range(8))) | set(keys_of(range(16, 20)))
        assert writer.known == kept


def test_a_second_writer_is_told_who_holds_the_store(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    with (
        store.lock(),
        pytest.raises(FxError, match=f"process {os.getpid()} "),
        FeatureStore(store.path).lock(),
    ):
        pass


def hold(path: Path, held) -> None:
    with FeatureStore(path).lock():
        held.set()
        time.sleep(60)


def test_a_dead_holders_lock_is_free_at_once(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(store.path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(FxError, match="is being written by"), store.lock():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.lock():
        append_nothing = store.start([(SPEC, DIM)], RUN)
    assert not append_nothing.known


def test_rows_are_committed_while_the_work_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "COMMIT_INTERVAL", 0.0)
    store = FeatureStore.create(tmp_path / "f.zarr")
    with store.lock():
        writer = store.start([(SPEC, DIM)], RUN)
        writer.append(keys_of(range(2)), [rows_of(range(2))], np.zeros((2, 32), np.uint8))
        # a reader that opens the store now, with the writer still at work
        assert len(FeatureStore(store.path).find(SPEC).rows) == 2


@pytest.mark.parametrize("what", ["nothing", "file", "other zarr", "old layout"])
def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "f.zarr"
    if what == "file":
        path.write_text("hello")
    elif what == "other zarr":
        zarr.create_group(path)
    elif what == "old layout":
        zarr.create_group(path, attributes={"fx_layout": 0})
    with pytest.raises(FxError) as caught:
        FeatureStore(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_store_or_set_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "f.zarr").mkdir()
    store = FeatureStore.create(tmp_path / "f.zarr")
    zarr.create_group(store.path / f"{SPEC.id}.partial")
    assert store.sets() == []
    append(store, range(3))
    np.testing.assert_array_equal(read(store, range(3)), rows_of(range(3)))
    assert not list(store.path.rglob("*.partial"))


def test_a_snapshot_is_replaced_whole(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    for number, data in enumerate((b"first", b"second, longer")):
        store.write_snapshot("s", data, number)
        assert store.read_snapshot() == ("s", data)
    (store.path / "snapshots" / "s.new.partial").mkdir()
    assert store.snapshots() == ["s"]


@pytest.mark.parametrize("name", ["exp/1", "../x", "", ".hidden", "a b", "é" * 101])
def test_a_snapshots_name_is_checked_before_any_work(name: str) -> None:
    with pytest.raises(FxError, match="`snapshot`"):
        check_snapshot_name(name)
