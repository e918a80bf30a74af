"""Heads: probabilities, files, refusals."""

import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from older_heads import save_older_head
from scipy.special import softmax
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from extract.errors import FxError
from heads.files import load_head, save_head
from heads.fitting import fit_head
from heads.head import Head, Source
from heads.kinds import HEADS

pytestmark = pytest.mark.filterwarnings("error")

NAMES = np.array(["ant", "bee", "cat"])
KINDS = [(kind, k) for kind in ("logreg", "svm", "knn", "centroid") for k in (2, 3)]
SPEC = {"backbone": "resnet18", "numerics": "fp32", "preprocessing": {"size": 224, "mean": [0.5]}}


def blobs(k: int, n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds in six dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    centres = np.random.default_rng(7).normal(size=(k, 6))
    features = centres[y] * 1.2 + rng.normal(size=(n, 6))
    return (features * [1, 10, 0.1, 1, 1, 1] + 3).astype(np.float32), NAMES[y]


def fitted(kind: str, k: int, **choices: Any) -> Head:
    return fit_head(*blobs(k), kind=kind, spec=SPEC, **choices)


@pytest.fixture(scope="module")
def head() -> Head:
    return fitted("logreg", 3).tested(*blobs(3, 60, seed=1))


@pytest.mark.parametrize(("kind", "k"), KINDS)
def test_probabilities_are_probabilities_of_classes_in_order(kind: str, k: int) -> None:
    head = fitted(kind, k)
    features, y = blobs(k, 200, seed=5)
    p = head.predict_proba(features)
    assert head.classes == tuple(NAMES[:k])
    assert (p.shape, p.dtype) == ((200, k), np.float64)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (head.predict(features) == NAMES[p.argmax(axis=1)]).all()
    assert (head.predict(features) == y).mean() > 0.6
    assert head.predict_proba(features[:0]).shape == (0, k)


@pytest.mark.parametrize("k", [2, 3])
def test_one_linear_layer_gives_the_same_probabilities(k: int) -> None:
    head = fitted("logreg", k)
    assert head.calibration.temperature != 1
    features, _ = blobs(k, 200, seed=5)
    weight, bias = head.as_linear()
    assert (weight.shape, bias.shape) == ((k, 6), (k,))
    assert weight.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(
        softmax(features @ weight.T + bias, axis=1), head.predict_proba(features), atol=5e-6
    )


def test_an_svm_is_not_offered_as_a_linear_layer() -> None:
    with pytest.raises(ValueError, match="only a linear head"):
        fitted("svm", 3, kernel="linear").as_linear()


@pytest.mark.parametrize(("kind", "k"), KINDS)
def test_a_head_reads_back_bit_for_bit(kind: str, k: int, tmp_path: Path) -> None:
    head = replace(fitted(kind, k), source=Source(("default",), images="0")).tested(
        *blobs(k, 60, seed=1)
    )
    save_head(head, tmp_path / "new" / "folder")
    files = (tmp_path / "new" / "folder").iterdir()
    assert sorted(file.name for file in files) == ["head.json", "head.safetensors"]
    again = load_head(tmp_path / "new" / "folder")
    features, _ = blobs(k, 100, seed=2)
    assert np.array_equal(again.predict_proba(features), head.predict_proba(features))
    for name in vars(head):
        if name not in ("pipeline", "held_out"):
            assert getattr(again, name) == getattr(head, name), name


@pytest.mark.parametrize("k", [2, 3])
def test_an_approximated_machine_reads_back_bit_for_bit(k: int, tmp_path: Path) -> None:
    head = fitted("svm", k, kernel="nystroem")
    save_head(head, tmp_path)
    features, _ = blobs(k, 100, seed=2)
    again = load_head(tmp_path).predict_proba(features)
    assert np.array_equal(again, head.predict_proba(features))


def test_the_record_tells_how_the_head_came_about(head: Head, tmp_path: Path) -> None:
    save_head(head, tmp_path)
    record = json.loads((tmp_path / "head.json").read_text())
    assert {"kind", "kernel", "classes", "c", "folds", "spec", "metrics", "notes"} <= set(record)
    assert set(record["versions"]) == {"numpy", "scikit-learn", "safetensors"}
    assert {"log_loss_before", "ece_before", "log_loss_after", "ece_after"} <= set(
        record["calibration"]
    )
    assert [one["c"] for one in record["search"]] == [one.c for one in head.search]
    assert record["metrics"]["n_test"] == 60


def test_what_is_read_back_is_plain_scikit_learn(head: Head, tmp_path: Path) -> None:
    save_head(head, tmp_path)
    plain = load_head(tmp_path).pipeline
    assert all(type(step).__module__.startswith("sklearn.") for step in (plain, *plain))
    features, _ = blobs(3, 50, seed=3)
    cooled = plain.decision_function(features) / head.calibration.temperature
    np.testing.assert_allclose(softmax(cooled, axis=1), head.predict_proba(features))
    assert (plain.predict(features) == head.predict(features)).all()


@pytest.mark.parametrize("kernel", ["rbf", "linear", "nystroem", "linearsvc"])
@pytest.mark.parametrize(("kind", "k"), KINDS)
def test_rebuilt_objects_predict_as_those_that_were_fitted(kind: str, k: int, kernel: str) -> None:
    learner = HEADS[kind].learner(kernel=kernel)
    first = learner.fit(*blobs(k), 3.0, jobs=1)
    again = learner.rebuild(learner.state(first), NAMES[:k].tolist(), 3.0)
    new, _ = blobs(k, 80, seed=3)
    for name in ("predict", "decision_function", "predict_proba"):
        if hasattr(first, name):
            theirs, ours = getattr(first, name)(new), getattr(again, name)(new)
            np.testing.assert_array_equal(ours, theirs)


def test_heads_of_older_versions_predict_as_they_did(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).with_name("older_heads.zip")) as archive:
        archive.extractall(tmp_path)
    features = np.array(json.loads((tmp_path / "features.json").read_text()), np.float32)
    folders = [one for one in tmp_path.iterdir() if one.is_dir()]
    assert len(folders) == 5
    for folder in folders:
        head = load_head(folder)
        expected = json.loads((folder / "probabilities.json").read_text())
        np.testing.assert_allclose(head.predict_proba(features), expected, atol=1e-6)
        assert head.metrics is not None
        assert head.metrics.n_test == 24
        save_head(head, folder)
        assert not (folder / "head.skops").exists()
        again = load_head(folder)
        np.testing.assert_array_equal(again.scores(features), head.scores(features))


@given(
    spec=st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_spec_survives_the_disk_and_equals_itself(head: Head, spec: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_head(replace(head, spec=spec), folder)
        again = load_head(folder)
    assert again.spec == spec
    again.check_spec(spec)


@pytest.mark.parametrize(("kind", "k"), KINDS)
def test_the_same_seed_gives_the_same_numbers_with_any_threads(kind: str, k: int) -> None:
    features, _ = blobs(k, 40, seed=4)
    first, again = fitted(kind, k, seed=3, jobs=1), fitted(kind, k, seed=3, jobs=2)
    assert first.search == again.search
    assert np.array_equal(first.predict_proba(features), again.predict_proba(features))


def test_progress_counts_up_to_its_total() -> None:
    for kind in ("logreg", "svm"):
        told: list[tuple[int, int]] = []
        fitted(kind, 3, progress=lambda done, total, told=told: told.append((done, total)))
        done = [one for one, _ in told]
        assert done == sorted(done)
        assert all(one <= total for one, total in told)
        assert told[-1][0] == told[-1][1]


class Bomb(FunctionTransformer):  # type: ignore[misc]
    """Goes off when it is constructed by a loader that trusts it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(os.environ["FX_BOMB"]).write_text("boom")


def armed(directory: Path, estimator: object) -> Path:
    """Save a head whose model file holds something else."""
    save_older_head(fitted("logreg", 3), directory, estimator)
    return directory


def test_a_type_that_fx_does_not_write_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FX_BOMB", str(tmp_path / "boom"))
    features, y = blobs(3)
    inner = fitted("logreg", 3).pipeline[-1]
    evil = Pipeline([("scale", Bomb()), ("classify", inner)])
    with pytest.raises(FxError, match=r"refused; got the type .*Bomb in .*head\.skops"):
        load_head(armed(tmp_path / "a", evil))
    call = Pipeline([("scale", FunctionTransformer(os.system)), ("classify", inner)])
    with pytest.raises(FxError, match=r"refused; got the type .*(system|FunctionTransformer)"):
        load_head(armed(tmp_path / "b", call))
    # skops itself would trust this one; fx does not write it
    dummy = Pipeline([("scale", StandardScaler()), ("classify", DummyClassifier())])
    with pytest.raises(FxError, match=r"got the type sklearn\.dummy\.DummyClassifier"):
        load_head(armed(tmp_path / "c", dummy.fit(features, y)))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("module", "name", "loader"),
    [
        ("subprocess", "Popen", "ObjectNode"),
        ("builtins", "eval", "FunctionNode"),
        ("builtins", "str", "MethodNode"),
        ("sklearn.preprocessing._data", "StandardScaler", "OperatorFuncNode"),
    ],
)
def test_a_schema_edited_by_hand_is_refused(
    module: str, name: str, loader: str, tmp_path: Path
) -> None:
    save_older_head(fitted("logreg", 3), tmp_path)
    model = tmp_path / "head.skops"
    with zipfile.ZipFile(model) as old:
        parts = {entry: old.read(entry) for entry in old.namelist()}
    schema = json.loads(parts["schema.json"])
    schema["content"]["content"]["memory"] |= {
        "__module__": module,
        "__class__": name,
        "__loader__": loader,
    }
    with zipfile.ZipFile(model, "w") as new:
        for entry, data in parts.items():
            new.writestr(entry, json.dumps(schema) if entry == "schema.json" else data)
    with pytest.raises(FxError, match=f"got the type {module}.{name} in"):
        load_head(tmp_path)


SAVE = {"head.safetensors": save_head, "head.skops": save_older_head}
every_format = pytest.mark.parametrize(("model", "save"), SAVE.items())
Save = Callable[[Head, Path], None]


@every_format
def test_a_machine_with_arrays_of_wrong_sizes_is_refused(
    model: str, save: Save, tmp_path: Path
) -> None:
    head = fitted("svm", 3)
    head.pipeline[-1]._n_support[0] += 1_000_000  # libsvm would read that many vectors
    save(head, tmp_path)
    with pytest.raises(FxError, match=rf"model in .*{model} that does not fit"):
        load_head(tmp_path)


@every_format
def test_the_model_of_another_head_is_refused(
    model: str, save: Save, head: Head, tmp_path: Path
) -> None:
    save(head, tmp_path)
    for kind, k in (("svm", 3), ("logreg", 2)):
        save(fitted(kind, k), tmp_path / "other")
        shutil.copy(tmp_path / "other" / model, tmp_path / model)
        for sha256 in (True, False):
            record = json.loads((tmp_path / "head.json").read_text())
            record["model_sha256"] = record["model_sha256"] if sha256 else None
            (tmp_path / "head.json").write_text(json.dumps(record))
            with pytest.raises(FxError, match=r"does not fit head\.json"):
                load_head(tmp_path)


@pytest.mark.parametrize("name", ["head.json", *SAVE])
def test_missing_and_damaged_files_are_named_in_one_line(
    name: str, head: Head, tmp_path: Path
) -> None:
    SAVE.get(name, save_head)(head, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for damage in (None, b"", b"{}", whole[:-30], whole[: len(whole) // 2], bytes(flipped)):
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(FxError, match=name.replace(".", r"\.")) as error:
            load_head(tmp_path)
        assert "\n" not in str(error.value)


def test_a_record_without_a_field_is_named(head: Head, tmp_path: Path) -> None:
    save_head(head, tmp_path)
    record = json.loads((tmp_path / "head.json").read_text())
    for missing in ("classes", "calibration", "format"):
        fewer = {name: value for name, value in record.items() if name != missing}
        (tmp_path / "head.json").write_text(json.dumps(fewer))
        with pytest.raises(FxError, match=missing):
            load_head(tmp_path)


def test_features_of_another_spec_are_refused_by_the_field_that_differs(head: Head) -> None:
    head.check_spec(json.loads(json.dumps(SPEC)))
    other = {**SPEC, "preprocessing": {"size": 160, "mean": [0.5]}}
    with pytest.raises(FxError, match=r"preprocessing\.size 160 where the head has 224; extract"):
        head.check_spec(other)
    with pytest.raises(FxError, match="got backbone 'vgg16' where the head has 'resnet18'"):
        head.check_spec({**SPEC, "backbone": "vgg16", "numerics": "bf16"})
    with pytest.raises(FxError, match="got crops 5 where the head has None"):
        head.check_spec({**SPEC, "crops": 5})


def test_another_precision_is_taken_with_a_warning_but_not_int8(head: Head) -> None:
    with pytest.warns(UserWarning, match="numerics 'bf16' where the head has 'fp32'"):
        head.check_spec({**SPEC, "numerics": "bf16"})
    with pytest.raises(FxError, match="numerics 'int8'"):
        head.check_spec({**SPEC, "numerics": "int8"})


def test_features_of_another_width_or_not_finite_are_refused(head: Head) -> None:
    features, _ = blobs(3)
    with pytest.raises(FxError, match="got 5 a row where it takes 6"):
        head.predict_proba(features[:, :5])
    features[17, 2] = np.inf
    with pytest.raises(FxError, match=r"in 1 rows, the first of them row 17"):
        head.predict(features)


def refusal(message: str, features: Any, y: Any, **choices: Any) -> None:
    with pytest.raises(FxError, match=message) as error:
        fit_head(features, y, **{"kind": "logreg", **choices})
    assert "\n" not in str(error.value)


def test_what_cannot_be_fitted_is_refused_in_one_line() -> None:
    features, y = blobs(3)
    refusal("at least two classes; got ant;", features[y == "ant"], y[y == "ant"])
    refusal("at least two classes; got no labelled rows", features[:0], y[:0])
    lonely = np.append(y, "yak")
    refusal("class 'yak'; got 1", np.vstack([features, features[:1]]), lonely)
    refusal("same in every row", np.ones_like(features), y)
    for c in (-1.0, 0.0, 1e-300, 1e300, np.nan, np.inf):
        refusal("C must be from 1e-10 to 1e\\+10; got ", features, y, c=c)
    for c in (0.5, 2.5, 1e6, np.nan):
        refusal("must be a whole one, from 1 to the .* images", features, y, kind="knn", c=c)
    refusal(
        "centroid has nothing to choose; got 3; leave it out", features, y, kind="centroid", c=3
    )
    refusal("groups must be one a row", features, y, groups=[1, 2])
    refusal("at least 2 folds; got 1", features, y, folds=1)
    refusal("unknown head 'tree'; choose from centroid, knn, logreg, svm", features, y, kind="tree")
    refusal(
        "unknown kernel 'poly'; choose rbf, linear, nystroem, linearsvc or auto",
        features,
        y,
        kind="svm",
        kernel="poly",
    )
    refusal("unknown normalisation 'max'; choose standard,", features, y, normalize="max")
    refusal("knn knows no class weights", features, y, kind="knn", class_weight="balanced")
    refusal(
        "validation rows have a class without training rows; got 'yak'",
        features,
        y,
        validation=(features[:2], ["ant", "yak"]),
    )
    spoilt = features.copy()
    spoilt[3, 0] = np.nan
    refusal("features are not finite", spoilt, y)


def test_test_rows_of_an_unknown_class_are_refused(head: Head) -> None:
    features, _ = blobs(3)
    with pytest.raises(FxError, match="test rows have a class without training rows; got 'yak'"):
        head.tested(features[:1], ["yak"])


def test_a_given_c_is_taken_and_still_calibrated() -> None:
    head = fitted("logreg", 3, c=0.02)
    assert head.c == 0.02
    assert [candidate.c for candidate in head.search] == [0.02]
    assert head.calibration.log_loss_after <= head.calibration.log_loss_before


def test_a_file_of_a_head_holds_no_pickle(head: Head, tmp_path: Path) -> None:
    save_head(head, tmp_path)
    data = (tmp_path / "head.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    arrays = json.loads(data[8 : 8 + length])
    assert {one["dtype"] for one in arrays.values()} <= {"F64", "F32", "I64", "I32"}
    ends = [end for one in arrays.values() for end in one["data_offsets"]]
    assert max(ends) == len(data) - 8 - length
