"""Steps of a training: caching, views, micro-batches and processes change nothing but the speed."""

import copy
import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finetuned, training_data
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine, normalise
from extract.errors import FxError, NoRoom
from extract.images import Snapshot, find_images, load_images
from extract.store import FeatureStore
from finetune.blocks import cut, depths, find_blocks
from finetune.data import Activations, Views, load_activations, mixed, set_validation_aside
from finetune.data.augmentation import augmented, seed_of
from finetune.finetuning import FinetuneResult, _predict
from finetune.network import TrainedPart
from finetune.settings import RECIPES, FinetuneSettings
from finetune.training import (
    EpochRow,
    Trainer,
    TrainingState,
    make_accelerator,
    weights_of_classes,
)
from finetune.training.loop import _has_settled, _may_be_better
from finetune.training.optimiser import make_optimiser, rate_at
from finetune.training.trainer import Step
from heads.calibration import Calibration
from heads.fitting import BALANCED

CPU = torch.device("cpu")


def run(
    backbone: Backbone, store: FeatureStore, directory: Path, **settings: object
) -> tuple[FinetuneResult, list[float]]:
    """Fine-tune, and read the loss of every step."""
    result = finetuned(backbone, store, directory, **settings)
    with (directory / "steps.csv").open() as file:
        return result, [float(row["loss"]) for row in csv.DictReader(file)]


def trainer_of(
    backbone: Backbone, store: FeatureStore, cache: Path, **settings: object
) -> tuple[Trainer, np.ndarray, np.ndarray]:
    """A trainer on pixels, with all of the network trainable, and its rows and labels."""
    chosen = FinetuneSettings(**{"unfreeze": "all", "dropout": 0.0, "augment": "none", **settings})
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = snapshot.split("train")
    activations = load_activations(
        rows,
        Path(snapshot.root),
        preprocessing=backbone.preprocessing,
        trunk=None,
        identity={},
        cache=cache,
        views=Views(chosen.augment, 0, chosen.seed),
    )
    module = copy.deepcopy(backbone.module).requires_grad_(True)
    torch.manual_seed(0)
    part = TrainedPart(module, nn.Linear(backbone.dim, 3), backbone.preprocessing, chosen.dropout)
    trainer = Trainer(part, activations, chosen, make_accelerator(CPU, chosen), {})
    labels = np.array(["abc".index(str(row.label)) for row in rows])
    return trainer, activations.positions(rows), labels


def test_the_cache_of_the_frozen_blocks_changes_no_loss(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    depth = len(find_blocks(backbone.module, backbone.trained_size)) - 1
    # a rate that does not make much of the last bit of float16
    same = {"unfreeze": depth, "batch_size": 8, "learning_rate": 1e-5}
    cached, losses = run(backbone, store, tmp_path / "cached", **same)
    assert not cached.notes
    # the pixels of 72 images fit, what lies behind the first block does not
    anew, others = run(backbone, store, tmp_path / "anew", **same, cache_limit=300_000)
    assert any("run for every batch" in note and "`cache_limit`" in note for note in anew.notes)
    assert len(losses) == len(others) > 2
    np.testing.assert_allclose(losses, others, rtol=1e-2)


def test_a_limit_that_the_pixels_exceed_too_is_an_error(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(FxError, match="`cache_limit`"):
        run(backbone, store, tmp_path, unfreeze=1, cache_limit=1000)


def test_what_is_within_the_limit_is_kept_or_there_is_no_room(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the pixels of 72 images would fit, 200 views behind the first block do not
    depth = len(find_blocks(backbone.module, backbone.trained_size)) - 1
    chosen = {"unfreeze": depth, "augment": "course", "views": 200}
    with monkeypatch.context() as patch:
        patch.setattr("extract.files.durable.free_bytes", lambda path: 160_000_000)
        with pytest.raises(NoRoom, match="or set `cache_limit` below"):
            run(backbone, store, tmp_path, **chosen, cache_limit=2**40)
    # without a limit, the disk is one
    monkeypatch.setattr("finetune.data.activations.free_bytes", lambda path: 0)
    result, _ = run(backbone, store, tmp_path, unfreeze=1, epochs=1)
    assert any("run for every batch" in note for note in result.notes)


def test_kept_views_are_the_trunk_of_the_augmented_images(
    backbone: Backbone, store: FeatureStore, images: Path, tmp_path: Path
) -> None:
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    training, validation = set_validation_aside(snapshot.split("train"), 0)
    trunk, _ = cut(backbone.module.eval(), backbone.trained_size, 1)
    engine = make_engine(trunk, backbone.preprocessing, name="torch", device="cpu")
    activations = load_activations(
        [*training, *validation],
        Path(snapshot.root),
        preprocessing=backbone.preprocessing,
        trunk=engine,
        identity={},
        cache=tmp_path,
        views=Views("course", 3, 7),
        training={row.key for row in training},
    )
    assert len(activations.array) == 4 * len(training) + len(validation)
    row = training[5]
    everything = load_images(find_images(images), backbone.preprocessing)
    (loaded,) = [one for one in everything if one.row.key == row.key]
    pixels = torch.from_numpy(loaded.pixels)

    def through_trunk(shown: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return trunk(normalise(shown, backbone.preprocessing))

    position = activations.positions([row])
    torch.testing.assert_close(
        activations.take(position).float(), through_trunk(pixels), rtol=1e-2, atol=1e-2
    )
    expected = [
        through_trunk(augmented(pixels, "course", [seed_of(7, row.key, view)]))
        for view in (1, 2, 3)
    ]
    drawn = [activations.draw(position, epoch).float() for epoch in range(1, 7)]
    for view in expected:
        near = [torch.allclose(view, one, rtol=1e-2, atol=1e-2) for one in drawn]
        assert sum(near) == 2  # each view twice in six epochs


def test_pixels_are_augmented_anew_in_every_epoch(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    trainer, positions, _ = trainer_of(backbone, store, tmp_path, augment="course")
    first, again, second = (trainer.activations.draw(positions, epoch) for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(first[3:5], trainer.activations.draw(positions[3:5], 1))


def test_micro_batches_add_up_to_the_same_steps(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    same = {"dropout": 0.0, "batch_size": 12}
    whole, losses = run(backbone, store, tmp_path / "whole", **same)
    parts, others = run(backbone, store, tmp_path / "parts", **same, micro_batch=5)
    assert len(losses) > 3
    np.testing.assert_allclose(losses, others, rtol=1e-4)
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, atol=1e-4)


def test_no_image_trains_batch_norm_alone(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, positions, labels = trainer_of(
        backbone, store, tmp_path, batch_norm="train", micro_batch=4
    )
    sizes = []
    original = TrainedPart.prepare

    def one_pixel(self: TrainedPart, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        prepared = original(self, inputs)
        nn.functional.batch_norm(prepared.mean((1, 2, 3))[:, None], None, None, training=True)
        return prepared

    monkeypatch.setattr(TrainedPart, "prepare", one_pixel)
    trainer.step(positions[:9], labels[:9], rate=1e-3, epoch=1, seed=0)
    assert sizes == [4, 5]
    with pytest.raises(FxError, match=r"cannot train on one image at a time .*`batch_size`"):
        trainer.step(positions[:1], labels[:1], rate=1e-3, epoch=1, seed=0)


def test_a_network_that_diverged_in_its_last_step_is_told(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    trainer, _, _ = trainer_of(backbone, store, tmp_path)
    torch.nn.init.constant_(trainer.part.classifier.weight, torch.inf)
    rows = Snapshot.from_parquet(*store.read_snapshot()).split("train")
    with pytest.raises(FxError, match=r"diverged.*`learning_rate`"):
        _predict(trainer, rows, Calibration(1, 1, 1, 1, 1))


def test_out_of_memory_halves_the_batch_and_keeps_the_step(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"dropout": 0.0, "batch_size": 16}
    _, losses = run(backbone, store, tmp_path / "whole", **same)
    original = TrainedPart.prepare

    def small(self: TrainedPart, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and len(inputs) > 9:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte.")
        return original(self, inputs)

    monkeypatch.setattr(TrainedPart, "prepare", small)
    result, others = run(backbone, store, tmp_path / "halved", **same)
    assert [note for note in result.notes if "is taken 8 at a time" in note]
    np.testing.assert_allclose(losses, others, rtol=1e-4)


def test_one_image_that_does_not_fit_is_told(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, positions, labels = trainer_of(backbone, store, tmp_path)

    def never(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(TrainedPart, "prepare", never)
    with pytest.raises(FxError, match="out of memory with 1 images at once"):
        trainer.step(positions[:8], labels[:8], rate=0.1, epoch=1, seed=0)


def test_rates_decay_block_by_block_towards_the_input() -> None:
    backbone = load_backbone("resnet18", weights="random", size=64)
    classifier = nn.Linear(backbone.dim, 2)
    part = TrainedPart(backbone.module.requires_grad_(True), classifier, None, 0.0)
    depth = depths(backbone.module, 224)
    optimiser = make_optimiser(part, depth, FinetuneSettings(unfreeze="all", layer_decay=0.5))

    def of_tensors(name: str) -> dict[int, float]:
        groups = optimiser.param_groups
        return {p.data_ptr(): group[name] for group in groups for p in group["params"]}

    scale, decay = of_tensors("scale"), of_tensors("weight_decay")
    module = backbone.module
    assert (
        scale[classifier.weight.data_ptr()] == scale[module.layer4[0].conv1.weight.data_ptr()] == 1
    )
    assert scale[module.layer3[1].bn2.bias.data_ptr()] == 0.5
    blocks = len(find_blocks(module, 224))
    assert scale[module.conv1.weight.data_ptr()] == 0.5 ** (blocks - 1)
    assert decay[module.conv1.weight.data_ptr()] > 0
    assert decay[module.bn1.weight.data_ptr()] == decay[classifier.bias.data_ptr()] == 0
    assert len(scale) == len(list(part.parameters()))


def test_the_classifier_alone_leaves_the_blocks_as_they_are(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    trainer, positions, labels = trainer_of(backbone, store, tmp_path)
    trainer.training_mode()
    before = copy.deepcopy(trainer.part.state_dict())
    for alone in (True, False):
        trainer.step(positions[:8], labels[:8], rate=1e-2, epoch=1, seed=0, classifier_alone=alone)
        after = trainer.part.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert "classifier.weight" in moved
        assert any(name.startswith("tail") for name in moved) is not alone


def test_recipes_are_what_their_sources_say() -> None:
    guide = FinetuneSettings.of_recipe("keras-guide", epochs=None, unfreeze="all")
    assert (guide.optimiser, guide.learning_rate, guide.epochs) == ("adam", 1e-5, 10)
    assert guide.batch_norm == "inference"
    assert (guide.augment, guide.final) == ("none", 0.0)
    assert FinetuneSettings.of_recipe("keras-guide", augment="auto").augment == "auto"
    assert [rate_at(step, 50, 0, guide) for step in (0, 49)] == [1e-5, 1e-5]
    phases = FinetuneSettings.of_recipe("two-phase", epochs=8)
    assert phases.epochs == 8
    rates = [rate_at(step, 8, 5, phases) for step in range(8)]
    assert rates == [1e-3] * 5 + [1e-5] * 3
    assert FinetuneSettings.of_recipe("default") == FinetuneSettings()
    with pytest.raises(ValueError, match=f"one of {', '.join(RECIPES)}; got 'best'"):
        FinetuneSettings.of_recipe("best")


def test_two_phases_are_counted_apart(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    # a patience of one epoch must not end the second phase before it has begun
    result, _ = run(
        backbone,
        store,
        tmp_path,
        classifier_epochs=3,
        epochs=5,
        patience=1,
        learning_rate=1e-5,
        final=0.0,
    )
    assert result.epochs >= 4


def test_the_last_epochs_train_on_all_rows(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = [set()]
    step = Trainer.step

    def noted(self: Trainer, positions: np.ndarray, *args: object, **choices: object) -> object:
        epoch = int(str(choices["epoch"]))
        seen.extend(set() for _ in range(epoch + 1 - len(seen)))
        seen[epoch] |= set(positions.tolist())
        return step(self, positions, *args, **choices)

    monkeypatch.setattr(Trainer, "step", noted)
    # a head that tells nothing: training is better
    monkeypatch.setattr("finetune.finetuning.fold_into_classifier", lambda *_: None)
    same = {"epochs": 5, "learning_rate": 1e-3, "batch_size": 8}
    result, losses = run(backbone, store, tmp_path / "aside", **same)
    assert [len(rows) for rows in seen[1:]] == [42, 42, 42, 53, 53]
    assert (result.n_train, result.n_validation, result.n_fitted) == (42, 11, 53)
    assert (result.epochs, result.best_epoch) == (5, 5)
    assert [record.calibrated_loss is None for record in result.history] == [False] * 4 + [True] * 2
    # of the last epoch that was judged
    assert result.calibration.temperature == result.history[3].temperature
    # batches of 8, the last one with one more; the rate reaches 0 at the end of all of them
    assert len(losses) == 3 * 6 + 2 * 7
    assert result.history[-1].learning_rate < 1e-5
    seen[1:] = []
    kept, _ = run(backbone, store, tmp_path / "kept", **same, final=0.0)
    assert [len(rows) for rows in seen[1:]] == [42] * 5
    assert kept.n_fitted == 42
    assert kept.best_epoch > 0


def test_validation_rows_that_were_given_never_train(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    data = training_data(store)
    training, validation = set_validation_aside(data.train, 0)
    data = replace(data, train=training, validation=validation)
    result, _ = run(backbone, store, tmp_path, epochs=3, unfreeze=0, data=data)
    assert all(record.calibrated_loss is not None for record in result.history)
    assert result.n_fitted == 42
    # the same where the head is kept
    data = replace(data, train=training, validation=validation)
    ruined = finetuned(
        backbone, store, tmp_path / "0", data=data, unfreeze="all", learning_rate=1.0, epochs=1
    )
    assert (ruined.best_epoch, ruined.n_fitted) == (0, 42)
    assert ruined.calibration.temperature == ruined.history[0].temperature


@given(rows=st.integers(1, 10**6), batch=st.integers(1, 256), epochs=st.integers(1, 40))
def test_epochs_are_counted_in_steps_where_rows_are_few(rows: int, batch: int, epochs: int) -> None:
    usual = FinetuneSettings(batch_size=batch)
    found = usual.epochs_for(rows)
    assert 7 <= found <= 24
    if found < 24:
        assert found * max(1, rows // batch) >= 200
    if found > 7:
        assert (found - 1) * max(1, rows // batch) < 200
    asked = FinetuneSettings(epochs=epochs)
    assert asked.epochs_for(rows) == epochs
    assert 0 <= asked.final_epochs(epochs) < epochs
    assert asked.final_epochs(epochs) == pytest.approx(0.4 * epochs, abs=0.6) or epochs == 1


@pytest.mark.parametrize(
    ("losses", "settled"),
    [
        ([0.3], False),
        # above the head it began with, and falling: what the peak of the rate cost is won back
        ([0.3, 0.6, 0.5, 0.4], False),
        ([0.3, 0.5, 0.6], False),
        ([0.3, 0.5, 0.6, 0.7], True),
        ([0.3, 0.2, 0.25, 0.26], True),
    ],
)
def test_training_stops_by_its_own_epochs_and_not_by_the_head_it_began_with(
    losses: list[float], settled: bool
) -> None:
    history = [EpochRow(n, calibrated_loss=loss) for n, loss in enumerate(losses)]
    none = Calibration(1.0, 0.0, 0.0, 0.0, 0.0)
    state = TrainingState(none, epoch=len(losses) - 1, history=history)
    assert _has_settled(state, FinetuneSettings(patience=2)) == settled


def test_a_head_is_doubted_by_enough_rows_and_within_a_standard_error() -> None:
    rng = np.random.default_rng(0)
    head = rng.exponential(0.4, 40)
    noise = rng.normal(size=40)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * np.sqrt(40)  # of a standard error 1
    for worse, doubted in ((-0.5, True), (0.9, True), (1.1, False)):
        assert _may_be_better(head + noise + worse, head) == doubted
    few = slice(0, 20)
    assert not _may_be_better(head[few] + noise[few] - 0.5, head[few])
    # from scratch there is none
    assert not _may_be_better(head, np.array([]))


def test_what_is_found_by_trial_leaves_the_start_as_it_was(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    fixed, _ = run(backbone, store, tmp_path / "fixed", unfreeze="all")
    found, _ = run(
        backbone,
        store,
        tmp_path / "found",
        unfreeze="all",
        learning_rate="auto",
        batch_size="auto",
    )
    assert found.history[0] == fixed.history[0]
    assert [note.split()[0] for note in found.notes] == ["batch", "learning"]
    assert 1e-7 <= max(float(one.learning_rate or 0) for one in found.history) <= 1e-2


def test_batch_norm_moves_only_where_it_is_asked_to_and_trains(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    for batch_norm, moves in (("inference", False), ("train", True)):
        trainer, positions, labels = trainer_of(backbone, store, tmp_path, batch_norm=batch_norm)
        before = {name: b.clone() for name, b in trainer.part.tail.named_buffers()}
        trainer.training_mode()
        trainer.step(positions[:8], labels[:8], rate=1e-4, epoch=1, seed=0)
        after = dict(trainer.part.tail.named_buffers())
        assert any(not torch.equal(after[n], b) for n, b in before.items()) is moves


def test_label_smoothing_and_mixes_train_on_what_pytorch_makes_of_them(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    trainer, positions, labels = trainer_of(backbone, store, tmp_path, label_smoothing=0.3)
    logits = trainer.logits(positions[:8])
    expected = nn.functional.cross_entropy(
        logits, torch.from_numpy(labels[:8]), label_smoothing=0.3
    )
    trainer.training_mode()
    loss, _ = trainer.step(positions[:8], labels[:8], rate=1e-9, epoch=1, seed=0)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for mix in ("mixup", "cutmix"):
        trainer, positions, labels = trainer_of(
            backbone, store, tmp_path, mix=mix, label_smoothing=0.0
        )
        part = trainer.part.eval()
        pixels = part.prepare(trainer.activations.take(positions[:8]))
        inputs, targets = mixed(pixels, torch.from_numpy(labels[:8]), 3, mix, 5)
        with torch.inference_mode():
            logits = part.classifier(part.dropout(part.tail(inputs)))
        expected = nn.functional.cross_entropy(logits, targets)
        trainer.training_mode()
        loss, _ = trainer.step(positions[:8], labels[:8], rate=1e-9, epoch=1, seed=5)
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        assert not torch.equal(inputs, pixels)


def test_balanced_class_weights_are_those_of_pytorch_and_of_a_resampled_set(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    labels = np.array([0] * 12 + [1] * 6 + [2] * 2)
    weights = weights_of_classes(labels)
    assert weights[labels].mean().item() == pytest.approx(1)
    counts = torch.bincount(torch.from_numpy(labels))
    torch.testing.assert_close(weights * counts, torch.full((3,), 20 / 3))
    part = TrainedPart(nn.Identity(), nn.Linear(4, 3), None, 0.0)
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    loss, logits = Step(part, 0.0, class_weights=weights)(
        features, torch.from_numpy(labels), classifier_alone=False
    )
    # each class's mean loss counts the same
    each = nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    means = torch.stack([each[labels == number].mean() for number in range(3)])
    assert loss.item() / 20 == pytest.approx(means.mean().item(), rel=1e-5)


def test_balanced_class_weights_raise_the_recall_of_a_rare_class_and_are_told(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    data = training_data(store)
    rare = [row for row in data.train if row.label != "c"]
    rare += [row for row in data.train if row.label == "c"][:4]
    data = replace(data, train=rare)
    told = {}
    for weight in (None, "balanced"):
        result = finetuned(
            backbone, store, tmp_path / str(weight), data=data, unfreeze=0, class_weight=weight
        )
        told[weight] = result
        assert (BALANCED in result.notes) == (weight is not None)
    recall = {weight: result.metrics.per_class[2].recall for weight, result in told.items()}
    assert recall["balanced"] >= recall[None]
    said_rare = {w: float(r.probabilities[:, 2].mean()) for w, r in told.items()}
    assert said_rare["balanced"] > said_rare[None]


def test_losses_are_logged_where_it_is_asked_for(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _ = run(backbone, store, tmp_path, log_to="tensorboard")
    (events,) = tmp_path.rglob("events.out.tfevents*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    logged = [one.value for one in read.Scalars("validation_loss")]
    expected = [record.validation_loss for record in result.history[1:]]
    assert logged == pytest.approx(expected)
    monkeypatch.setattr("finetune.training.processes.find_spec", lambda name: None)
    with pytest.raises(FxError, match="pip install mlflow"):
        run(backbone, store, tmp_path / "other", log_to="mlflow")


def test_augmented_images_are_shown_beside_the_model(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    from PIL import Image

    run(backbone, store, tmp_path, augment="course", views=2, epochs=1)
    with Image.open(tmp_path / "augmented.png") as sheet:
        assert sheet.width > 32 * 9
        assert sheet.height > 32 * 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"layer_decay": 0.0},
        {"label_smoothing": 1.0},
        {"augment": "rotate"},
        {"mix": "cutmix", "unfreeze": 1},
        {"classifier_epochs": 8},
        {"batch_norm": "eval"},
        {"views": 0},
        {"learning_rate": -1.0},
    ],
)
def test_settings_say_what_they_got(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        FinetuneSettings(**wrong)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(
    images: Path, store: FeatureStore, tmp_path: Path
) -> None:
    def losses(out: Path, launcher: list[str]) -> list[float]:
        command = [*launcher, "-m", "fx", "finetune", str(images), "--store", str(store.path)]
        command += ["--out", str(out), "--epochs", "2", "--size", "32", "--json"]
        command += ["--precision", "fp32", "--batch-size", "16", "--device", "cpu"]
        command += ["--dropout", "0"]  # processes draw masks of their own
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('"macro_f1"') == 1
        (steps,) = out.rglob("steps.csv")
        with steps.open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    one = losses(tmp_path / "one", [sys.executable])
    for launch in (
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2"],
        ["torch.distributed.run", "--nproc_per_node", "2"],
    ):
        two = losses(tmp_path / launch[0], [sys.executable, "-m", *launch])
        assert len(one) == len(two) > 2
        np.testing.assert_allclose(one, two, rtol=1e-4)


def test_activations_are_found_again_and_not_those_of_other_views(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = snapshot.split("train")
    said: list[str] = []

    def load(views: Views) -> Activations:
        return load_activations(
            rows,
            Path(snapshot.root),
            preprocessing=backbone.preprocessing,
            trunk=None,
            identity={},
            cache=tmp_path,
            views=views,
            training={row.key for row in rows},
            announce=said.append,
        )

    plain = load(Views("none", 0, 0))
    load(Views("none", 0, 1))
    assert len(said) == 1
    assert " KB in " in said[0]
    turned = load(Views("course", 2, 0))
    assert len(said) == 2
    assert len(turned.array) == 3 * len(plain.array)
    load(Views("course", 2, 1))
    assert len(said) == 3
    # the mirror image is the same one whatever the seed, and so serves all cells of a comparison
    flipped = load(Views("flip", 1, 0))
    load(Views("flip", 1, 1))
    assert len(said) == 4
    assert len(flipped.array) == 2 * len(plain.array)
