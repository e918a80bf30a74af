"""A store on object storage keeps its promises: one writer, whole commits, damage is found."""

import contextlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from s3_server import READING, SECRET, S3Server
from test_store import RUN, SPEC, append, keys_of, read, rows_of
from zarr.storage import ObjectStore

from extract.backbones import Backbone
from extract.engines import make_engine
from extract.errors import FxError
from extract.extraction import extract
from extract.files import ObjectPath, StorageFailure, place, storage_of
from extract.images import Snapshot, find_images
from extract.store import FeatureStore, collect, find_garbage
from extract.store.metadata import StoreMetadata


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a dead writer's place taken over at once."""
    monkeypatch.setattr("extract.files.locks.LEASE", 0.6)
    monkeypatch.setattr("extract.files.locks.RENEWAL", 0.1)
    monkeypatch.setattr("extract.files.locks.UNDER_WAY", 0.1)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
    monkeypatch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)


@pytest.fixture
def s3_server(s3_server: S3Server):
    yield s3_server
    s3_server.refuse = lambda _: None


def extracted(folder: Path, where: object, backbone: Backbone) -> FeatureStore:
    store = FeatureStore.create(where)
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu")
    extract(find_images(folder), backbone=backbone, engine=engine, store=store)
    return store


def test_a_store_on_s3_holds_what_one_on_the_disk_holds(
    images: Path, backbone: Backbone, s3: str, tmp_path: Path
) -> None:
    there = extracted(images, f"{s3}/some/features.zarr", backbone)
    here = extracted(images, tmp_path / "features.zarr", backbone)
    ours, theirs = there.last_extracted(), here.last_extracted()
    assert list(ours.rows) == list(theirs.rows)
    keys = list(ours.rows)
    np.testing.assert_array_equal(ours.features(keys), theirs.features(keys))
    np.testing.assert_array_equal(ours.hashes(keys), theirs.hashes(keys))
    assert ours.checksums == theirs.checksums
    one, other = (Snapshot.from_parquet(*store.read_snapshot()) for store in (there, here))
    assert one.rows == other.rows
    # the same objects by any reader of Zarr
    group = zarr.open_group(ObjectStore(storage_of(s3)), path="some/features.zarr", mode="r")
    assert (group[ours.name]["features"][:] == ours.features(keys)).all()
    names = {p.key.removeprefix("some/features.zarr/") for p, _ in place(s3).walk()}
    files = {str(f.relative_to(here.path)) for f in here.path.rglob("*") if f.is_file()}
    assert names == files


def test_what_is_stored_is_neither_computed_nor_read_again(
    images: Path, backbone: Backbone, s3: str
) -> None:
    extracted(images, f"{s3}/f.zarr", backbone)
    store = FeatureStore(f"{s3}/f.zarr")
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu")
    again = extract(find_images(images), backbone=backbone, engine=engine, store=store)
    assert (again.new, again.reused) == (0, 72)
    assert not store.was_copied
    assert store.verify() == []


def test_a_second_writer_is_told_who_the_first_is(s3: str) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    with (
        store.lock(),
        pytest.warns(match="waiting up to"),
        pytest.raises(FxError, match="is being written by process"),
        FeatureStore(store.path).lock(),
    ):
        pass
    # let go of, it is free at once
    begun = time.monotonic()
    with FeatureStore(store.path).lock():
        assert time.monotonic() - begun < 0.5
    assert [path.name for path, _ in place(s3).walk()] == ["zarr.json"]


@pytest.mark.filterwarnings("default:.* is held")
def test_who_waits_for_a_writer_writes_after_it(s3: str) -> None:
    store, order = FeatureStore.create(f"{s3}/f.zarr"), []

    def second() -> None:
        with FeatureStore(store.path).lock(wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.lock():
        thread.start()
        time.sleep(1.5)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_the_place_of_a_dead_writer_is_taken_and_the_dead_can_commit_nothing(
    s3: str, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{s3}/f.zarr"
    append(FeatureStore.create(path), range(3))
    stopped = FeatureStore(path)
    with stopped.lock():
        writer = stopped.start([(SPEC, 5)], RUN)
        writer.append(keys_of(range(3, 6)), [rows_of(range(3, 6)) + 7], np.zeros((3, 32), np.uint8))
        # as a process that is suspended: it renews nothing
        lease = stopped.root._lease
        lease._ended.set()
        lease._thread.join()
        with pytest.warns(match="waiting up to"):
            append(FeatureStore(path), range(3, 20))
        # even if it does not look at its lease
        monkeypatch.setattr(type(lease), "check", lambda _: None)
        with pytest.raises(FxError, match="is being written by process"):
            writer.commit()
    store = FeatureStore(path)
    assert list(store.find(SPEC).rows) == keys_of(range(20))
    for one in store.verify():
        # rows that both have written are damage, never another image's features
        assert "other rows than were committed" in one.reason
    append(store, range(20))
    np.testing.assert_array_equal(read(store, range(20)), rows_of(range(20)))
    assert store.verify() == []


def test_a_writer_out_of_reach_of_the_storage_stops_by_itself(s3: str, s3_server: S3Server) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    with store.lock():
        s3_server.refuse = lambda method: 403 if method == "PUT" else None
        time.sleep(1)
        s3_server.refuse = lambda _: None
        with pytest.raises(StorageFailure, match=r"lock .* was lost"):
            store.root.update(writer="nobody")


@pytest.mark.slow
@pytest.mark.parametrize("step", [17, 3])
def test_a_writer_killed_before_any_request_leaves_what_was_committed(
    s3: str, s3_server: S3Server, small_shards: None, step: int
) -> None:
    table = bytes(range(100))

    def write(path: str, asked: list[str]) -> None:
        def dead(method: str) -> int | None:
            if method not in READING:
                asked.append(method)
            # it can do nothing any more, and the storage hears nothing of it
            return 403 if len(asked) > survived else None

        s3_server.refuse = dead
        store = FeatureStore.create(path)
        append(store, range(6))
        append(store, range(30))
        with store.lock():
            store.write_snapshot("one", table, 1)
            store.write_snapshot("one", table[::-1], 2)

    survived, all_asked = 10**9, []
    write(f"{s3}/whole.zarr", all_asked)
    assert len(all_asked) > 30
    for survived in range(0, len(all_asked), step):
        path = f"{s3}/killed-{survived}.zarr"
        with contextlib.suppress(FxError, OSError):
            write(path, [])
        s3_server.refuse = lambda _: None
        if place(path).exists():
            found = FeatureStore(path).find(SPEC)
            n = 0 if found is None else found.committed
            assert n in (0, 6, 30)
            if n:
                np.testing.assert_array_equal(read(FeatureStore(path), range(n)), rows_of(range(n)))
        survived = 10**9
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            write(path, [])
        store = FeatureStore(path)
        np.testing.assert_array_equal(read(store, range(30)), rows_of(range(30)))
        assert store.read_snapshot("one")[1] == table[::-1]
        assert store.verify() == []
        left = {p.key.partition(".zarr/")[2] for p, _ in place(path).walk()}
        assert not [name for name in left if ".partial" in name]


def test_damage_is_found_and_mended(s3: str, small_shards: None) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    append(store, range(30))
    for damage in (None, slice(-9), slice(40)):
        found = store.find(SPEC)
        chunk, keys = found.chunk_file("features", 1), list(found.rows)[8:16]
        damaged = None if damage is None else chunk.read_bytes()[damage]
        if damaged is None:
            chunk.unlink()
        else:
            chunk.write_bytes(damaged)
        with pytest.raises(FxError, match="verify the store"):
            found.features(keys)
        (one,) = store.verify()
        assert (one.start, one.stop) == (8, 16)
        append(store, range(30))
        np.testing.assert_array_equal(read(store, range(30)), rows_of(range(30)))


def test_storage_that_does_not_answer_is_no_damage(
    s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    append(store, range(3))
    before = [(p, s.e_tag) for p, s in place(s3).walk()]
    s3_server.refuse = lambda _: 400
    for ask in (
        lambda: FeatureStore(store.path),
        lambda: store.find(SPEC),
        lambda: store.verify(),
        lambda: read(store, range(3)),
        lambda: store.snapshots(),
    ):
        with pytest.raises(StorageFailure, match="does not answer as it should"):
            ask()
    s3_server.refuse = lambda _: None
    assert [(p, s.e_tag) for p, s in place(s3).walk()] == before


def test_one_request_in_ten_fails_and_the_server_goes_and_comes_back(
    s3: str, s3_server: S3Server, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.files.locks.LEASE", 60)
    chance = np.random.default_rng(0)
    s3_server.refuse = lambda _: 503 if chance.random() < 0.1 else None
    store = FeatureStore.create(f"{s3}/f.zarr")
    append(store, range(30))
    s3_server.stop()
    threading.Timer(2, s3_server.start).start()
    append(store, range(60))
    np.testing.assert_array_equal(read(store, range(60)), rows_of(range(60)))
    assert store.verify() == []


def test_garbage_stays_while_it_may_be_read(
    s3: str, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    append(store, range(30))
    name = store.find(SPEC).name
    garbage, in_use = collect(store)
    assert (list(garbage.sets), in_use) == ([name], [name])
    assert store.find(SPEC) is not None
    monkeypatch.setattr("extract.store.catalogue.READ_FOR", -(10**10))
    assert collect(store)[1] == []
    assert store.sets() == []
    assert not find_garbage(store)
    assert [p.key for p, _ in place(s3).walk()] == ["f.zarr/zarr.json"]


def test_a_copy_of_a_store_is_known_to_be_one(s3: str) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    append(store, range(3))
    with store.lock():
        store.write_snapshot("one", b"1", 1)
    assert not FeatureStore(store.path).was_copied
    storage_of(s3).copy("f.zarr/zarr.json", "g.zarr/zarr.json")
    assert FeatureStore(f"{s3}/g.zarr").was_copied


def test_nothing_of_the_credentials_is_kept_or_told(
    images: Path, s3: str, s3_server: S3Server, fx
) -> None:
    store = f"{s3}/f.zarr"
    said = fx("extract", images, "--store", store, "--size", 32)
    assert said.status == 0, said.err
    s3_server.refuse = lambda _: 403
    refused = fx("extract", images, "--store", store, "--size", 32)
    s3_server.refuse = lambda _: None
    assert refused.status == 1
    assert refused.err == f"fx: error: the storage denies access: {store}\n"
    kept = b"".join(path.read_bytes() for path, _ in place(s3).walk())
    for secret in (SECRET, "Signature"):
        assert secret not in said.out + said.err + refused.out + refused.err
        assert secret.encode() not in kept


def test_commands_read_and_write_a_store_on_s3(images: Path, s3: str, tmp_path: Path, fx) -> None:
    store = f"{s3}/f.zarr"
    assert fx("extract", images, "--store", store, "--size", 32).status == 0
    head = json.loads(fx("fit-head", "logreg", store, "--out", tmp_path, "--json").out)
    assert head["accuracy"] > 0.8
    listed = json.loads(fx("store", "ls", store, "--json").out)
    assert (listed["store"], listed["sets"][0]["rows"]) == (store, 72)
    assert fx("store", "verify", store).out == f"{store}: every committed row reads back\n"
    assert fx("store", "gc", store, "--yes").status == 0
    missing = fx("fit-head", "logreg", f"{s3}/nothing.zarr")
    assert missing.err.startswith(f"fx: error: no feature store at {s3}/nothing.zarr")


def test_a_place_is_a_url_in_any_of_its_forms() -> None:
    for text in ("s3://bucket/a/b", "s3:/bucket/a/b", "s3://bucket//a/./b/"):
        assert str(place(text)) == "s3://bucket/a/b"
        assert str(place(Path(text))) == "s3://bucket/a/b"
    assert place("data") == Path("data")
    assert isinstance(place("https://host/x.csv"), ObjectPath)
    assert str(place("s3://bucket") / "a" / "b.jpg") == "s3://bucket/a/b.jpg"


def test_without_obstore_its_extra_is_named(fx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.files.objects.find_spec", lambda name: None)
    said = fx("store", "ls", "s3://bucket/f.zarr")
    assert said.status == 1
    assert said.err == (
        "fx: error: s3://bucket/f.zarr is read with obstore, which is not installed; install the "
        "extra: pip install 'fx-images[s3]'\n"
    )


def test_an_odd_name_of_an_object_is_told(s3: str, s3_server: S3Server) -> None:
    bucket = s3.removeprefix("s3://")
    for key in ("x/a b/ü#%20~.png", "x/c.png"):
        s3_server.client.put_object(Bucket=bucket, Key=key, Body=b"1")
    assert [p.name for p, _ in (place(s3) / "x").walk()] == ["ü#%20~.png", "c.png"]
    s3_server.client.put_object(Bucket=bucket, Key="x/./d.png", Body=b"1")
    with pytest.raises(StorageFailure, match=r"x/\./d.png"):
        list((place(s3) / "x").walk())


def test_metadata_is_none_of_another_process(s3: str) -> None:
    store = FeatureStore.create(f"{s3}/f.zarr")
    ours, theirs = (StoreMetadata(store.path, store.catalogue) for _ in range(2))
    ours.update(writer="us")
    theirs.update(writer="them")
    with pytest.raises(FxError, match="is being written by them"):
        ours.update(writer="us")
