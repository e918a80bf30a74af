"""The commands as functions of Python, and what fx has left on the disk, opened there."""

import inspect
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import Said, answered, write_splits
from PIL import Image

import fx as package
from extract.errors import FxError
from extract.images import Snapshot
from extract.records import Record, as_html
from extract.store import FeatureStore
from fx.commands.app import app
from fx.output import progress_bar

Fx = Callable[..., Said]
COMMANDS = typer.main.get_command(app).commands
FUNCTIONS = ("advise", "compare", "extract", "finetune", "fit_head", "predict", "sample")


class Balance(HTMLParser):
    """Counts what is opened and not closed, and keeps the text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with images in ``data``."""
    write_splits(tmp_path / "data", per_class=12, tests=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_options_of_its_command_with_their_defaults(name: str) -> None:
    function = getattr(package, name)
    command = COMMANDS[name.replace("_", "-")]
    shown = inspect.signature(function).parameters
    wanted = {p.name: p for p in command.params}
    assert set(wanted) - set(shown) <= {"json_", "debug", "per_class"}
    for parameter in shown.values():
        default, of_command = parameter.default, wanted[parameter.name].default
        if parameter.default is not inspect.Parameter.empty:
            assert default == (str(of_command) if isinstance(of_command, Path) else of_command)
        assert str(parameter.annotation) != "typing.Any"
        assert f"\n{parameter.name} : " in function.__doc__
    assert function.__name__ == name


def test_the_stages_in_python_give_what_the_commands_print(
    here: Path, fx: Fx, capsys: pytest.CaptureFixture[str]
) -> None:
    extracted = package.extract(size=32)
    assert (extracted.new, extracted.images) == (34, 34)
    head = package.fit_head("logreg", near_copies="ignore")
    trained = package.finetune(unfreeze=1, epochs=2, augment="none", learning_rate=3e-4)
    compared = package.compare(
        strategies=["centroid", "logreg"], sizes=[8, 16], seeds=1, out=here / "runs"
    )
    labelled = package.predict(head.path, here / "data" / "test", top=2)
    said = capsys.readouterr()
    # progress alone is shown, and on stderr
    assert said.out == ""
    assert "extracting: 100%" in said.err
    # the same identities: nothing is computed again
    assert answered(fx, "extract", "--size", "32")["reused"] == 34
    words = ["fit-head", "logreg", "--near-copies", "ignore"]
    assert answered(fx, *words) == json.loads(json.dumps(head.as_json()))
    words = ["finetune", "--unfreeze", "1", "--epochs", "2", "--augment", "none"]
    assert answered(fx, *words, "--learning-rate", "0.0003")["path"] == trained.path
    words = ["compare", "--strategies", "centroid,logreg", "--sizes", "8,16", "--seeds", "1"]
    assert answered(fx, *words)["report"] == str(Path(compared.report).relative_to(here))
    printed = answered(fx, "predict", head.path, "data/test", "--top", "2")
    assert [one["label"] for one in printed["predictions"]] == [
        one.label for one in labelled.predictions
    ]
    for record in (extracted, head, trained, compared, labelled):
        assert not Balance(record._repr_html_()).open
    document = Balance(compared._repr_html_())
    assert compared.recommendation in document.text
    assert {"centroid", "logreg", "8", "16"} <= set(document.text)
    assert "data:image/png;base64," in compared._repr_html_()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("extract", {"size": 8}, r"'size'.*greater than or equal to 16"),
        ("extract", {"crops": 3}, r"crops must be one of 1, 5, 10; got 3"),
        ("extract", {"channels": 2}, r"channels must be one of 1, 3; got 2"),
        ("extract", {"max_image_mb": 2.5}, r"'max_image_mb'"),
        ("compare", {"sizes": ["many"]}, r"sizes must be numbers between commas; got 'many'"),
        ("compare", {"metric": "speed"}, r"metric must be one of accuracy"),
        ("fit_head", {"kind": "forest"}, r"KIND must be one of"),
        ("finetune", {"learning_rate": -1}, r"learning_rate must be a number above 0"),
    ],
)
def test_a_wrong_value_is_told_by_the_parameters_name(
    here: Path, name: str, given: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        getattr(package, name)(**given)
    assert "--" not in str(raised.value)


def test_what_no_option_is_called_is_no_keyword(here: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sizee'"):
        package.extract(sizee=32)
    with pytest.raises(FxError, match="'nowhere' does not exist"):
        package.extract("nowhere")
    # a name that begins as an option does is a name
    with pytest.raises(FxError, match="'--json' does not exist"):
        package.extract("--json")


def test_a_stores_features_come_with_their_images(here: Path) -> None:
    package.extract(size=32)
    found = package.load("features.zarr")
    store = FeatureStore(here / "features.zarr")
    rows = Snapshot.from_parquet(*store.read_snapshot()).rows
    features = store.last_extracted().features([row.key for row in rows])
    assert np.array_equal(found.features, features)
    assert found.paths == tuple(row.path for row in rows)
    assert set(zip(found.splits, found.labels, strict=True)) == {
        (split, label) for split in ("train", "test") for label in ("a", "b")
    }
    frame = found.to_pandas()
    assert frame.shape == (34, 4 + found.features.shape[1])
    assert list(frame["path"]) == list(found.paths)
    assert np.array_equal(frame.drop(columns=["path", "label", "split", "group"]), features)
    assert not Balance(found._repr_html_()).open


@pytest.mark.slow
def test_models_and_comparisons_are_opened(here: Path, fx: Fx) -> None:
    package.extract(size=32)
    head = package.fit_head("logreg", near_copies="ignore")
    trained = package.finetune(epochs=1, augment="none")
    files = sorted((here / "data" / "test").rglob("*.png"))
    for result in (head, trained):
        model = package.load(result.path)
        assert model.classes == ("a", "b")
        assert model.result == result
        answer = answered(fx, "predict", result.path, "data/test", "--probabilities")
        wanted = [list(one["probabilities"].values()) for one in answer["predictions"]]
        found = model.predict_proba(files)
        assert np.allclose(found, wanted, atol=1e-6)
        pixels = [np.asarray(Image.open(file)) for file in files[:4]]
        mixed = [*pixels, *map(Image.open, files[4:6]), *map(str, files[6:])]
        assert np.allclose(model.predict_proba(mixed), found, atol=1e-6)
        assert list(model.predict(files)) == [one["label"] for one in answer["predictions"]]
        assert model.predict_proba([]).shape == (0, 2)
        (here / "none.png").write_bytes(b"no image")
        with pytest.raises(FxError, match=r"none\.png cannot be read"):
            model.predict([*files, here / "none.png"])
    compared = package.compare(strategies="centroid", sizes=16, seeds=1)
    moved = Path(compared.report).parent.rename(here / "moved")
    again = package.load(moved)
    assert again.results == compared.results
    assert "data:image/png;base64," in again._repr_html_()
    with pytest.raises(FxError, match="no model at nowhere"):
        package.load("nowhere")


class Nested(Record, frozen=True):
    name: str
    numbers: list[int]
    parts: list[dict[str, float | None]]
    nothing: list[int]


def test_a_record_shows_itself_as_escaped_tables() -> None:
    record = Nested("<b>&", list(range(30)), [{"a": 0.123456, "<i>": None}], [])
    shown = record._repr_html_()
    document = Balance(shown)
    assert not document.open
    assert {"Nested", "<b>&", "0.1235", "–", "<i>"} <= set(document.text)
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more" in document.text
    assert "nothing" not in shown
    assert as_html([[1, 2], [3, 4]]).count("<tr>") == 2


def test_progress_is_a_bar_of_tqdm_in_a_function_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from fx.output import as_function

    with as_function(), progress_bar("working") as progress:
        progress(2, 4)
        progress(4, 4)
    assert re.search(r"working: 100%.*4/4", capsys.readouterr().err)
    with progress_bar("working") as progress:
        progress(4, 4)
    assert "100%" not in capsys.readouterr().err


TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def test_the_tutorial_shows_results_and_nothing_of_the_machine_that_made_them() -> None:
    cells = [one for one in json.loads(TUTORIAL.read_text())["cells"] if one.get("outputs")]
    assert len(cells) > 5
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {one["output_type"] for one in outputs} == {"execute_result", "display_data"}
    text = "".join(json.dumps(one["data"].get("text/plain", "")) for one in outputs)
    assert not re.search("/(home|root|tmp|Users)/", text)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(TUTORIAL, as_version=4)
    kept = [[output.output_type for output in cell.get("outputs", [])] for cell in book.cells]
    NotebookClient(book, timeout=800, resources={"metadata": {"path": tmp_path}}).execute()
    found = [
        [one.output_type for one in cell.get("outputs", []) if one.output_type != "stream"]
        for cell in book.cells
    ]
    assert found == kept
    record = [cell for cell in book.cells if "fx.compare" in cell.source][-1].outputs[-1]
    assert "data:image/png;base64," in record.data["text/html"]
