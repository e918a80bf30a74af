"""Stage two as its user runs it: what is measured on what, joined features, copies together."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import Said, make_image, write_classes

from extract.images import ImageRow, Snapshot
from extract.store import FeatureStore
from extract.store.feature_set import checksum_of
from extract.store.zarr_files import set_attributes
from fx.stages.rows import groups_of, keys_of
from heads.files import load_head

Fx = Callable[..., Said]


def answered(fx: Fx, *words: object) -> dict:
    said = fx(*words, "--json")
    assert said.status == 0, said.err
    return json.loads(said.out)


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
    said = fx("fit-head", "logreg", "--json")
    # one of its two images is set aside for testing: too few remain to choose by
    assert said.status == 1
    assert "class 'c'" in said.err


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


def row(name: str, group: str | None = None) -> ImageRow:
    return ImageRow(f"{name}.png", name.encode() * 32, "a", group, "train", "", True, None)


def test_near_copies_and_groups_are_kept_together() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (6, 32), dtype=np.uint8)
    hashes[4] = hashes[1] ^ np.eye(32, dtype=np.uint8)[3]  # one bit of 256
    rows = [row("p", "g"), row("q", "g"), row("r"), row("s"), row("t"), row("u")]
    groups = groups_of(rows, hashes)
    assert groups is not None
    together = {tuple(np.flatnonzero(groups == one)) for one in groups}
    assert together == {(0, 1, 4), (2,), (3,), (5,)}
    assert groups_of(rows[2:4], hashes[2:4]) is None


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
