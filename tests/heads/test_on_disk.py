"""Heads on rows that do not fit into memory are those that memory would have given."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

import heads.kinds._linear
from extract.errors import FxError
from heads.calibration import fit_temperature
from heads.files import load_head, save_head
from heads.fitting import fit_head, fit_head_on_disk, scores_on_disk
from heads.fitting.on_disk import draw_sample
from heads.head import positions
from heads.kinds.svm import EXACT_ROWS, LinearMachine
from heads.solver import ArrayOnDisk

LINEAR = [("logreg", {}), ("svm", {"kernel": "linearsvc"})]


def data(classes: int, n: int = 12_000) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose features differ in size and are not centred; 5 % of the labels are wrong."""
    features, y = make_classification(
        n, 40, n_informative=15, n_classes=classes, flip_y=0.05, random_state=classes
    )
    return (features * np.geomspace(0.1, 10, 40) + 3).astype(np.float32), np.char.add(
        "c", y.astype(str)
    )


@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_machine_of_many_rows_is_scikit_learns(classes: int) -> None:
    features, y = data(classes, 3_000)
    ours = LinearMachine().fit(features, y, 0.1, jobs=1)
    # which penalises intercepts, over this
    theirs = LinearSVC(C=0.1, dual=False, tol=1e-9, intercept_scaling=300, max_iter=10_000)
    theirs.fit(ours[0].transform(features).astype(np.float64), y)
    error = np.linalg.norm(ours[-1].coef_ - theirs.coef_) / np.linalg.norm(theirs.coef_)
    assert error < 2e-3
    np.testing.assert_allclose(ours[-1].intercept_, theirs.intercept_, atol=2e-3)


def test_a_linear_svm_of_too_many_rows_for_libsvm_is_one_that_takes_any(tmp_path: Path) -> None:
    features, y = data(3, EXACT_ROWS + 9)
    head = fit_head(features, y, kind="svm", kernel="linear", c=0.01)
    assert head.kernel == "linearsvc"
    assert "(LinearSVC)" in head.notes[0]
    save_head(head, tmp_path)
    loaded = load_head(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(features), head.predict_proba(features))


@pytest.mark.parametrize(("kind", "choices"), LINEAR, ids=["logreg", "svm"])
@pytest.mark.parametrize("normalize", ["standard", "l2", "none"])
@pytest.mark.parametrize("classes", [2, 5])
def test_rows_on_a_disk_give_the_head_that_memory_gives(
    kind: str, choices: dict[str, str], normalize: str, classes: int, tmp_path: Path
) -> None:
    features, y = data(classes)
    np.save(tmp_path / "x.npy", features[:10_000].astype(np.float16))
    rows = ArrayOnDisk(np.load(tmp_path / "x.npy", mmap_mode="r"))
    choices = {"kind": kind, "normalize": normalize, **choices}
    head, sample, aside = fit_head_on_disk(rows, y[:10_000], sample_rows=2_000, **choices)
    assert 2_000 <= len(sample) < 2_010
    assert (len(aside), head.n_train) == (500, 9_500)
    assert "do not fit into memory" in head.notes[0]
    known = features[:10_000].astype(np.float16).astype(np.float32)
    kept = np.setdiff1d(np.arange(10_000), aside)
    validation = (known[aside], y[aside])
    whole = fit_head(known[kept], y[kept], c=head.c, validation=validation, **choices)
    ours, theirs = (one.pipeline[-1].coef_ for one in (head, whole))
    assert np.linalg.norm(ours - theirs) < 0.03 * np.linalg.norm(theirs)
    right = [(one.predict(features[10_000:]) == y[10_000:]).mean() for one in (head, whole)]
    assert abs(right[0] - right[1]) <= 0.002
    assert abs(head.calibration.temperature / whole.calibration.temperature - 1) < 0.05
    np.testing.assert_allclose(scores_on_disk(head, rows), head.scores(known), atol=1e-5)


@pytest.mark.parametrize(("kind", "choices"), LINEAR, ids=["logreg", "svm"])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_temperature_is_that_of_the_head_which_is_delivered(
    kind: str, choices: dict[str, str], classes: int, on_disk: bool
) -> None:
    features, y = data(classes)
    known, new = slice(0, 6_000), slice(6_000, 12_000)
    choices = {"kind": kind, **choices}
    if on_disk:  # the sample's own head is less sure than one of all rows
        rows = ArrayOnDisk(features[known])
        head, *_ = fit_head_on_disk(rows, y[known], sample_rows=400, **choices)
    else:
        head = fit_head(features[known], y[known], **choices)
    truth = positions(y[new], head.classes, of="rows")
    best = fit_temperature(head.scores(features[new]), truth, any_unit=kind == "svm")
    assert abs(head.calibration.temperature / best - 1) < 0.2


def test_classes_that_weigh_the_same_do_so_on_a_disk() -> None:
    features, y = data(2)
    kept = np.flatnonzero((y == "c0") | (np.arange(len(y)) % 8 == 0))
    features, y = features[kept], y[kept]
    choices = {"kind": "logreg", "class_weight": "balanced", "c": 0.1}
    head, _, aside = fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=3_000, **choices)
    kept = np.setdiff1d(np.arange(len(y)), aside)
    whole = fit_head(features[kept], y[kept], **choices)
    error = np.linalg.norm(head.pipeline[-1].coef_ - whole.pipeline[-1].coef_)
    assert error < 0.01 * np.linalg.norm(whole.pipeline[-1].coef_)


def test_the_sample_holds_the_same_share_of_every_class_and_some_of_each() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [9_000, 900, 12])
    rng.shuffle(labels)
    for seed in range(5):
        sample = draw_sample(labels, 1_000, seed)
        assert (np.diff(sample) > 0).all()
        assert np.bincount(labels[sample]).tolist() == [908, 91, 12]


@pytest.mark.parametrize("of_class", [4, 60])
def test_groups_are_set_aside_whole_and_no_class_is_without_rows(of_class: int) -> None:
    features, y = data(2, 8_000)
    groups = np.char.add(y, (np.arange(8_000) % of_class).astype(str))
    for seed in range(3):
        choices = {"kind": "logreg", "sample_rows": 1_600, "seed": seed, "c": 0.1}
        head, sample, aside = fit_head_on_disk(
            ArrayOnDisk(features), y, groups=np.unique(groups, return_inverse=True)[1], **choices
        )
        kept = np.setdiff1d(np.arange(8_000), aside)
        assert not set(groups[kept]) & set(groups[aside])
        assert set(y[kept]) == set(y[sample]) == {"c0", "c1"}
        assert head.n_train == len(kept) >= 6_000


def test_a_fit_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads.kinds._linear, "SEARCH_MAX_ITER", 2)
    features, y = data(5, 4_000)
    with pytest.warns(ConvergenceWarning, match="the linear head stopped short"):
        fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=500, kind="logreg", c=10.0)


def test_what_cannot_be_fitted_on_a_disk_is_refused() -> None:
    features, y = data(2, 3_000)
    with pytest.raises(FxError, match="knn needs the features of all 3,000 rows at once; fit log"):
        fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=500, kind="knn")
    with pytest.raises(FxError, match="fit logreg, or an SVM with `kernel=linearsvc`"):
        fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=500, kind="svm", kernel="linear")
    with pytest.raises(FxError, match="unknown kernel 'poly'"):
        fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=500, kind="svm", kernel="poly")
    same = np.zeros(3_000, int)
    with pytest.raises(FxError, match="too few groups to set one aside"):
        fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=500, kind="logreg", groups=same)
    features[2_900, 3] = np.nan
    with pytest.raises(FxError, match="features are not finite"):
        fit_head_on_disk(ArrayOnDisk(features), y, sample_rows=500, kind="logreg")


MEASURED = """
import resource, sys
import numpy as np
from heads.fitting import fit_head_on_disk
from heads.solver import ArrayOnDisk

class Rows:
    shape = (int(sys.argv[3]), 128)

    def __getitem__(self, part):  # not mapped into memory, as the disk's pages would be
        start, stop, _ = part.indices(len(y))
        rows = np.fromfile(sys.argv[1], np.float16, (stop - start) * 128, offset=start * 256)
        return rows.reshape(-1, 128)

y = np.load(sys.argv[2])[: Rows.shape[0]]
fit_head_on_disk(ArrayOnDisk(Rows()), y, sample_rows=3_000, kind="logreg", c=0.01, jobs=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    n, d = 400_000, 128
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    with (tmp_path / "x").open("wb") as file:
        for part in np.split(y, 8):
            rows = rng.normal(size=(len(part), d)) + np.eye(3, d)[part]
            file.write(rows.astype(np.float16).tobytes())
    np.save(tmp_path / "y.npy", y.astype("S1"))
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", MEASURED, tmp_path / "x", tmp_path / "y.npy", str(rows)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for rows in (20_000, n)
    )
    # kilobytes; in float32 the rows have 195,000 more, labels and what is made of them 40,000
    assert many < few + 70_000
