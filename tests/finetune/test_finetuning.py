"""Fine-tuning: it starts as the head, what is frozen stays bitwise, killed runs end the same."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import calibrate_batch_norm, finetuned, training_data
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine, normalise
from extract.errors import FxError
from extract.extraction import extract
from extract.images import ImageRow, Preprocessing, Snapshot, find_images, load_images
from extract.store import FeatureStore
from finetune.blocks import cut
from finetune.data import set_validation_aside
from finetune.network import TrainedPart
from finetune.settings import FinetuneSettings
from finetune.starting_head import fold_into_classifier
from finetune.training import Trainer, load_model
from finetune.training.optimiser import schedule
from finetune.training.trainer import set_training_mode
from heads.fitting import fit_head

CPU = torch.device("cpu")
FAMILIES = [
    ("resnet18", 64),
    ("mobilenet_v2", 64),
    ("efficientnet_lite0", 64),
    ("squeezenet1_1", 64),
    ("shufflenet_v2_x0_5", 64),
    ("mobilenet_v3_small", 64),
    ("mnasnet0_5", 64),
    pytest.param("alexnet", 64, marks=pytest.mark.slow),
    pytest.param("densenet121", 64, marks=pytest.mark.slow),
    pytest.param("vgg11_bn", 64, marks=pytest.mark.slow),
    pytest.param("googlenet", 64, marks=pytest.mark.slow),
    pytest.param("inception_v3", 96, marks=pytest.mark.slow),
    pytest.param("efficientnet_b0", 64, marks=pytest.mark.slow),
    pytest.param("regnet_y_400mf", 64, marks=pytest.mark.slow),
    pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
    pytest.param("timm/legacy_xception", 96, marks=pytest.mark.slow),
]


def pixels_of(rows: list[ImageRow], preprocessing: Preprocessing, root: Path) -> torch.Tensor:
    """Normalised pixels of some rows, (n, 3, s, s)."""
    wanted = {row.path: index for index, row in enumerate(rows)}
    loaded = [
        one for one in load_images(find_images(root), preprocessing) if one.row.path in wanted
    ]
    loaded.sort(key=lambda one: wanted[one.row.path])
    return normalise(
        torch.from_numpy(np.concatenate([one.pixels for one in loaded])), preprocessing
    )


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_frozen_blocks_stay_bitwise_and_the_others_train(name: str, size: int) -> None:
    backbone = load_backbone(name, weights="random", size=size)
    module = backbone.module.eval().requires_grad_(False)
    trunk, tail = cut(module, backbone.trained_size, 1)
    tail.requires_grad_(True)
    part = TrainedPart(tail, nn.Linear(backbone.dim, 3), None, 0.2)
    inside = {id(tensor) for tensor in [*tail.parameters(), *tail.buffers()]}
    named = [*module.named_parameters(), *module.named_buffers()]
    frozen = {n: t.clone() for n, t in named if id(t) not in inside}
    statistics = {n: t.clone() for n, t in module.named_buffers()}
    before = [parameter.clone() for parameter in tail.parameters()]
    assert before

    module.train()
    set_training_mode(part, FinetuneSettings())
    optimiser = torch.optim.AdamW((p for p in part.parameters() if p.requires_grad), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.rand(4, 3, size, size, generator=generator)
        trunk.eval()
        loss = nn.functional.cross_entropy(part(trunk(x)), torch.tensor([0, 1, 2, 0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert frozen
    for path, tensor in frozen.items():
        assert torch.equal(after[path], tensor), path
    for path, tensor in statistics.items():
        assert torch.equal(after[path], tensor), path
    changed = [not torch.equal(a, b) for a, b in zip(tail.parameters(), before, strict=True)]
    assert any(changed)


@pytest.mark.parametrize("unfreeze", [0, 1, 2, "all"])
def test_frozen_tensors_are_bitwise_the_same_after_a_whole_run(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, unfreeze: int | str
) -> None:
    before = {name: t.clone() for name, t in backbone.module.state_dict().items()}
    result = finetuned(backbone, store, tmp_path, unfreeze=unfreeze, epochs=1, learning_rate=1e-2)
    after = load_model(tmp_path).network.backbone.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    trained = set(before) - same
    if unfreeze == 0 or result.best_epoch == 0:
        assert not trained
    buffers = {name for name, _ in backbone.module.named_buffers()}
    assert buffers <= same
    if unfreeze != "all":
        assert "conv_stem.weight" in same


# images this easy are told apart ever better by ever larger C, to where float32 ends
@pytest.mark.filterwarnings("ignore:logistic regression stopped short")
@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_epoch_0_equals_the_head(name: str, size: int, images: Path, tmp_path: Path) -> None:
    backbone = load_backbone(name, weights="random", size=size)
    loaded = list(load_images(find_images(images), backbone.preprocessing))
    pixels = torch.from_numpy(np.concatenate([one.pixels for one in loaded]))
    calibrate_batch_norm(backbone.module, normalise(pixels[::3], backbone.preprocessing))
    engine = make_engine(backbone.module, backbone.preprocessing, name="torch", device="cpu")
    store = FeatureStore.create(tmp_path / "f.zarr")
    extract(find_images(images), backbone=backbone, engine=engine, store=store)
    rows = Snapshot.from_parquet(*store.read_snapshot()).split("train")
    read = store.last_extracted().features
    head = fit_head(
        read([row.key for row in rows]), [str(row.label) for row in rows], kind="logreg"
    )
    classifier = nn.Linear(backbone.dim, 3)
    fold_into_classifier(head, classifier)
    with torch.inference_mode():
        logits = classifier(backbone.module(normalise(pixels[:24], backbone.preprocessing)))
    probabilities = torch.softmax(logits.double(), 1).numpy()
    expected = head.predict_proba(read([one.row.key for one in loaded[:24]]))
    assert np.abs(probabilities - expected).max() < 1e-3


def test_the_first_record_of_the_history_is_the_starting_head(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    result = finetuned(backbone, store, tmp_path, unfreeze=1)
    data = training_data(store)
    training, validation = set_validation_aside(data.train, 0)
    read = store.last_extracted().features
    head = fit_head(
        read([row.key for row in training]), [str(row.label) for row in training], kind="logreg"
    )
    probabilities = head.predict_proba(read([row.key for row in validation]))
    truth = [head.classes.index(str(row.label)) for row in validation]
    expected = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    # through float16 activations
    assert result.history[0].validation_loss == pytest.approx(expected, rel=1e-2)


def test_the_delivered_network_says_from_pixels_what_was_measured(
    backbone: Backbone, store: FeatureStore, images: Path, tmp_path: Path
) -> None:
    result = finetuned(backbone, store, tmp_path, unfreeze=2, learning_rate=1e-3)
    model = load_model(tmp_path)
    wanted = {row.path for row in training_data(store).test}
    found = list(load_images(find_images(images), model.preprocessing))
    pixels = np.concatenate([one.pixels for one in found if one.row.path in wanted])
    with torch.inference_mode():
        logits = model.network(normalise(torch.from_numpy(pixels), model.preprocessing))
    probabilities = torch.softmax(logits.double(), 1).numpy()
    np.testing.assert_allclose(probabilities, result.probabilities, atol=1e-2)
    assert model.classes == result.classes == ("a", "b", "c")
    names = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert {"model.safetensors", "model.json", "history.csv", "history.png"} <= names


def test_epochs_are_judged_by_their_calibrated_log_loss(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_data(store).train
    _, validation = set_validation_aside(rows, 0)
    truth = np.array(["abc".index(str(row.label)) for row in validation])
    n, one_wrong, three_wrong = len(truth), truth.copy(), truth.copy()
    one_wrong[:1], three_wrong[:3] = (truth[:1] + 1) % 3, (truth[:3] + 1) % 3
    # of each epoch how sure it is, and of what: the head, then one that is better and far too sure
    said = [(1.5, three_wrong), (30.0, one_wrong), (1.0, three_wrong)]
    actual = Trainer.logits

    def logits(self: Trainer, positions: np.ndarray, part: object = None) -> torch.Tensor:
        if not said or len(positions) != n:
            return actual(self, positions, part)
        sure, predicted = said.pop(0)
        return sure * nn.functional.one_hot(torch.from_numpy(predicted), 3).float()

    monkeypatch.setattr(Trainer, "logits", logits)
    result = finetuned(backbone, store, tmp_path, unfreeze=1, final=0.0)
    raw = [record.validation_loss for record in result.history]
    calibrated = [record.calibrated_loss for record in result.history]
    assert raw.index(min(raw)) == 0
    assert calibrated.index(min(calibrated)) == result.best_epoch == 1
    assert result.calibration.temperature == result.history[1].temperature > 5
    assert result.calibration.log_loss_before == raw[1]
    assert result.calibration.log_loss_after == calibrated[1]
    # and the temperature is that of the network that is kept
    weight = load_model(tmp_path).network.classifier.weight
    monkeypatch.setattr("finetune.finetuning.apply_temperature", lambda *_: None)
    said += [(1.5, three_wrong), (30.0, one_wrong), (1.0, three_wrong)]
    hot = finetuned(backbone, store, tmp_path / "hot", unfreeze=1, final=0.0)
    same = load_model(tmp_path / "hot").network.classifier.weight
    torch.testing.assert_close(weight * result.calibration.temperature, same)
    assert (hot.probabilities.argmax(1) == result.probabilities.argmax(1)).all()
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["calibration"] == asdict(result.calibration)


@pytest.mark.parametrize("scratch", [False, True])
def test_delivered_probabilities_are_those_at_the_temperature(
    backbone: Backbone,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scratch: bool,
) -> None:
    # a head that tells nothing, so that an epoch is delivered
    monkeypatch.setattr("finetune.finetuning.fold_into_classifier", lambda *_: None)
    result = finetuned(
        backbone,
        store,
        tmp_path,
        unfreeze="all" if scratch else 1,
        from_scratch=scratch,
        learning_rate=1e-3,
        final=0.0,
    )
    assert result.best_epoch > 0
    record = result.history[result.best_epoch]
    assert result.calibration.temperature == record.temperature != 1
    _, validation = set_validation_aside(training_data(store).train, 0)
    pixels = pixels_of(validation, load_model(tmp_path).preprocessing, training_data(store).root)
    with torch.inference_mode():
        logits = load_model(tmp_path).network(pixels)
    truth = torch.tensor(["abc".index(str(row.label)) for row in validation])
    loss = nn.functional.cross_entropy(logits.double(), truth).item()
    assert loss == pytest.approx(float(record.calibrated_loss or 0), rel=2e-2)


def test_where_no_epoch_beats_the_head_the_refitted_head_is_delivered(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    # a rate that ruins the network in the first epoch
    result = finetuned(backbone, store, tmp_path, unfreeze="all", learning_rate=1.0, epochs=1)
    assert result.best_epoch == 0
    rows = training_data(store).train
    read = store.last_extracted().features
    head = fit_head(read([r.key for r in rows]), [str(r.label) for r in rows], kind="logreg")
    expected = head.predict_proba(read([row.key for row in training_data(store).test]))
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-2)
    assert result.calibration == head.calibration
    for name, tensor in load_model(tmp_path).network.backbone.state_dict().items():
        assert torch.equal(tensor, backbone.module.state_dict()[name]), name


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    first = finetuned(backbone, store, tmp_path / "1", seed=3)
    second = finetuned(backbone, store, tmp_path / "2", seed=3)
    other = finetuned(backbone, store, tmp_path / "3", seed=4)
    assert first.history == second.history
    assert first.history != other.history


def test_from_scratch_batch_norm_trains(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    result = finetuned(backbone, store, tmp_path, unfreeze="all", from_scratch=True, epochs=1)
    assert result.best_epoch == 1
    after = load_model(tmp_path).network.backbone.state_dict()
    assert not torch.equal(
        after["bn1.running_mean"], backbone.module.state_dict()["bn1.running_mean"]
    )


@pytest.mark.parametrize(("interval", "kept"), [(-1.0, True), (1e9, False)])
def test_a_training_is_kept_at_intervals(
    backbone: Backbone,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch,
    interval: float,
    kept: bool,
) -> None:
    monkeypatch.setattr("finetune.training.loop.SAVE_INTERVAL", interval)
    finetuned(backbone, store, tmp_path, unfreeze=0)
    assert (tmp_path / "training.safetensors").exists() == kept


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from conftest import finetuned
from extract.backbones import load_backbone
from extract.store import FeatureStore
from finetune.training import loop
torch.set_num_threads(1)
loop.SAVE_INTERVAL = -1.0
backbone = load_backbone(sys.argv[4], weights=sys.argv[5], size=32)
scratch = sys.argv[5] == "random"
finetuned(backbone, FeatureStore(sys.argv[1]), Path(sys.argv[2]), epochs=6, patience=6,
      learning_rate=1e-3, unfreeze="all" if scratch else 1, from_scratch=scratch)
"""


@pytest.mark.slow
# the second has convolutions that lie otherwise in memory where channels are last
@pytest.mark.parametrize(
    ("name", "weights"), [("efficientnet_lite0", "default"), ("resnet18", "random")]
)
def test_a_killed_run_ends_bitwise_as_an_undisturbed_one(
    name: str, weights: str, store: FeatureStore, tmp_path: Path
) -> None:
    def start(directory: Path) -> subprocess.Popen[bytes]:
        here = str(Path(__file__).parents[1])
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, str(store.path), str(directory), here, name, weights]
        )

    assert start(tmp_path / "whole").wait() == 0
    state = tmp_path / "killed" / "training.safetensors"
    kills = 0
    for wanted in (1, 2):
        process = start(tmp_path / "killed")
        seen = 0
        last = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and seen < wanted:
            time.sleep(0.005)
            if state.exists() and state.stat().st_mtime_ns != last:
                last, seen = state.stat().st_mtime_ns, seen + 1
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1
    assert start(tmp_path / "killed").wait() == 0
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == whole
    assert (tmp_path / "killed" / "history.csv").read_text() == (
        tmp_path / "whole" / "history.csv"
    ).read_text()


def test_validation_rows_are_set_aside_by_class_and_group(store: FeatureStore) -> None:
    rows = training_data(store).train
    training, validation = set_validation_aside(rows, 0)
    assert len(training) + len(validation) == len(rows)
    assert {row.label for row in validation} == {"a", "b", "c"}
    grouped = [replace(row, group=str(n // 4)) for n, row in enumerate(rows)]
    training, validation = set_validation_aside(grouped, 0)
    assert not {row.group for row in training} & {row.group for row in validation}


def test_too_few_images_are_refused(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    rows = training_data(store).train
    few = [row for label in "abc" for row in [r for r in rows if r.label == label][:2]]
    with pytest.raises(FxError, match="too few images to fine-tune; got 6"):
        set_validation_aside(few, 0)


def test_a_diverging_run_says_what_to_try(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(FxError, match=r"training diverged in epoch \d .*`learning_rate=1e\+29`"):
        finetuned(backbone, store, tmp_path, unfreeze=0, learning_rate=1e30, epochs=3)


def test_a_model_that_is_damaged_or_holds_code_is_refused(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    finetuned(backbone, store, tmp_path, epochs=1)
    tensors = tmp_path / "model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FxError, match=r"model.safetensors cannot be read"):
        load_model(tmp_path)
    torch.save({"evil": print}, tensors)
    with pytest.raises(FxError, match=r"model.safetensors cannot be read"):
        load_model(tmp_path)
    # one that says nothing of the tensors' hash, which a training left that diverged
    record = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(record | {"model_sha256": None}))
    broken = safetensors.torch.load(whole)
    broken["classifier.weight"][0, 0] = float("nan")
    tensors.write_bytes(safetensors.torch.save(broken))
    with pytest.raises(FxError, match=r"classifier.weight has 1 of .* numbers NaN or infinite"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(FxError, match="is no model of fx"):
        load_model(tmp_path)


def test_a_record_that_is_wrong_anywhere_is_refused(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    finetuned(backbone, store, tmp_path, epochs=1)
    file = tmp_path / "model.json"
    record = json.loads(file.read_text())
    assert {"settings", "metrics", "calibration", "versions", "model_sha256"} <= record.keys()
    for name in record:
        for wrong in ([[]], {"x": [1]}):
            file.write_text(json.dumps({**record, name: wrong}))
            with pytest.raises(FxError, match=r"model\.json is no model of fx \("):
                load_model(tmp_path)
    file.write_text(json.dumps(record))
    load_model(tmp_path)


def test_the_learning_rate_rises_and_falls_as_published() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=90)
    expected = []
    for _ in range(90):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[10:], expected, atol=1e-9)
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"unfreeze": -1}, {"learning_rate": 0.0}, {"from_scratch": True}]
)
def test_settings_are_checked_where_they_are_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        FinetuneSettings(**wrong)
