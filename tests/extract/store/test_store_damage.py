"""Damage is found, told, and mended by the next extraction; a full disk costs no committed row."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zarr
from conftest import Said, write_classes
from crashing import warm_process
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import RUN, flip_a_bit, keys_of
from test_store_killed import ALL, BEFORE, LAYERS, check_equal, features_of, fill, rows_in

from extract.backbones import load_backbone
from extract.engines import TorchEngine
from extract.errors import FxError
from extract.extraction import extract
from extract.images import find_images
from extract.store import FeatureStore, collect
from extract.store.metadata import LAYOUT, LAYOUTS

Fx = Callable[..., Said]
Harm = Callable[[Path], None]


# A disk that is full


def test_a_full_disk_is_told_in_one_line_and_the_extraction_goes_on_when_there_is_room(
    small_disk, folder: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.store.writer.COMMIT_INTERVAL", -1.0)
    # room for the first commit, but not for the shards of the second beside it
    store = small_disk("4500k") / "f.zarr"
    command = ("extract", folder, "--store", store, "--size", 32, "--engine", "torch")
    command += ("--batch-size", 4, "--layer", "pool,blocks.2")
    full = fx(*command)
    assert full.status == 1
    (line,) = full.err.splitlines()
    assert line.startswith(f"fx: error: No space left on device: {store} needs ")
    assert line.endswith("; make room and run the same command again: it goes on from what is kept")
    assert [len(s.rows) for s in FeatureStore(store).sets()] == [4, 4]
    small_disk("20m")
    again = fx(*command, "--json")
    assert again.status == 0
    said = json.loads(again.out)
    assert (said["new"], said["reused"]) == (12, 4)
    assert fx("store", "verify", store).status == 0


def test_whatever_room_is_left_a_full_disk_costs_no_committed_row(small_disk) -> None:
    path = small_disk("8m") / "f.zarr"
    before, filler = path.with_name("before.zarr"), path.with_name("filler")
    fill(str(before), BEFORE)
    ended = set()
    # for the metadata, which is small, and for the keys, half a megabyte a chunk
    for kilobytes in (*range(0, 48, 8), 512, 536, 1200):
        shutil.copytree(before, path)
        filler.write_bytes(bytes(shutil.disk_usage(path).free - 1024 * kilobytes))
        try:
            fill(str(path))
            ended.add("done")
        except FxError as error:
            ended.add(str(error))
        one, two = rows_in(path)
        assert one == two
        assert one >= set(keys_of(range(BEFORE)))
        assert FeatureStore(path).verify() == []
        filler.unlink()
        fill(str(path))
        assert rows_in(path) == [set(keys_of(range(ALL)))] * 2
        assert FeatureStore(path).read_snapshot() == ("s", b"rows up to %d" % ALL)
        shutil.rmtree(path)
    assert "done" in ended
    for said in ended - {"done"}:
        assert re.fullmatch(
            rf"No space left on device: {path} needs (more|[\d.]+ [KM]B), and [\d.]+ \w+ are free; "
            "make room and run the same command again: it goes on from what is kept",
            said,
        )


def test_garbage_can_be_collected_on_a_full_disk(small_disk) -> None:
    path = small_disk("8m") / "f.zarr"
    fill(str(path))
    with FeatureStore(path).lock():
        FeatureStore(path).drop_snapshot("s")
    filler = path.with_name("filler")
    filler.write_bytes(bytes(shutil.disk_usage(path).free))
    garbage, in_use = collect(FeatureStore(path))
    assert (len(garbage.sets), in_use) == (2, [])
    assert FeatureStore(path).sets() == []


# What readers see


def test_a_reader_beside_a_writer_sees_only_committed_rows(tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    FeatureStore.create(path)
    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(warm_process().run, fill, path, ALL, None, 1)
        while not writer.done():
            one, two = rows_in(path)
            # read one after the other, and all of a commit or none of it
            assert one <= two
            assert one == set(keys_of(range(len(one))))
            seen.append(len(one))
        writer.result()
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_a_reader_from_before_the_mending_is_told_that_its_rows_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    fill(str(path))
    reader = FeatureStore(path).find(LAYERS[0][0])
    keys = list(reader.rows)
    (reader.path / "features" / "c" / "0" / "0").unlink()
    with pytest.raises(FxError, match="is missing; verify the store"):
        reader.features(keys)
    fill(str(path))
    # the rows that could be read are in another generation now
    with pytest.raises(FxError, match="is missing; verify the store"):
        reader.features(keys)
    assert len(FeatureStore(path).find(LAYERS[0][0]).features(keys)) == ALL


# What is damaged


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


DATA = [f"SET/{name}/c/0/0" for name in ("features", "keys", "hashes")] + ["snapshots/SNAPSHOT/c/0"]
METADATA = [
    f"{folder}zarr.json"
    for folder in ("", "SET/", "SET/features/", "SET/keys/", "SET/hashes/", "snapshots/")
] + ["snapshots/SNAPSHOT/zarr.json"]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and with a store of their features."""
    root = tmp_path_factory.mktemp("extracted")
    write_classes(root / "data")
    backbone = load_backbone("efficientnet_lite0", size=32)
    engine = TorchEngine(backbone.module, backbone.preprocessing, torch.device("cpu"))
    store = FeatureStore.create(root / "f.zarr")
    extract(find_images(root / "data"), backbone=backbone, engine=engine, store=store)
    return root


def harmed_copy(extracted: Path, file: str, harm: Harm, path: Path) -> tuple[Path, str]:
    """Copy the store and damage a file of it; return that file, and the name of the set."""
    shutil.copytree(extracted / "f.zarr", path)
    store = FeatureStore(path)
    (name,), (snapshot,) = (s.name for s in store.sets()), store.snapshots()
    harmed = path / file.replace("SET", name).replace("SNAPSHOT", snapshot)
    harm(harmed)
    return harmed, name


@pytest.mark.parametrize(
    ("file", "harm"),
    [(file, flip_a_bit) for file in DATA]
    + [(file, truncate) for file in METADATA]
    + [
        pytest.param(file, harm, marks=pytest.mark.slow)
        for file in (*DATA, *METADATA)
        for harm in (Path.unlink, truncate, empty)
        if (file, harm) not in [(one, truncate) for one in METADATA]
    ],
)
def test_damage_is_found_by_verify_and_mended_by_the_next_extract(
    file: str, harm: Harm, extracted: Path, tmp_path: Path, fx: Fx
) -> None:
    path = tmp_path / "f.zarr"
    before = features_of(extracted / "f.zarr")
    harmed, name = harmed_copy(extracted, file, harm, path)
    found = fx("store", "verify", path)
    assert found.status == 1
    assert f"{harmed} is " in found.out

    extracting = ("extract", extracted / "data", "--store", path, "--size", 32)
    extracting += ("--engine", "torch", "--backbone", "efficientnet_lite0", "--json")
    said = fx(*extracting)
    assert said.status == 0, said.err
    assert json.loads(said.out)["new"] == (16 if file.startswith("SET") else 0)
    after = features_of(path)
    assert after.keys() == before.keys()
    check_equal(after, before)

    again = fx("store", "verify", path)
    if file.startswith("SET") and file.endswith("zarr.json"):
        # nothing can be made of it: there is a new generation, and it stays until it is dropped
        assert again.status == 1
        assert f"{name}.g1 has taken its place, and collecting garbage drops it" in again.out
        assert fx("store", "gc", path, "--yes").status == 0
        again = fx("store", "verify", path)
    assert again.status == 0, again.out
    assert json.loads(fx(*extracting).out)["reused"] == 16


@pytest.mark.parametrize("file", ["zarr.json", "SET/zarr.json", "SET/keys/zarr.json"])
def test_what_is_damaged_is_extracted_as_it_was_where_nothing_is_said(
    file: str, extracted: Path, tmp_path: Path, fx: Fx
) -> None:
    path = tmp_path / "f.zarr"
    harmed_copy(extracted, file, truncate, path)
    # neither the backbone nor its size, which is not the default
    said = fx("extract", extracted / "data", "--store", path, "--engine", "torch", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["new"] == (0 if file == "zarr.json" else 16)
    check_equal(features_of(path), features_of(extracted / "f.zarr"))


@pytest.mark.parametrize("file", [*DATA, *METADATA])
def test_a_damaged_store_can_be_listed(file: str, extracted: Path, tmp_path: Path, fx: Fx) -> None:
    path = tmp_path / "f.zarr"
    harmed, name = harmed_copy(extracted, file, truncate, path)
    listed = fx("store", "ls", path)
    assert listed.status == 0, listed.err
    if file in ("SET/features/c/0/0", "SET/hashes/c/0/0", "snapshots/zarr.json"):
        # who lists does not read them
        assert name in listed.out
    else:
        assert f"{harmed} is damaged" in " ".join(listed.out.split())


def test_the_shard_that_grows_is_mended_also_where_nobody_has_looked(tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    fill(str(path), BEFORE)
    for feature_set in FeatureStore(path).sets():
        flip_a_bit(feature_set.path / "features" / "c" / "0" / "0")
    fill(str(path))
    assert rows_in(path) == [set(keys_of(range(ALL)))] * 2
    assert FeatureStore(path).verify() == []


def test_damage_beyond_the_committed_rows_costs_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("extract.store.writer.ROWS_PER_SHARD", 4)
    monkeypatch.setattr("extract.store.writer.ROWS_PER_CHUNK", 2)
    path = tmp_path / "f.zarr"
    fill(str(path), 8)
    for feature_set in FeatureStore(path).sets():
        array = zarr.open_group(feature_set.path, mode="r+")["features"]
        array.resize((10, 5))
        array[8:] = 7
        flip_a_bit(feature_set.path / "features" / "c" / "2" / "0")
    assert FeatureStore(path).verify() == []
    with FeatureStore(path).lock():
        assert FeatureStore(path).start(LAYERS, RUN).known == set(keys_of(range(8)))
    fill(str(path))
    assert rows_in(path) == [set(keys_of(range(ALL)))] * 2


def test_a_set_deleted_by_hand_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "f.zarr"
    fill(str(path))
    names = [s.name for s in FeatureStore(path).sets()]
    shutil.rmtree(path / FeatureStore(path).last_extracted().name)
    assert len(FeatureStore(path).last_extracted().rows) == ALL
    fill(str(path))
    assert rows_in(path) == [set(keys_of(range(ALL)))] * 2
    assert [s.name for s in FeatureStore(path).sets()] == names


def check_a_flipped_bit(path: Path, where: float, place: float, bit: int) -> None:
    fill(str(path))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = files[round(where * (len(files) - 1))]
    data = bytearray(file.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1 << bit
    file.write_bytes(data)
    if file == path / "zarr.json" and b'"fx_layout": 1' not in data:
        # what tells that it is a store of this version
        return
    # before anybody has loaded, and after
    for look in (lambda: None, FeatureStore(path).verify):
        look()
        with suppress(FxError):
            rows_in(path)
    fill(str(path))
    assert rows_in(path) == [set(keys_of(range(ALL)))] * 2
    # of a set whose metadata is lost, there is a new generation now
    for damage in FeatureStore(path).verify():
        assert "has taken its place" in damage.reason


ANYWHERE = given(where=st.floats(0, 1), place=st.floats(0, 1), bit=st.integers(0, 7))


@settings(max_examples=4, deadline=None)
@ANYWHERE
def test_a_flipped_bit_never_gives_a_wrong_row(tmp_path_factory, **flipped) -> None:
    check_a_flipped_bit(tmp_path_factory.mktemp("flipped") / "f.zarr", **flipped)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@ANYWHERE
def test_a_bit_flipped_anywhere_never_gives_a_wrong_row(tmp_path_factory, **flipped) -> None:
    check_a_flipped_bit(tmp_path_factory.mktemp("flipped") / "f.zarr", **flipped)


# What is something else


def test_an_older_layout_is_told_apart_from_a_broken_store(
    extracted: Path, tmp_path: Path, fx: Fx
) -> None:
    path = tmp_path / "f.zarr"
    shutil.copytree(extracted / "f.zarr", path)
    zarr.open_group(path, mode="r+").attrs["fx_layout"] = LAYOUTS[0] - 1
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for command in (
        ("store", "ls", path),
        ("store", "verify", path),
        ("store", "gc", path, "--yes"),
        ("extract", extracted / "data", "--store", path),
        ("fit-head", "logreg", path),
    ):
        said = fx(*command)
        assert said.status == 1
        (line,) = said.err.splitlines()
        assert line == (
            f"fx: error: {path} is not a feature store of this version; "
            f"got layout {LAYOUTS[0] - 1}, expected {LAYOUT}; extract into a new store"
        )
    # whatever it is, nothing of it was touched
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_zarr_group_of_somebody_else_is_none_of_ours(tmp_path: Path, fx: Fx) -> None:
    zarr.create_group(tmp_path / "f.zarr").create_array("x", shape=(3,), dtype="int8")
    said = fx("store", "verify", tmp_path / "f.zarr")
    assert (said.status, said.out) == (1, "")
    assert "is a Zarr group, but not a feature store" in said.err


def test_a_copied_store_hashes_every_file_again_and_a_moved_one_none(
    extracted: Path, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    # files as they are after a moment: too young ones are read again
    monkeypatch.setattr("extract.extraction.RACY_NS", -(10**12))
    hashed: list[int] = []

    def sha256(data: bytes) -> object:
        hashed.append(len(data))
        return hashlib.sha256(data)

    monkeypatch.setattr("extract.images.loader.hashlib", SimpleNamespace(sha256=sha256))

    def files_hashed(path: Path) -> int:
        hashed.clear()
        said = fx("extract", extracted / "data", "--store", path, "--engine", "torch", "--json")
        assert json.loads(said.out)["reused"] == 16
        return len(hashed)

    path = tmp_path / "f.zarr"
    shutil.copytree(extracted / "f.zarr", path)
    assert FeatureStore(path).was_copied
    assert files_hashed(path) == 16
    assert not FeatureStore(path).was_copied
    assert files_hashed(path) == 0
    path = path.rename(tmp_path / "moved.zarr")
    assert files_hashed(path) == 0
    shutil.copytree(extracted / "data", tmp_path / "data")
    said = fx("extract", tmp_path / "data", "--store", path, "--engine", "torch", "--json")
    assert (json.loads(said.out)["new"], len(hashed)) == (0, 16)
