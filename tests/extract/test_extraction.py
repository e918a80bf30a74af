"""Extraction: every readable image has its row, computed once and by its bytes alone."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import timm
import torch
from conftest import encoded, make_image, write_classes
from PIL import Image

from extract.backbones import Backbone, load_backbone
from extract.engines import Engine, TorchEngine
from extract.extraction import ExtractResult, extract
from extract.images import DuplicateImage, Snapshot, decode, find_images
from extract.images.crops import prepare
from extract.store import FeatureStore, Spec

SIZE = 32


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet_lite0", size=SIZE)


def run(
    images: Path, store: Path, backbone: Backbone, *, batch_size: int = 4, **options: object
) -> ExtractResult:
    engine = TorchEngine(
        backbone.module, backbone.preprocessing, torch.device("cpu"), batch_size=batch_size
    )
    return extract(
        find_images(images),
        backbone=backbone,
        engine=engine,
        store=FeatureStore.create(store),
        **options,
    )


def by_path(store: Path, backbone: Backbone) -> dict[str, np.ndarray]:
    opened = FeatureStore(store)
    rows = Snapshot.from_parquet(*opened.read_snapshot()).rows
    readable = [row for row in rows if row.readable]
    features = opened.last_extracted().features([row.key for row in readable])
    return {row.path: vector for row, vector in zip(readable, features, strict=True)}


def test_features_equal_the_frameworks_own_forward_pass(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    # timm's network, filled by timm with the wheel's tensors in their order
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict(backbone.module.state_dict())
    for path, vector in by_path(tmp_path / "f.zarr", backbone).items():
        (pixels,) = prepare(decode((folder / path).read_bytes()), backbone.preprocessing)
        images = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
        with torch.inference_mode():
            expected = network(images).numpy()[0]
        assert np.linalg.norm(vector - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 50])
def test_batch_size_and_order_of_files_do_not_matter(
    folder: Path, tmp_path: Path, backbone: Backbone, batch_size: int
) -> None:
    run(folder, tmp_path / "f.zarr", backbone, batch_size=4)
    first = by_path(tmp_path / "f.zarr", backbone)
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for number, path in enumerate(sorted(first, key=lambda p: p[::-1])):
        shutil.copy(folder / path, shuffled / f"{number:02d}_{path.replace('/', '_')}")
    run(shuffled, tmp_path / "g.zarr", backbone, batch_size=batch_size)
    second = by_path(tmp_path / "g.zarr", backbone)
    for path, vector in first.items():
        (other,) = (v for p, v in second.items() if p.endswith(path.replace("/", "_")))
        assert np.linalg.norm(vector - other) < 1e-4 * np.linalg.norm(vector)


def test_a_second_run_computes_nothing_and_reads_no_file(
    folder: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # files as they are after a moment: too young ones are read again
    monkeypatch.setattr("extract.extraction.RACY_NS", -(10**12))
    first = run(folder, tmp_path / "f.zarr", backbone)
    assert (first.new, first.reused) == (16, 0)

    def no_reading(data: bytes) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr("extract.images.loader.hashlib", SimpleNamespace(sha256=no_reading))
    second = run(folder, tmp_path / "f.zarr", backbone, snapshot="again")
    assert (second.new, second.reused) == (0, 16)


def test_moved_renamed_copied_and_relabelled_images_compute_nothing(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    (moved / "a" / "000.png").rename(moved / "a" / "renamed.png")
    (moved / "a" / "001.png").rename(moved / "b" / "relabelled.png")
    shutil.copy(moved / "b" / "002.png", moved / "b" / "copy.png")
    again = run(moved, tmp_path / "f.zarr", backbone)
    assert (again.new, again.reused, again.images) == (0, 17, 17)
    assert again.duplicates == [DuplicateImage("b/copy.png", "b/002.png")]


def test_one_changed_image_computes_one(folder: Path, tmp_path: Path, backbone: Backbone) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    make_image(1, 777).save(folder / "a" / "003.png")
    again = run(folder, tmp_path / "f.zarr", backbone)
    assert (again.new, again.reused) == (1, 15)


def test_an_edit_with_size_and_time_put_back_is_noticed(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    file = folder / "a" / "003.bmp"
    make_image(1, 5).save(file)
    run(folder, tmp_path / "f.zarr", backbone)
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[500] ^= 255
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert run(folder, tmp_path / "f.zarr", backbone).new == 1


def test_one_changed_tensor_computes_all(folder: Path, tmp_path: Path, backbone: Backbone) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    state = backbone.module.state_dict()
    name = next(iter(state))
    file = tmp_path / "changed.pth"
    torch.save({**state, name: state[name] * 1.001}, file)
    changed = load_backbone("efficientnet_lite0", weights=str(file), size=SIZE)
    assert run(folder, tmp_path / "f.zarr", changed).new == 16


def test_rows_of_another_engine_are_compared_before_more_are_added(
    folder: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    monkeypatch.setattr(TorchEngine, "name", "other")
    make_image(2, 55).save(folder / "a" / "new.png")
    agreeing = run(folder, tmp_path / "f.zarr", backbone)
    assert (agreeing.new, agreeing.reused) == (1, 16)

    # an engine that computes something else begins a new generation
    monkeypatch.setattr(TorchEngine, "name", "third")
    compute = Engine.compute
    monkeypatch.setattr(Engine, "compute", lambda self, *a: compute(self, *a) * 1.01)
    differing = run(folder, tmp_path / "f.zarr", backbone)
    assert (differing.new, differing.reused) == (17, 0)
    assert differing.spec.endswith(".g1")


def test_unreadable_images_are_named_and_cost_their_neighbours_nothing(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    clean = by_path(tmp_path / "f.zarr", backbone)
    (folder / "a" / "0005.jpg").write_bytes(b"this is text")
    (folder / "a" / "0006.png").write_bytes(b"")
    (folder / "b" / "0007.png").write_bytes(encoded(make_image(1, 3))[:-400])
    result = run(folder, tmp_path / "g.zarr", backbone)
    assert [r.path for r in result.failed] == ["a/0005.jpg", "a/0006.png", "b/0007.png"]
    assert all(r.reason for r in result.failed)
    assert result.new == 16
    for path, vector in by_path(tmp_path / "g.zarr", backbone).items():
        assert np.linalg.norm(vector - clean[path]) < 1e-4 * np.linalg.norm(vector)
    snapshot = Snapshot.from_parquet(*FeatureStore(tmp_path / "g.zarr").read_snapshot())
    assert len(snapshot.failed()) == 3


def test_a_file_that_vanishes_is_named_and_tried_again(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    source = find_images(folder)
    (folder / "a" / "000.png").rename(tmp_path / "gone.png")
    engine = TorchEngine(backbone.module, backbone.preprocessing, torch.device("cpu"))
    store = FeatureStore.create(tmp_path / "f.zarr")
    result = extract(source, backbone=backbone, engine=engine, store=store)
    assert [r.path for r in result.failed] == ["a/000.png"]
    (tmp_path / "gone.png").rename(folder / "a" / "000.png")
    assert run(folder, tmp_path / "f.zarr", backbone).new == 1


def test_conflicting_labels_are_reported(folder: Path, tmp_path: Path, backbone: Backbone) -> None:
    shutil.copy(folder / "a" / "000.png", folder / "b" / "same.png")
    result = run(folder, tmp_path / "f.zarr", backbone)
    assert result.conflicts == ["a/000.png", "b/same.png"]
    assert sum(sum(c.values()) for c in result.splits.values()) == 15


def test_near_copies_across_given_splits_are_a_leak(
    photos: Path, tmp_path: Path, backbone: Backbone
) -> None:
    files = sorted(photos.iterdir())[:12]
    for split, chosen in (("train", files[:8]), ("test", files[8:])):
        for number, file in enumerate(chosen):
            target = tmp_path / "data" / split / "ab"[number % 2]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    with Image.open(files[0]) as image:
        smaller = image.convert("RGB").resize((image.width // 2, image.height // 2))
        smaller.save(tmp_path / "data" / "test" / "a" / "again.jpg", quality=70)
    result = run(tmp_path / "data", tmp_path / "f.zarr", backbone)
    (leak,) = result.leaks
    assert leak.path == "test/a/again.jpg"
    assert leak.near_copy == f"train/a/{files[0].name}"


def test_a_table_with_groups_and_splits_is_followed(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in folder.rglob("*.png"))
    lines = [f"{path},{path.split('/')[1]},g{n // 4}" for n, path in enumerate(paths)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label,group", *lines]))
    run(table, tmp_path / "f.zarr", backbone)
    snapshot = Snapshot.from_parquet(*FeatureStore(tmp_path / "f.zarr").read_snapshot())
    sides: dict[str | None, set[str | None]] = {}
    for row in snapshot.rows:
        sides.setdefault(row.group, set()).add(row.split)
    assert len(sides) == 4
    assert all(len(side) == 1 for side in sides.values())


def test_two_folders_that_share_images_share_features(tmp_path: Path, backbone: Backbone) -> None:
    run(write_classes(tmp_path / "one"), tmp_path / "f.zarr", backbone)
    result = run(write_classes(tmp_path / "two", per_class=10), tmp_path / "f.zarr", backbone)
    assert (result.new, result.reused) == (4, 16)


def test_an_interrupted_extraction_keeps_what_it_has(
    folder: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = Engine.compute, []

    def failing(self: Engine, *arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, *arguments)

    monkeypatch.setattr(Engine, "compute", failing)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "f.zarr", backbone)
    again = run(folder, tmp_path / "f.zarr", backbone)
    assert (again.new, again.reused) == (8, 8)


def test_features_that_are_not_finite_are_computed_again_in_fp32(backbone: Backbone) -> None:
    class Overflows(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flat = images.mean(dim=(1, 2, 3))[:, None]
            # as float16 would: too large in the low precision only
            return flat * float("inf") if torch.is_autocast_enabled("cpu") else flat

    engine = TorchEngine(Overflows(), backbone.preprocessing, torch.device("cpu"), "bf16", 4)
    pixels = np.full((3, SIZE, SIZE, 3), 200, np.uint8)
    (features,) = engine.run([pixels])
    np.testing.assert_allclose(features, 200 / 127.5 - 1, rtol=1e-5)


def test_the_precision_is_part_of_the_spec(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    engine = TorchEngine(backbone.module, backbone.preprocessing, torch.device("cpu"), "bf16", 4)
    store = FeatureStore(tmp_path / "f.zarr")
    result = extract(find_images(folder), backbone=backbone, engine=engine, store=store)
    assert result.new == 16
    assert len(store.sets()) == 2


def test_damaged_rows_are_computed_again(folder: Path, tmp_path: Path, backbone: Backbone) -> None:
    run(folder, tmp_path / "f.zarr", backbone)
    before = by_path(tmp_path / "f.zarr", backbone)
    (shard,) = (tmp_path / "f.zarr").glob("efficientnet*/features/c/0/0")
    shard.unlink()
    again = run(folder, tmp_path / "f.zarr", backbone)
    assert again.new == 16
    for path, vector in by_path(tmp_path / "f.zarr", backbone).items():
        np.testing.assert_allclose(vector, before[path], rtol=1e-4, atol=1e-5)


def test_a_spec_with_another_preprocessing_is_another(backbone: Backbone) -> None:
    from extract.backbones import make_spec

    other = replace(backbone, preprocessing=backbone.preprocessing.at_size(SIZE + 16))
    assert make_spec(backbone, "fp32").id != make_spec(other, "fp32").id
    again = json.loads(json.dumps(make_spec(backbone, "fp32").to_dict()))
    assert msgspec.convert(again, Spec) == make_spec(backbone, "fp32")
