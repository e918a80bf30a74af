"""What is done with predictions: tables of them, images sorted by them, paths that are piped in."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Said, answered, make_image, write_classes

from fx.stages.predictions import Wanted, sort_images

Fx = Callable[..., Said]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx) -> str:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=12, classes=("a", "b", "c"))
    answered(fx, "extract", "--size", 32, "--engine", "torch")
    return answered(fx, "fit-head", "logreg")["path"]


def test_the_likeliest_classes_and_all_probabilities_are_those_of_the_model(
    model: str, fx: Fx
) -> None:
    found = answered(fx, "predict", model, "data", "--top", 2, "--probabilities")["predictions"]
    for one in found:
        of_all = one["probabilities"]
        assert sum(of_all.values()) == pytest.approx(1)
        ranked = sorted(of_all, key=of_all.__getitem__, reverse=True)
        assert [each["label"] for each in one["top"]] == ranked[:2]
        assert (one["label"], one["probability"]) == (ranked[0], of_all[ranked[0]])
    plain = answered(fx, "predict", model, "data")["predictions"]
    assert {"top", "probabilities"}.isdisjoint(plain[0])
    line = fx("predict", model, "data", "--top", 3).out.splitlines()[0]
    assert line.startswith(f"{found[0]['probability']:.3f}  {found[0]['label']}, ")


def test_no_number_stands_beside_none_of_these(model: str, fx: Fx) -> None:
    Path("odd").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(255 * (noise > 128).astype(np.uint8)).save("odd/noise.png")
    found = answered(fx, "predict", model, "odd", "--reject", 0.2)["predictions"]
    assert [(one["label"], one["probability"]) for one in found] == [(None, None)]
    assert fx("predict", model, "odd", "--reject", 0.2).out.startswith("       none of these  ")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_are_saved_as_a_table(suffix: str, model: str, fx: Fx) -> None:
    Path("data/a/000.png").rename('data/a/=1+1, "odd"\n.png')
    words = ("predict", model, "data", "--probabilities", "--conformal", 0.5)
    found = answered(fx, *words)["predictions"]
    file = f"tables/found.{suffix}"
    said = fx(*words, "--save", file)
    assert f"saved 36 predictions in {file}" in said.out
    assert found[1]["path"] not in said.out
    if suffix == "jsonl":
        assert [json.loads(line) for line in Path(file).read_text().splitlines()] == found
        return
    table = pd.read_csv(file) if suffix == "csv" else pd.read_parquet(file)
    assert table["path"].tolist() == [one["path"] for one in found]
    assert table["label"].tolist() == [one["label"] for one in found]
    for name in "abc":
        wanted = [one["probabilities"][name] for one in found]
        assert table[f"probability of {name}"].tolist() == pytest.approx(wanted)
    sets = [json.loads(cell) if suffix == "csv" else list(cell) for cell in table["labels"]]
    assert sets == [one["labels"] for one in found]


def test_a_table_of_another_kind_is_refused_before_anything_is_predicted(
    model: str, fx: Fx
) -> None:
    said = fx("predict", "no-model", "data", "--save", "found.xlsx")
    assert said.status == 1
    assert "--save takes a file of .csv, .jsonl, .parquet; got found.xlsx" in said.err
    assert "--links goes with --sort-into" in fx("predict", model, "data", "--links").err


@pytest.mark.parametrize("links", [False, True])
def test_images_are_sorted_into_folders_and_nothing_is_overwritten(
    links: bool, model: str, fx: Fx
) -> None:
    found = answered(fx, "predict", model, "data")["predictions"]
    Path("sorted/a").mkdir(parents=True)
    Path("sorted/a/000.png").write_text("mine")
    words = ["predict", model, "data", "--sort-into", "sorted", *(["--links"] if links else [])]
    assert answered(fx, *words)["sorted"] == {
        "path": "sorted",
        "written": 36,
        "already_there": 0,
    }
    assert Path("sorted/a/000.png").read_text() == "mine"
    # three files of each name: whatever they were called, all are there
    for label in "abc":
        wanted = sorted(
            (Path("data") / one["path"]).read_bytes() for one in found if one["label"] == label
        )
        files = [file for file in Path("sorted", label).iterdir() if file.read_bytes() != b"mine"]
        assert sorted(file.read_bytes() for file in files) == wanted
        assert all(file.is_symlink() == links for file in files)
    assert answered(fx, *words)["sorted"]["already_there"] == 36
    assert "sorted into sorted: 0, already there: 36" in fx(*words).out


def test_labels_of_any_name_become_folders_below_the_one_that_was_named(tmp_path: Path) -> None:
    make_image(0, 1).save(tmp_path / "image.png")
    row = np.array([0.3, 0.7])
    for label in ("a/b", "..", ".", "", "x" * 40, "with space", "\\", "\n"):
        one = Wanted().prediction("image.png", row, ["other", label])
        done = sort_images(tmp_path / "sorted", tmp_path, [one])
        assert done.written == 1
    unlike = Wanted().prediction("image.png", row, ["a", "b"], label=None)
    sort_images(tmp_path / "sorted", tmp_path, [unlike])
    assert (tmp_path / "sorted" / "none of these" / "image.png").is_file()
    folders = list((tmp_path / "sorted").iterdir())
    assert len([one for one in folders if one.is_dir()]) == len(folders) == 9
    assert {file.name for file in tmp_path.iterdir()} == {"image.png", "sorted"}


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_paths_come_from_standard_input(
    end: bytes, model: str, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        "data/b/003.png",
        "data/a/001.png",
        "missing.png",
        str(Path("data/c/002.png").resolve()),
    ]
    piped = io.TextIOWrapper(io.BytesIO(b"".join(path.encode() + end for path in paths)))
    monkeypatch.setattr(sys, "stdin", piped)
    found = answered(fx, "predict", model, "-")
    assert [one["path"] for one in found["predictions"]] == [paths[0], paths[1], paths[3]]
    assert [one["path"] for one in found["failed"]] == ["missing.png"]
    by_folder = {
        f"data/{one['path']}": one["probability"]
        for one in answered(fx, "predict", model, "data")["predictions"]
    }
    for one in found["predictions"][:2]:
        assert one["probability"] == pytest.approx(by_folder[one["path"]], abs=1e-4)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert "no paths on standard input" in fx("predict", model, "-").err
