"""A commit names its chunks: what is whole but was not committed is never read as features."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from conftest import Said, write_classes
from crashing import warm_process
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from test_store import DIM, RUN, SPEC, append, keys_of, read, rows_of

from extract.errors import FxError
from extract.store import FeatureStore, StoredNetwork, collect
from extract.store.feature_set import ROW_ARRAYS, checksum_of
from fx.commands.store import describe_store, print_store

Fx = Callable[..., Said]
NAME = SPEC.id
OTHER = replace(SPEC, weights="01", backbone="other")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows a shard, four a chunk, and as many keys."""
    monkeypatch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
    monkeypatch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)
    monkeypatch.setattr("extract.store.writer.KEYS_PER_CHUNK", 8)


def chunk(path: Path, array: str = "features", number: int = 0, name: str = NAME) -> Path:
    return path / name / array / "c" / str(number) / "0"


def mended(path: Path, rows: range) -> set[bytes]:
    """Do what the next extraction does, and return the keys that it found."""
    store = FeatureStore(path)
    with store.lock():
        known = set(store.start([(SPEC, DIM)], RUN).known)
    append(store, rows)
    np.testing.assert_array_equal(read(store, rows), rows_of(rows))
    assert store.verify() == []
    return known


def check_that_damage_is_found(path: Path, file: Path, rows: range) -> set[bytes]:
    """Check that no row is read, that verify tells, and that the next extraction mends it."""
    with pytest.raises(FxError, match=r"damaged|missing"):
        read(FeatureStore(path), rows)
    found = FeatureStore(path).verify()
    assert str(file) in {str(file) for one in found if str(file) in one.reason}
    return mended(path, rows)


# Whole, and not what was committed


@pytest.mark.parametrize("array", ROW_ARRAYS)
def test_a_shard_of_an_earlier_time_is_damage(array: str, tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    store = FeatureStore.create(path)
    append(store, range(6))
    old = shutil.copy(chunk(path, array), tmp_path / "old")
    append(store, range(20))
    assert store.verify() == []
    # hashes of these rows are all zeros, whichever time they are of: they differ in nothing
    if array == "hashes":
        data = bytearray(old.read_bytes())
        data[:32] = bytes(range(32))
        data[-4:] = struct.pack("<I", google_crc32c.value(bytes(data[:-4])))
        old.write_bytes(data)
    shutil.copy(old, chunk(path, array))
    if array == "hashes":
        with pytest.raises(FxError, match="other rows than were committed"):
            store.find(SPEC).hashes(keys_of(range(1)))
        assert len(store.verify()) == 1
        return
    check_that_damage_is_found(path, chunk(path, array), range(20))


def test_shards_that_were_exchanged_are_damage(small_shards: None, tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    append(FeatureStore.create(path), range(24))
    one, two = chunk(path, number=0), chunk(path, number=1)
    one.rename(tmp_path / "one")
    two.rename(one)
    (tmp_path / "one").rename(two)
    known = check_that_damage_is_found(path, one, range(24))
    assert known == set(keys_of(range(16, 24)))


def test_a_shard_of_another_network_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    store = FeatureStore.create(path)
    append(store, range(10))
    with store.lock():
        writer = store.start([(OTHER, DIM)], RUN)
        writer.append(keys_of(range(10)), [rows_of(range(10)) + 1], np.zeros((10, 32), np.uint8))
        writer.commit()
    shutil.copy(chunk(path, name=OTHER.id), chunk(path))
    check_that_damage_is_found(path, chunk(path), range(10))


def test_a_chunk_that_a_shard_lacks_is_damage_not_zeros(small_shards: None, tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    append(FeatureStore.create(path), range(8))
    file = chunk(path)
    data = bytearray(file.read_bytes())
    # the index at the end: offset and length of each chunk, then its checksum; all ones: no chunk
    index = struct.unpack("<4Q", data[-36:-4])
    data[-36:-4] = struct.pack("<4Q", *index[:2], 2**64 - 1, 2**64 - 1)
    data[-4:] = struct.pack("<I", google_crc32c.value(bytes(data[-36:-4])))
    file.write_bytes(data)
    assert not zarr.open_group(path / NAME, mode="r")["features"][4:8].any()
    check_that_damage_is_found(path, file, range(8))


def check_files_in_place_of_others(path: Path, data: st.DataObject) -> None:
    store = FeatureStore.create(path)
    times = [path.with_name(f"time{number}") for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("extract.store.writer.ROWS_PER_SHARD", 8)
        patch.setattr("extract.store.writer.ROWS_PER_CHUNK", 4)
        patch.setattr("extract.store.writer.KEYS_PER_CHUNK", 8)
        for stop, time in zip((5, 13, 22), times, strict=True):
            append(store, range(stop))
            shutil.copytree(path, time)
    files = [f.relative_to(time) for time in times for f in sorted((time / NAME).rglob("*/c/*/0"))]
    for _ in range(data.draw(st.integers(1, 4))):
        source = data.draw(st.sampled_from(times)) / data.draw(st.sampled_from(files))
        target = path / data.draw(st.sampled_from(files))
        if source.exists() and target.exists():
            shutil.copy(source, target)
    # attributes and files of different times, as of a copy that is made while a writer writes
    if data.draw(st.booleans()):
        shutil.copy(data.draw(st.sampled_from(times)) / NAME / "zarr.json", path / NAME)
    for look in (lambda: None, FeatureStore(path).verify):
        look()
        feature_set = FeatureStore(path).find(SPEC)
        for key, row in zip(keys_of(range(22)), rows_of(range(22)), strict=True):
            with suppress(FxError):
                np.testing.assert_array_equal(feature_set.features([key])[0], row)
    mended(path, range(22))


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_files_in_place_of_others_give_no_wrong_row(tmp_path_factory, data) -> None:
    check_files_in_place_of_others(tmp_path_factory.mktemp("s") / "f.zarr", data)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_files_are_in_place_of_others_no_wrong_row_is_read(tmp_path_factory, data) -> None:
    check_files_in_place_of_others(tmp_path_factory.mktemp("s") / "f.zarr", data)


def test_a_network_or_snapshot_of_another_name_is_damage(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "f.zarr")
    with store.lock():
        store.write_network(one := StoredNetwork(b"graph a", b"tensors a"))
        store.write_network(two := StoredNetwork(b"graph b", b"tensors b"))
        store.write_snapshot("one", b"some rows", 1)
        store.write_snapshot("two", b"more rows", 2)
    files = {"networks": (f"{one.hash}.bin", f"{two.hash}.bin"), "snapshots": ("one", "two")}
    for kind, (right, wrong) in files.items():
        shutil.copy(store.path / kind / right / "c" / "0", store.path / kind / wrong / "c" / "0")
    with pytest.raises(FxError, match="not what was written under this name"):
        store.read_network(two.hash)
    with pytest.raises(FxError, match="not what was written under this name"):
        store.read_snapshot("two")
    assert {found.group for found in store.verify()} == {
        f"networks/{two.hash}.bin",
        "snapshots/two",
    }


def test_an_extraction_reads_everything_of_a_store_that_was_copied(
    small_shards: None, tmp_path: Path
) -> None:
    path = tmp_path / "f.zarr"
    store = FeatureStore.create(path)
    append(store, range(24))
    store.write_snapshot("s", b"any", 1)
    copy = Path(shutil.copytree(path, tmp_path / "copy.zarr"))
    # not the last shard, which every extraction reads
    shutil.copy(chunk(path, number=1), chunk(copy, number=0))
    assert mended(copy, range(24)) == set(keys_of(range(8, 24)))


def test_a_head_is_not_fitted_on_a_shard_of_an_earlier_time(tmp_path: Path, fx: Fx) -> None:
    images, path = write_classes(tmp_path / "data", per_class=6), tmp_path / "f.zarr"
    extracting = ("extract", images, "--store", path, "--size", 32, "--engine", "torch", "--json")
    assert fx(*extracting).status == 0
    (name,) = (s.name for s in FeatureStore(path).sets())
    old = shutil.copy(chunk(path, name=name), tmp_path / "old")
    write_classes(images, per_class=12)
    assert json.loads(fx(*extracting).out)["new"] == 12
    shutil.copy(old, chunk(path, name=name))
    said = fx("fit-head", "centroid", path, "--out", tmp_path / "runs")
    assert said.status == 1
    assert f"{chunk(path, name=name)} is damaged" in said.err
    assert fx("store", "verify", path).status == 1
    assert json.loads(fx(*extracting).out)["new"] == 24
    assert fx("store", "verify", path).status == 0
    assert fx("fit-head", "centroid", path, "--out", tmp_path / "runs").status == 0


# What the metadata says


def change(file: Path, *where: str | int, to: Any) -> None:
    """Change one value of a JSON file."""
    root = inner = json.loads(file.read_text())
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = to
    file.write_text(json.dumps(root))


ARRAYS = [
    ("features", ("data_type",), "int32"),
    ("features", ("data_type",), "float16"),
    ("features", ("data_type",), "bool"),
    ("features", ("shape",), [10, DIM - 1]),
    ("features", ("shape",), [10, 10**12]),
    ("features", ("shape",), [9, DIM]),
    ("features", ("shape",), [10]),
    ("features", ("chunk_grid", "configuration", "chunk_shape"), [10**12, DIM]),
    ("features", ("codecs", 0, "configuration", "codecs", 0, "configuration", "endian"), "big"),
    ("features", ("codecs", 0, "configuration", "codecs"), [{"name": "bytes"}]),
    ("features", ("codecs", 0, "configuration", "index_codecs", 1, "name"), "gzip"),
    ("keys", ("data_type",), "int8"),
    ("keys", ("codecs",), [{"name": "bytes"}]),
    ("hashes", ("shape",), [10, 31]),
]
SETS = [
    (("attributes", "committed"), -1),
    (("attributes", "committed"), 11),
    (("attributes", "committed"), 10.5),
    (("attributes", "committed"), "10"),
    (("attributes", "committed"), None),
    (("attributes", "dim"), 0),
    (("attributes", "dim"), 10**12),
    (("attributes", "spec"), None),
    (("attributes", "spec"), []),
    (("attributes", "spec"), {}),
    (("attributes", "spec", "size"), "8"),
    (("attributes", "spec"), {"backbone": "net"}),
    (("attributes", "spec", "colour"), "red"),
    (("attributes", "spec", "crops"), 3),
    (("attributes", "spec", "channels"), 2),
    (("attributes", "spec", "preprocessing"), {"size": 16}),
    (("attributes", "spec", "preprocessing", "size"), 32),
    (("attributes", "spec", "preprocessing", "std"), [0.5, 0, 0.5]),
    (("attributes", "runs"), 5),
    (("attributes", "runs"), [5]),
    (("attributes", "runs"), [{}]),
    (("attributes", "runs"), [{"taken_ns": "now", "engine": "test"}]),
    (("attributes", "weights_source"), None),
    (("attributes", "damaged"), 7),
    (("attributes", "damaged"), [["a", "b"]]),
    (("attributes", "checksums"), 5),
    (("attributes", "checksums"), {"features": [1]}),
    (("attributes", "checksums", "features"), []),
    (("attributes", "checksums", "keys", 0), "0"),
    (("attributes",), None),
    (("zarr_format",), 2),
]
ROOTS = [
    (("attributes", "last_spec"), [1]),
    (("attributes", "last_spec"), {"size": 8}),
    (("attributes", "last_spec"), {"backbone": "net", "size": "eight"}),
    (("attributes", "last_extracted"), 5),
    (("attributes", "last_weights_source"), {}),
    (("attributes", "last_snapshot"), []),
    (("attributes", "inode"), "x"),
    (("attributes", "writer"), 5),
    (("attributes", "commit"), 5),
    (("attributes", "commit"), {"a": 5}),
    (("attributes", "commit"), {NAME: {"committed": "many", "runs": []}}),
    (("attributes", "commit"), {NAME: {"committed": 9, "runs": [], "dim": 4}}),
    (("attributes", "commit"), {NAME: {"committed": 10**9, "runs": []}}),
    (("attributes",), 5),
]


@pytest.mark.parametrize(
    ("file", "where", "value"),
    [(f"{NAME}/{array}/zarr.json", where, value) for array, where, value in ARRAYS]
    + [(f"{NAME}/zarr.json", where, value) for where, value in SETS]
    + [("zarr.json", where, value) for where, value in ROOTS],
)
def test_metadata_of_a_wrong_kind_is_one_clear_error_and_never_a_wrong_row(
    file: str, where: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    path = tmp_path / "f.zarr"
    store = FeatureStore.create(path)
    append(store, range(10))
    store.write_snapshot("s", b"any", 1)
    change(path / file, *where, to=value)
    told, found = "", rows_of(range(10))
    try:
        found = FeatureStore(path).last_extracted().features(keys_of(range(10)))
    except FxError as error:
        told = str(error)
    np.testing.assert_array_equal(found, rows_of(range(10)))
    assert "\n" not in told
    assert len(told) < 600
    # a root that says too much of one set is as good as any: sets say themselves what they hold
    harmless = where == ("attributes", "commit") and value == ROOTS[-2][1]
    assert bool(FeatureStore(path).verify()) is not harmless
    print_store(describe_store(path))
    append(FeatureStore(path), range(10))
    np.testing.assert_array_equal(read(FeatureStore(path), range(10)), rows_of(range(10)))


BYTES = {
    "deep": b"[" * 200_000,
    "deep objects": b'{"attributes":' * 200_000,
    "no UTF-8": b'{"zarr_format": 3, "node_type": "group", "attributes": {"a": "\xff\xfe"}}',
    "a number": b"5",
    "nothing": b"",
}


@pytest.mark.parametrize("content", BYTES)
@pytest.mark.parametrize("file", ["zarr.json", f"{NAME}/zarr.json", f"{NAME}/features/zarr.json"])
def test_metadata_that_is_no_json_is_one_clear_error(
    file: str, content: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.zarr"
    append(FeatureStore.create(path), range(10))
    (path / file).write_bytes(BYTES[content])
    found = FeatureStore(path).verify()
    assert str(path / file) in " ".join(one.reason for one in found)
    print_store(describe_store(path))
    append(FeatureStore(path), range(10))
    np.testing.assert_array_equal(read(FeatureStore(path), range(10)), rows_of(range(10)))


# Pipes, devices and links


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "link to nothing"])
@pytest.mark.parametrize(
    "file",
    [
        "zarr.json",
        f"{NAME}/zarr.json",
        f"{NAME}/features/zarr.json",
        f"{NAME}/features/c/0/0",
        f"{NAME}/keys/c/0/0",
        f"{NAME}/hashes/c/0/0",
        "snapshots/zarr.json",
        "snapshots/s/zarr.json",
        "snapshots/s/c/0",
    ],
)
def test_nothing_in_a_store_is_waited_for(file: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    store = FeatureStore.create(path)
    append(store, range(10))
    store.write_snapshot("s", b"any", 1)
    (path / file).unlink()
    if what == "pipe":
        os.mkfifo(path / file)
    elif what == "folder":
        (path / file).mkdir()
    else:
        (path / file).symlink_to("/dev/zero" if what == "device" else tmp_path / "nowhere")
    found = FeatureStore(path).verify()
    assert str(path / file) in " ".join(one.reason for one in found)
    print_store(describe_store(path))
    append(FeatureStore(path), range(10))
    np.testing.assert_array_equal(read(FeatureStore(path), range(10)), rows_of(range(10)))


def test_unfinished_files_that_are_links_go_and_what_they_name_stays(tmp_path: Path) -> None:
    path, mine = tmp_path / "f.zarr", tmp_path / "mine"
    append(FeatureStore.create(path), range(3))
    mine.mkdir()
    (mine / "precious").write_text("mine")
    (path / "a.partial").symlink_to(mine)
    (path / NAME / "b.partial").symlink_to(mine / "precious")
    (path / f"{OTHER.id}.partial").symlink_to(mine)
    append(FeatureStore(path), range(5))
    assert (mine / "precious").read_text() == "mine"
    assert not list(path.rglob("*.partial"))


# Stores of earlier versions


def as_written_before(path: Path) -> None:
    """Make a store one of the version that kept no checksums."""

    def strip(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {k: strip(v) for k, v in tree.items() if k not in ("checksums", "checksum")}

    for file in path.rglob("zarr.json"):
        content = strip(json.loads(file.read_text()))
        if file.parent == path:
            content["attributes"]["fx_layout"] = 1
        file.write_text(json.dumps(content))


@pytest.fixture
def old(tmp_path: Path, small_shards: None) -> Path:
    """A store of the version that kept no checksums, with twelve rows."""
    path = tmp_path / "f.zarr"
    store = FeatureStore.create(path)
    append(store, range(12))
    store.write_snapshot("s", b"any", 1)
    as_written_before(path)
    return path


def checksums_of(path: Path) -> dict[str, list[int]] | None:
    return FeatureStore(path).find(SPEC).checksums


def test_a_store_of_an_earlier_version_is_read_and_completed_when_it_is_written_to(
    old: Path,
) -> None:
    store = FeatureStore(old)
    assert checksums_of(old) is None
    np.testing.assert_array_equal(read(store, range(12)), rows_of(range(12)))
    assert store.read_snapshot() == ("s", b"any")
    assert store.verify() == []
    append(store, range(18))
    np.testing.assert_array_equal(read(store, range(18)), rows_of(range(18)))
    assert checksums_of(old)["features"] == [
        checksum_of(rows_of(range(start, min(start + 8, 18)))) for start in (0, 8, 16)
    ]
    assert zarr.open_group(old).attrs["fx_layout"] == 2
    shutil.copy(chunk(old, number=0), chunk(old, number=1))
    check_that_damage_is_found(old, chunk(old, number=1), range(18))


def test_a_store_of_an_earlier_version_is_completed_where_nothing_is_new(old: Path) -> None:
    append(FeatureStore(old), range(12))
    assert len(checksums_of(old)["features"]) == 2


@pytest.mark.parametrize("array", ["features", "keys"])
def test_damage_in_a_store_of_an_earlier_version_is_mended_when_it_is_completed(
    old: Path, array: str
) -> None:
    data = bytearray(chunk(old, array).read_bytes())
    data[10] ^= 1
    chunk(old, array).write_bytes(data)
    assert mended(old, range(12)) == set(keys_of(range(8, 12)))


def test_garbage_of_an_earlier_version_is_collected(old: Path) -> None:
    with FeatureStore(old).lock():
        FeatureStore(old).drop_snapshot("s")
    collect(FeatureStore(old))
    assert FeatureStore(old).sets() == []


# One write an update


def write_another_network(path: str) -> None:
    store = FeatureStore.create(path)
    with store.lock():
        writer = store.start([(OTHER, DIM)], replace(RUN, weights_source="other source"))
        writer.append(keys_of(range(3)), [rows_of(range(3))], np.zeros((3, 32), np.uint8))
        writer.commit()


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_between_two_networks_a_store_pairs_each_with_its_own_weights(
    every: int, tmp_path: Path
) -> None:
    before, path = tmp_path / "before.zarr", tmp_path / "f.zarr"
    append(FeatureStore.create(before), range(3))
    shutil.copytree(before, path)
    steps = warm_process().run(write_another_network, path).steps
    seen = set()
    for step in range(1, steps + 1, every):
        shutil.rmtree(path)
        shutil.copytree(before, path)
        assert warm_process().run(write_another_network, path, at_step=step).killed
        spec, source = FeatureStore(path).last_wanted()
        seen.add((spec.backbone, source))
        for feature_set in FeatureStore(path).sets():
            # what counts, and what has computed it, come at once
            assert sum(run.rows for run in feature_set.runs) == feature_set.committed
    assert seen == {("net", "default"), ("other", "other source")}


def test_a_store_that_an_earlier_version_left_between_two_writes_is_extracted_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.zarr"
    append(FeatureStore.create(path), range(3))
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"]["last_weights_source"]
    (path / "zarr.json").write_text(json.dumps(root))
    assert FeatureStore(path).last_wanted() == (SPEC, "default")


# A folder with nothing in it


@pytest.mark.parametrize("inside", [[], ["lost+found"], [".DS_Store"], ["x.partial"]])
def test_an_empty_folder_holds_nothing_yet(inside: list[str], tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    for name in ("", *inside):
        (path / name).mkdir()
    store = FeatureStore(path)
    assert (store.sets(), store.snapshots(), store.has_features) == ([], [], False)
    with pytest.raises(FxError, match="holds no features yet; extract images first"):
        store.last_extracted()
    assert store.verify() == []
    shutil.rmtree(path)
    path.mkdir()
    append(FeatureStore.create(path), range(3))
    np.testing.assert_array_equal(read(FeatureStore(path), range(3)), rows_of(range(3)))


def test_commands_take_an_empty_folder_for_a_store(tmp_path: Path, fx: Fx) -> None:
    images, path = write_classes(tmp_path / "data", per_class=2), tmp_path / "f.zarr"
    path.mkdir()
    listed = fx("store", "ls", path, "--json")
    assert (listed.status, json.loads(listed.out)["sets"]) == (0, [])
    assert "holds no features yet; extract images first" in fx("fit-head", "svm", path).err
    # the backbone is not named
    said = fx("extract", images, "--store", path, "--size", 32, "--engine", "torch", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["new"] == 4


@pytest.mark.parametrize("array", ROW_ARRAYS)
def test_another_engine_mends_damage_too(array: str, tmp_path: Path, fx: Fx) -> None:
    images, path = write_classes(tmp_path / "data", per_class=4), tmp_path / "f.zarr"
    extracting = ("extract", images, "--store", path, "--size", 32, "--json")
    assert fx(*extracting, "--engine", "torch").status == 0
    name = FeatureStore(path).last_extracted().name
    chunk(path, array, name=name).unlink()
    said = fx(*extracting, "--engine", "openvino")
    assert said.status == 0, said.err
    assert json.loads(said.out)["new"] == 8
    assert fx("store", "verify", path).status == 0


def test_training_from_scratch_needs_no_features_that_are_damaged(tmp_path: Path, fx: Fx) -> None:
    images, path = write_classes(tmp_path / "data", per_class=6), tmp_path / "f.zarr"
    assert fx("extract", images, "--store", path, "--size", 32, "--engine", "torch").status == 0
    chunk(path, "keys", name=FeatureStore(path).last_extracted().name).unlink()
    tuning = ("finetune", images, "--store", path, "--out", tmp_path / "runs", "--epochs", 1)
    said = fx(*tuning, "--from-scratch", "--backbone", "small_cnn", "--size", 32)
    assert said.status == 0, said.err
