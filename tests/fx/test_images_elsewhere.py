"""The commands on images that lie on S3, in a tar and in Parquet: what they say of the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, answered, upload, write_splits
from test_shards import in_parquet, in_tar

from extract.files import Place
from extract.images import Snapshot
from extract.store import FeatureStore

Fx = Callable[..., Said]
SMALL = ("--backbone", "efficientnet_lite0", "--size", "32", "--device", "cpu")
WHERE = (
    "s3",
    "tar",
    pytest.param("tars on s3", marks=pytest.mark.slow),
    "parquet",
    pytest.param("parquet on s3", marks=pytest.mark.slow),
)


def elsewhere(where: str, folder: Path, s3: str) -> str | Place:
    """Put the images of a folder of splits to another place."""
    shards = folder.parent / "shards"
    for split in ("train", "test"):
        if "tar" in where:
            in_tar(folder / split, shards / f"{split}-000.tar")
        elif "parquet" in where:
            in_parquet(folder / split, shards / f"{split}-00000-of-00001.parquet")
    if where == "s3":
        return upload(folder, s3)
    return upload(shards, s3) if "s3" in where else shards


@pytest.mark.parametrize("where", WHERE)
def test_every_command_takes_images_that_lie_elsewhere(
    where: str, tmp_path: Path, s3: str, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_splits(tmp_path / "data", 8, 5)
    here = answered(fx, "extract", folder, *SMALL)
    images = elsewhere(where, folder, s3)
    # into the same store: the features are those of the same bytes
    there = answered(fx, "extract", images, *SMALL)
    assert (there["new"], there["reused"]) == (0, here["new"])
    assert there["splits"] == here["splits"]
    assert there["failed"] == []
    store = FeatureStore(tmp_path / "features.zarr")
    one, other = (
        Snapshot.from_parquet(*store.read_snapshot(said["snapshot"])) for said in (here, there)
    )
    assert {(r.key, r.label, r.split) for r in one.rows} == {
        (r.key, r.label, r.split) for r in other.rows
    }
    assert other.root == (images if "s3" in where else str(images))
    # computed where they lie, they are the same
    fresh = answered(fx, "extract", images, *SMALL, "--store", "other.zarr")
    assert fresh["new"] == here["new"]
    keys = [row.key for row in one.rows]
    theirs = FeatureStore(tmp_path / "other.zarr").last_extracted().features(keys)
    assert (theirs == store.last_extracted().features(keys)).all()

    head = answered(fx, "fit-head", "logreg", "--snapshot", there["snapshot"])
    assert head["n_test"] == 10
    said = answered(fx, "predict", head["path"], images, "--sort-into", "sorted")
    assert len(said["predictions"]) == 26
    assert {one["path"] for one in said["predictions"]} == {row.path for row in other.rows}
    done = [file.read_bytes() for file in (tmp_path / "sorted").rglob("*") if file.is_file()]
    assert set(done) == {file.read_bytes() for file in folder.rglob("*.png")}
    advice = answered(fx, "advise", images, *SMALL)
    assert advice
    if where == "tar":
        one_image = tmp_path / "one" / "shards"
        in_tar(folder / "test" / "a", one_image / "one.tar")
        explained = answered(fx, "explain", head["path"], one_image, "--out", "explained")
        assert Path(explained["page"]).read_text().count("data:image/jpeg") > 10
    if where == "tars on s3":
        tuned = answered(
            fx, "finetune", images, *SMALL, "--unfreeze", "1", "--epochs", "1", "--augment", "none"
        )
        assert tuned["n_test"] == 10


@pytest.mark.parametrize("where", ["tars on s3"])
def test_a_report_shows_images_that_lie_elsewhere(
    where: str, tmp_path: Path, s3: str, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_splits(tmp_path / "data", 12, 8)
    images = elsewhere(where, folder, s3)
    said = answered(
        fx, "compare", images, *SMALL, "--strategies", "logreg,finetune:0", "--sizes", "24",
        "--seeds", "1", "--epochs", "1",
    )  # fmt: skip
    page = Path(said["report"]).read_text()
    assert page.count("data:image/jpeg") >= 16
