"""Stage two as its user runs it: what is measured on what, joined features, copies together."""

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import Said, answered, make_image, write_classes, write_splits
from PIL import Image

from extract.errors import FxError
from extract.images import ImageRow, Snapshot
from extract.store import FeatureStore
from extract.store.feature_set import checksum_of
from extract.store.zarr_files import set_attributes
from finetune.data import set_validation_aside
from fx.options import NEAR_COPIES, Options
from fx.stages.fit_head import fit_head_on_store
from fx.stages.rows import keys_of
from heads.files import load_head

Fx = Callable[..., Said]


@pytest.fixture
def extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=12, classes=("a", "b", "c"))
    answered(fx, "extract", "--size", 32)
    return tmp_path


def test_few_images_are_measured_by_outer_folds_and_all_are_fitted_on(
    extracted: Path, fx: Fx
) -> None:
    head = answered(fx, "fit-head", "logreg")
    assert head["measured_by"] == "3 times 5 outer folds"
    assert head["n_train"] == head["n_test"] == np.sum(head["confusion"]) / 3 == 36
    assert load_head(head["path"]).n_train == 36
    told = fx("fit-head", "logreg").out
    assert "in 3 times 5 outer folds of the 36 images that it is fitted on" in told
    assert "108 predictions, 3 of each image:" in told
    assert "always naming the commonest class would be right for 0.333" in told


def test_of_few_groups_no_interval_is_given_and_no_set_leaves_a_class_out(
    extracted: Path, fx: Fx
) -> None:
    for table, size in (("fours.csv", 4), ("twos.csv", 2)):
        rows = [
            f"{file},{file.parent.name},{file.parent.name}{int(file.stem) // size}"
            for file in sorted(Path("data").rglob("*.png"))
        ]
        Path(table).write_text("\n".join(["path,label,group", *rows]))
    answered(fx, "extract", "fours.csv", "--size", 32)
    head = answered(fx, "fit-head", "logreg")
    assert (head["accuracy_ci"], head["n_groups"]) == (None, 9)
    assert head["measured_by"] == "9 outer folds"
    assert np.sum(head["confusion"]) == 36
    assert "no interval: 9 groups; 20 are needed" in fx("fit-head", "logreg").out
    found = answered(fx, "predict", head["path"], "data", "--conformal", 0.9, "--reject", 0.05)
    assert all(len(one["labels"]) == 3 for one in found["predictions"])
    assert found["rejected"] == 0
    assert len(found["notes"]) == 2
    tuned = answered(fx, "finetune", "twos.csv", "--size", 32, "--unfreeze", 0, "--epochs", 1)
    assert (tuned["accuracy_ci"], 2 * tuned["n_groups"]) == (None, tuned["n_test"])


def test_a_given_test_split_is_what_is_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        write_classes(Path("data") / split, per_class=6, classes=("a", "b"))
        for label, colour in (("a", 0), ("b", 1)):
            for number in range(6 if split == "test" else 0):
                file = Path("data") / split / label / f"{number:03d}.png"
                make_image(colour, 5_000 + 100 * colour + number).save(file)
    answered(fx, "extract", "--size", 32)
    head = answered(fx, "fit-head", "svm")
    assert (head["measured_by"], head["n_train"], head["n_test"]) == ("test rows", 12, 12)


def test_a_class_of_two_images_is_measured_by_one_split_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=12, classes=("a", "b"))
    Path("data/c").mkdir()
    for number in range(2):
        make_image(2, 9_000 + number).save(f"data/c/{number}.png")
    answered(fx, "extract", "--size", 32)
    head = answered(fx, "fit-head", "logreg")
    assert head["classes"] == ["a", "b", "c"]
    assert [one["n_test"] > 0 for one in head["per_class"]] == [True, True, False]
    assert "a class has too few images for outer folds" in " ".join(head["notes"])
    untested = "no test image is of 'c': the figures say nothing of such classes"
    assert untested in head["notes"]
    assert untested in answered(fx, "finetune", "--unfreeze", 0, "--epochs", 1)["notes"]
    compared = answered(fx, "compare", "--strategies", "centroid", "--sizes", 6, "--seeds", 1)
    assert untested.capitalize() in compared["notes"]


def test_a_class_that_cannot_be_trained_on_is_refused_and_where_its_images_are_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(Path("data"), per_class=6, classes=("a", "b", "c"))
    for number in range(2, 6):
        Path(f"data/train/c/{number:03d}.png").unlink()
    shutil.copy("data/train/c/000.png", "data/train/c/copy.png")
    Path("data/train/c/001.png").write_bytes(b"no image")
    answered(fx, "extract", "--size", 32)
    for command in (("fit-head", "logreg"), ("finetune",), ("compare",)):
        said = fx(*command)
        assert said.status == 1
        words = " ".join(said.err.split())
        assert "class 'c' has too few images to train on: 1 train, 5 test, 1 unreadable" in words
        assert "add images, or move some of the others to training" in words


def test_given_validation_images_stand_in_the_place_of_groups_to_choose_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("images"), per_class=12, classes=("a", "b"))
    split = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    # of each class, one video in every split
    rows = [
        f"images/{label}/{number:03d}.png,{label},{split[number]},{label}{split[number]}"
        for label in "ab"
        for number in range(12)
    ]
    Path("table.csv").write_text("\n".join(["path,label,split,group", *rows]))
    answered(fx, "extract", "table.csv", "--size", 32)
    head = answered(fx, "fit-head", "logreg")
    assert (head["n_train"], head["n_validation"], head["n_test"]) == (12, 6, 6)
    Path("table.csv").write_text(Path("table.csv").read_text().replace(",val,", ",train,"))
    Path("table.csv").write_text(Path("table.csv").read_text().replace("aval", "atrain"))
    answered(fx, "extract", "table.csv", "--size", 32)
    refused = " ".join(fx("fit-head", "logreg").err.split())
    assert "class 'a' has too few images to train on: 9 train of one group, 3 test" in refused


@pytest.mark.slow
def test_near_copies_stay_in_one_fold_for_heads_and_networks_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(Path("data"), per_class=10, classes=("a", "b"))
    for label in "ab":
        for number in range(0, 10, 2):
            with Image.open(f"data/train/{label}/{number:03d}.png") as image:
                image.save(f"data/train/{label}/again{number}.jpg", quality=90)
    # one scene, from a fixed camera
    scene = np.asarray(make_image(2, 77)).astype(float)
    for number in range(8):
        for split in ("train", "test"):
            Path("data", split, "c").mkdir(exist_ok=True)
            noise = np.random.default_rng([number, len(split)]).normal(0, 2, scene.shape)
            pixels = (scene + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"data/{split}/c/{number}{split}.png")
    answered(fx, "extract", "--size", 64)
    sides: list[list[set[str]]] = []

    def set_aside(rows: Sequence[ImageRow], seed: int) -> tuple[list[ImageRow], list[ImageRow]]:
        parts = set_validation_aside(rows, seed)
        sides.append([{row.path for row in part} for part in parts])
        return parts

    monkeypatch.setattr("finetune.finetuning.set_validation_aside", set_aside)
    found = {
        mode: answered(fx, "fit-head", "centroid", "--near-copies", mode) for mode in NEAR_COPIES
    }
    notes = {mode: " ".join(one["notes"]) for mode, one in found.items()}
    said = "28 of 38 images to fit on are near-copies of others"
    assert f"{said}; those stay in one fold" in notes["group"]
    assert "near-copies of 'c' do not stay in one fold" in notes["group"]
    assert f"{said}, which may be in other folds" in notes["warn"]
    assert "near-copies" not in notes["ignore"]
    assert len({one["path"] for one in found.values()}) == 3
    tuned = answered(fx, "finetune", "--epochs", 1)
    assert tuned["notes"][0] == f"{said}; those stay in one fold"
    for label, number in itertools.product("ab", range(0, 10, 2)):
        pair = {f"train/{label}/{number:03d}.png", f"train/{label}/again{number}.jpg"}
        assert [len(pair & side) for side in sides[-1]] in ([0, 2], [2, 0])
    compared = answered(fx, "compare", "--strategies", "logreg", "--sizes", 19)
    assert tuned["notes"][0] in compared["notes"]


@pytest.mark.parametrize("kind", ["logreg", "svm", "knn", "centroid"])
def test_every_kind_of_head_is_kept_with_its_plots_and_predicts(
    kind: str, extracted: Path, fx: Fx
) -> None:
    head = answered(fx, "fit-head", kind, "--normalize", "l2", "--kernel", "linear")
    files = {file.name for file in Path(head["path"]).iterdir()}
    assert {
        "head.safetensors",
        "head.json",
        "result.json",
        "limits.npz",
        "reliability.png",
    } <= files
    assert ("search.png" in files) == (kind != "centroid")
    record = json.loads((Path(head["path"]) / "head.json").read_text())
    assert (
        record["source"]["images"]
        == Snapshot.from_parquet(
            *FeatureStore(Path("features.zarr")).read_snapshot(None)
        ).fingerprint
    )
    found = answered(fx, "predict", head["path"], "data")["predictions"]
    right = [one["label"] == Path(one["path"]).parts[0] for one in found]
    assert len(right) == 36
    assert np.mean(right) > 0.9


def test_joined_features_are_those_of_both_sets_and_predict(extracted: Path, fx: Fx) -> None:
    answered(fx, "extract", "--size", 32, "--layer", "pool,blocks.2")
    head = answered(
        fx,
        "fit-head",
        "logreg",
        "--features",
        "efficientnet_lite0:blocks.2,efficientnet_lite0:pool",
    )
    kept = load_head(head["path"])
    layers = [spec["layer"] for spec in kept.spec["features"]]
    assert layers == ["blocks.2", "pool"]
    assert kept.dim == 40 + 1280
    found = answered(fx, "predict", head["path"], "data")
    store = FeatureStore(Path("features.zarr"))
    snapshot = Snapshot.from_parquet(*store.read_snapshot(None))
    sets = {one.spec.layer: one for one in store.sets()}
    keys = keys_of(snapshot.rows)
    stored = np.concatenate([sets[layer].features(keys) for layer in layers], axis=1)
    expected = kept.predict_proba(stored).max(axis=1)
    got = {one["path"]: one["probability"] for one in found["predictions"]}
    np.testing.assert_allclose([got[row.path] for row in snapshot.rows], expected, atol=1e-3)


def test_features_to_join_that_are_not_there_are_named(extracted: Path, fx: Fx) -> None:
    said = fx("fit-head", "logreg", "--features", "efficientnet_lite0,vgg16")
    assert said.status == 1
    assert "no features vgg16 in features.zarr; it has: efficientnet_lite0-" in said.err
    twice = fx("fit-head", "logreg", "--features", "efficientnet_lite0,efficientnet_lite0:pool")
    assert "twice" in twice.err


def test_a_broken_image_among_joined_features_is_told_once(extracted: Path, fx: Fx) -> None:
    answered(fx, "extract", "--size", 32, "--layer", "pool,blocks.2")
    head = answered(
        fx, "fit-head", "knn", "--features", "efficientnet_lite0:blocks.2,efficientnet_lite0:pool"
    )
    Path("data/a/004.png").write_bytes(b"no image")
    found = answered(fx, "predict", head["path"], "data")
    assert [one["path"] for one in found["failed"]] == ["a/004.png"]
    assert len(found["predictions"]) == 35
    assert found["predictions"][4]["path"] == "a/005.png"


def test_a_run_is_known_by_the_rows_that_it_was_fitted_on(tmp_path: Path, fx: Fx) -> None:
    images, path = write_classes(tmp_path / "data", per_class=10), tmp_path / "f.zarr"
    extracting = ("extract", images, "--store", path, "--size", 32, "--engine", "torch")
    assert fx(*extracting).status == 0
    heads = ("fit-head", "logreg", path, "--out", tmp_path / "runs")
    tuned = ("finetune", images, "--store", path, "--out", tmp_path / "runs", "--epochs", 1)
    tuned += ("--engine", "torch")
    first = answered(fx, *heads)
    feature_set = FeatureStore(path).last_extracted()
    # rows that read well, and are others: a store of an earlier version cannot tell
    array = zarr.open_group(feature_set.path, mode="r+")["features"]
    before = array[:]
    array[:] = before[::-1]
    sums = {**feature_set.checksums, "features": [checksum_of(before[::-1])]}
    set_attributes(feature_set.path, {"checksums": sums})
    assert answered(fx, *heads)["path"] != first["path"]
    wrongly = answered(fx, *tuned)
    array[:] = before
    set_attributes(feature_set.path, {"checksums": feature_set.checksums})
    assert answered(fx, *heads) == first
    assert answered(fx, *tuned)["path"] != wrongly["path"]


def test_a_head_stays_finished_where_its_rows_were_computed_or_copied_again(
    tmp_path: Path, fx: Fx
) -> None:
    images, path = write_classes(tmp_path / "data", per_class=10), tmp_path / "f.zarr"
    extracting = ("extract", images, "--store", path, "--size", 32, "--engine", "torch")
    assert fx(*extracting).status == 0
    heads = ("fit-head", "logreg", path, "--out", tmp_path / "runs")
    first = answered(fx, *heads)
    name = FeatureStore(path).last_extracted().name
    (path / name / "keys" / "c" / "0" / "0").unlink()
    assert fx(*extracting).status == 0
    assert FeatureStore(path).last_extracted().name == f"{name}.g1"
    assert answered(fx, *heads) == first


def test_what_becomes_of_near_copies_is_one_of_the_choices(extracted: Path) -> None:
    options = Options(store=extracted / "features.zarr", near_copies="keep")
    with pytest.raises(FxError, match="`near_copies` must be one of group, warn, ignore"):
        fit_head_on_store("knn", options, begin=lambda _: lambda *_: None)


@pytest.mark.parametrize("validated", [False, True])
def test_features_that_do_not_fit_into_memory_are_read_again_and_again(
    validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(Path("data"), per_class=30, tests=20, classes=("a", "b", "c"))
    if validated:
        for label in ("a", "b", "c"):
            (Path("data/val") / label).mkdir(parents=True)
            for number in range(20, 30):
                name = f"{label}/{number:03d}.png"
                (Path("data/train") / name).rename(Path("data/val") / name)
    answered(fx, "extract", "--size", 32, "--dtype", "float16")
    in_memory = answered(fx, "fit-head", "logreg", "--near-copies", "ignore")
    monkeypatch.setattr("fx.stages.fit_head._Stored.rows_in_memory", lambda stored, folds: 50)
    command = ("fit-head", "logreg", "--near-copies", "ignore", "--audit", "--fresh")
    on_disk = answered(fx, *command)
    assert "do not fit into memory" in on_disk["notes"][0]
    # of few rows a tenth are set aside to choose C and the temperature
    assert in_memory["n_train"] - on_disk["n_train"] == (0 if validated else 9)
    assert on_disk["accuracy"] > in_memory["accuracy"] - 0.05
    assert on_disk["log_loss"] < in_memory["log_loss"] + 0.1
    assert answered(fx, "predict", on_disk["path"], "data/test", "--reject", 0.05)["predictions"]
    # a kernel's machine needs all rows at once, and is fitted as ever
    assert answered(fx, "fit-head", "svm", "--near-copies", "ignore")["notes"] == []
