"""Advice before training: what the images are, on a sample, without leaving anything behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, write_classes

Fx = Callable[..., Said]


@pytest.fixture
def odd(tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, one of them small, with a copy and a file that is no image."""
    monkeypatch.chdir(tmp_path)
    data = write_classes(tmp_path / "data", per_class=15)
    for extra in sorted((data / "b").iterdir())[6:]:
        extra.unlink()
    first = min((data / "a").iterdir())
    (data / "a" / "copy.png").write_bytes(first.read_bytes())
    (data / "a" / "text.jpg").write_text("no image")
    return data


def test_images_are_described_and_a_strategy_named(odd: Path, fx: Fx, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = fx("advise", "--size", 32, "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    assert record["classes"] == {"a": 17, "b": 6}
    assert record["imbalance"] == pytest.approx(17 / 6)
    assert record["n_train"] + record["n_test"] == 23
    assert [one["path"] for one in record["sample"]["unreadable"]] == ["a/text.jpg"]
    (copy,) = record["sample"]["copies"]
    assert "a/copy.png" in copy.values()
    assert record["sample"]["shorter_side"] == {"least": 48, "median": 48, "greatest": 48}
    (network,) = record["networks"]
    assert network["backbone"] == "efficientnet_lite0"
    assert network["n"] == 21
    assert network["distance"] > 0
    assert 0.5 <= network["logreg"] <= 1
    assert 0.5 <= network["knn"] <= 1
    assert network["logme"] is not None
    assert network["h_score"] > 0
    assert all(seconds > 0 for seconds in network["predicted_seconds"].values())
    assert record["quadrant"]["agrees"] is None
    assert "fit-head logreg" in record["strategy"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_several_networks_are_scored_and_it_fits_eighty_columns(odd: Path, fx: Fx) -> None:
    (odd / "a" / "text.jpg").unlink()
    words = ["--backbone", "efficientnet_lite0,resnet18", "--weights", "default,random"]
    said = fx("advise", "--size", 32, *words)
    assert said.status == 0, said.err
    assert "resnet18" in said.out
    assert "Try first: " in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_where_no_image_can_be_read_it_says_so(tmp_path: Path, fx: Fx) -> None:
    for label in ("a", "b"):
        (tmp_path / "bad" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "bad" / label / f"{number}.jpg").write_text("no image")
    refused = fx("advise", tmp_path / "bad", "--size", 32)
    assert refused.status == 1
    assert "none of 6 images can be read" in refused.err


def test_without_two_classes_there_is_no_advice(tmp_path: Path, fx: Fx) -> None:
    refused = fx("advise", write_classes(tmp_path / "one", classes=("a",)))
    assert refused.status == 1
    assert "two classes" in refused.err
