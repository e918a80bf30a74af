"""Images of the report: the right ones, of files that are still what they were."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, write_classes, write_splits
from msgspec.structs import replace

from extract.images import ImageRow, Snapshot
from extract.store import FeatureStore
from fx.records import Measurement
from fx.report.images import gather_evidence
from fx.thumbnails import NO_IMAGE, thumbnail

Fx = Callable[..., Said]


@pytest.fixture
def stored(tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=20)
    assert fx("extract", "--size", 32).status == 0
    return FeatureStore(tmp_path / "features.zarr")


def cell(strategy: str, said: list[int], sure: list[float], truth: list[int]) -> Measurement:
    return Measurement(strategy, 30, 0, predicted=said, confidence=sure, truth=truth)


def test_the_surest_mistakes_and_disputes_come_first(stored: FeatureStore) -> None:
    snapshot = Snapshot.from_parquet(*stored.read_snapshot(None))
    test = snapshot.split("test")
    truth = [snapshot.classes.index(str(row.label)) for row in test]
    n = len(test)
    assert n >= 4
    wrong = [1 - t for t in truth]
    one = cell("svm", [*wrong[:3], *truth[3:]], [0.6, 0.9, 0.7, *[0.8] * (n - 3)], truth)
    two = cell("knn", truth, [0.55, 0.95, 0.99, *[0.8] * (n - 3)], truth)
    old = replace(one, confidence=None, strategy="logreg")
    smaller = replace(one, n_train=8, strategy="centroid")
    found = gather_evidence([one, two, old, smaller], snapshot, stored.last_extracted(), test)
    assert list(found.mistakes) == ["svm", "knn"]
    assert [shown.path for shown in found.mistakes["svm"]] == [
        test[1].path,
        test[2].path,
        test[0].path,
    ]
    assert found.mistakes["knn"] == []
    # by what the less sure of two says
    assert [shown.path for shown in found.disputed] == [
        test[1].path,
        test[2].path,
        test[0].path,
    ]
    assert found.disputed[0].said.startswith("svm: ")
    assert len(found.map) == 40
    assert all(np.isfinite([p.x, p.y]).all() for p in found.map)
    assert all(p.image.startswith("data:image/jpeg") for p in found.map)


def test_mistakes_have_heat_maps_of_the_class_that_was_said(stored: FeatureStore) -> None:
    snapshot = Snapshot.from_parquet(*stored.read_snapshot(None))
    test = snapshot.split("test")
    truth = [snapshot.classes.index(str(row.label)) for row in test]
    one = cell("svm", [1 - truth[0], *truth[1:]], [0.8] * len(test), truth)
    two = replace(one, strategy="knn", predicted=truth)
    asked: list[tuple[str, list[tuple[str, str]]]] = []

    def draw(strategy: str, images: Sequence[tuple[ImageRow, str]]) -> list[str]:
        asked.append((strategy, [(row.path, label) for row, label in images]))
        return ["data:image/jpeg;base64,AAAA"] * len(images)

    found = gather_evidence([one, two], snapshot, stored.last_extracted(), test, draw)
    # of what is right nothing is drawn
    assert asked == [("svm", [(test[0].path, snapshot.classes[1 - truth[0]])])]
    assert [shown.heat_map for shown in found.mistakes["svm"]] == ["data:image/jpeg;base64,AAAA"]
    assert found.disputed[0].heat_map == ""


def test_a_comparison_draws_heat_maps_with_the_models_that_are_kept(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="the extra `explain` is not installed")
    monkeypatch.chdir(tmp_path)
    # with wrong labels, so that there are mistakes
    write_splits(tmp_path / "data", per_class=12, tests=8)
    for number in range(500, 503):
        one, other = (tmp_path / "data" / "test" / name / f"{number}.png" for name in "ab")
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    words = ["compare", "--size", 64, "--strategies", "logreg,knn", "--seeds", 1]
    page = Path(json.loads(fx(*words, "--json").out)["report"]).read_text()
    shown = re.findall(r"<figure class=\"mapped\"><img [^>]+><img [^>]+src=\"data:image/jpeg", page)
    # logistic regression has them; votes of neighbours have none
    assert len(shown) >= 6
    assert page.count('class="heat"') == 1


def test_a_file_that_is_another_by_now_is_not_shown(stored: FeatureStore) -> None:
    snapshot = Snapshot.from_parquet(*stored.read_snapshot(None))
    row, other = snapshot.rows[0], snapshot.rows[1]
    root = Path(snapshot.root)
    assert thumbnail(root, row.path, row.key, 16) != NO_IMAGE
    assert thumbnail(root, row.path, other.key, 16) == NO_IMAGE
    (root / row.path).unlink()
    assert thumbnail(root, row.path, row.key, 16) == NO_IMAGE


def test_results_are_tables_too_and_are_logged(stored: FeatureStore, fx: Fx) -> None:
    words = ["compare", "--sizes", "8", "--seeds", 2, "--strategies", "knn,logreg"]
    said = fx(*words, "--log-to", "tensorboard", "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    directory = Path(record["report"]).parent
    with (directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["strategy"], int(row["seed"])) for row in rows] == [
        (cell["strategy"], cell["seed"]) for cell in record["results"]
    ]
    assert float(rows[0]["accuracy"]) == record["results"][0]["accuracy"]
    told = json.loads((directory / "results.json").read_text())
    assert told["results"] == record["results"]
    assert list(directory.rglob("events.out.tfevents*"))
    page = Path(record["report"]).read_text()
    assert 'id="map"' in page
    assert Path(record["report"]).stat().st_size < 8_000_000
