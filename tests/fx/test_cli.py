"""The command as its user meets it: help, defaults, one-line errors, one JSON object."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torchvision
import typer
from conftest import Said, write_classes, write_splits
from PIL import Image

from extract.backbones import load_backbone
from extract.errors import FxError
from extract.images import Reading
from fx.commands.app import app
from heads.kinds import HEADS

Fx = Callable[..., Said]
COMMANDS = {
    "demo": (),
    "sample": (),
    "backbones": (),
    "extract": (),
    "fit-head": (),
    "finetune": (),
    "advise": (),
    "compare": (),
    "predict": (),
    "export": (),
    "explain": (),
    "serve": (),
    "runs": (),
    "store ls": (),
    "store verify": (),
    "store gc": (),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with nothing in torch's cache of downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def one_line(said: Said) -> str:
    """The error of an expected failure: exit status 1, a single line, nothing on stdout."""
    assert said.status == 1, said
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("fx: error: ")
    return line


def test_the_users_three_lines_run_as_they_stand(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=6)
    # what torchvision's download would have left: its name, its format, 1,000 classes
    weights = torchvision.models.get_model_weights("resnet50").DEFAULT
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    checkpoints = here / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(network.state_dict(), checkpoints / Path(weights.url).name)

    assert fx(*["extract", "--backbone", "resnet50"]).status == 0
    assert (here / "features.zarr").is_dir()
    head = fx(*["fit-head", "svm"])
    assert head.status == 0, head.err
    assert "svm on resnet50: accuracy" in head.out
    tuned = fx(*["finetune", "--unfreeze", "2"])
    assert tuned.status == 0, tuned.err
    assert "resnet50, unfreeze 2: accuracy" in tuned.out
    assert len(list((here / "runs").glob("*/model.safetensors"))) == 1


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_in_under_half_a_second_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['fx', '--help']\n"
        "from fx.commands.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'plotly', 'zarr', 'timm', 'numpy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
    seconds, of_cpu = [], []
    for _ in range(5):
        begun, used = time.perf_counter(), cpu_seconds_of_children()
        subprocess.run([sys.executable, "-m", "fx", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begun)
        of_cpu.append(cpu_seconds_of_children() - used)
    assert min(seconds) < 0.5
    assert min(of_cpu) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str, fx: Fx) -> None:
    said = fx(*command.split(), "--help")
    assert said.status == 0
    assert f"fx {command}" in said.out
    assert re.search(r"Examples?:", said.out)
    assert "--json" in said.out
    assert max(len(line) for line in said.out.splitlines()) <= 80


def test_no_command_is_missing_from_these_tests() -> None:
    group = typer.main.get_command(app)
    names = set()
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        names |= {f"{name} {sub}" for sub in below} if below else {name}
    assert names == set(COMMANDS)


def test_the_version_is_told(fx: Fx) -> None:
    assert fx("--version").out == f"fx {version('fx-images')}\n"


def test_help_lists_what_is_registered_when_it_is_asked_for(fx: Fx) -> None:
    HEADS.add("oracle", HEADS["centroid"], "Knows it all.")
    try:
        for command, others in (("fit-head", ("svm",)), ("compare", ("svm", "finetune"))):
            out = fx(command, "--help").out
            for name in ("oracle", *others):
                assert re.search(rf"^  {name} +\w", out, re.MULTILINE), out
            assert "Knows it all." in out
    finally:
        HEADS.remove("oracle")
    assert "oracle" not in fx("fit-head", "--help").out


def test_a_wrong_option_answers_quickly_with_status_2() -> None:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "fx", "extract", "--backbon", "resnet50"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--backbone" in result.stderr
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    "words",
    [
        "fit-head forest",
        "fit-head svm --kernel cubic",
        "fit-head svm --c 0",
        "finetune --unfreeze two",
        "finetune --epochs 0",
        "finetune --from-scratch --unfreeze 2",
        "finetune --seed -1",
        "compare --seed 2147483648",
        "compare --seeds 1001",
        "fit-head knn --crops 0",
        f"finetune --cache-limit {10**400}",
        "fit-head knn --precision half",
        "finetune --learning-rate -1",
        "compare --sizes ten",
        "compare --strategies guess",
        "extract --batch-size 0",
        "extract --size 3",
        "nonsense",
    ],
)
def test_wrong_usage_has_status_2_and_no_traceback(here: Path, fx: Fx, words: str) -> None:
    said = fx(*words.split())
    assert said.status == 2
    assert "Traceback" not in said.err
    assert "Usage:" in said.err or "No such command" in said.err


@pytest.mark.parametrize(
    "words", [["extract", ""], ["predict", "runs/svm", ""], ["store", "ls", ""], ["runs", ""]]
)
def test_an_empty_argument_is_not_this_folder(here: Path, fx: Fx, words: list[str]) -> None:
    said = fx(*words)
    assert said.status == 2
    assert "an argument is empty" in said.err


def test_a_mistyped_backbone_names_the_nearest(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=2)
    line = one_line(fx("extract", "--backbone", "resnet5O"))
    assert "'resnet5O'" in line
    assert "resnet50" in line
    assert "fx backbones" in line


def test_a_mistyped_path_says_so(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=2)
    line = one_line(fx("extract", "dat"))
    assert "dat" in line
    assert "data" in line.split("dat", 1)[1]


def test_a_missing_default_folder_says_how_to_get_one(here: Path, fx: Fx) -> None:
    assert "fx sample digits" in one_line(fx("extract"))


def test_an_empty_folder_says_so(here: Path, fx: Fx) -> None:
    (here / "data").mkdir()
    assert "no images" in one_line(fx("extract"))


def test_a_folder_without_classes_is_extracted_but_no_head_is_fitted(here: Path, fx: Fx) -> None:
    write_classes(here / "classes", per_class=3)
    (here / "data").mkdir()
    for number, file in enumerate(sorted((here / "classes").rglob("*.png"))):
        shutil.copy(file, here / "data" / f"{number}.png")
    assert "no labels" in fx("extract", "--size", 32).out
    assert "no labelled images" in one_line(fx("fit-head", "logreg"))


def test_one_class_is_refused(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=5, classes=("only",))
    assert fx("extract", "--size", 32).status == 0
    assert "one class, 'only'" in one_line(fx("fit-head", "logreg"))


def test_a_store_that_is_none_is_refused(here: Path, fx: Fx) -> None:
    assert "no feature store at features.zarr" in one_line(fx("fit-head", "svm"))
    (here / "features.zarr").mkdir()
    assert "holds no features yet; extract images first" in one_line(fx("fit-head", "svm"))
    (here / "features.zarr" / "notes.txt").write_text("mine")
    assert "is not a feature store" in one_line(fx("fit-head", "svm"))
    (here / "text.zarr").write_text("hello")
    assert "is not a feature store" in one_line(fx("store", "ls", "text.zarr"))


def test_features_of_another_backbone_are_not_taken(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=5)
    assert fx("extract", "--size", 32).status == 0
    line = one_line(fx("fit-head", "svm", "--backbone", "resnet50"))
    assert "no features of backbone resnet50" in line
    assert "efficientnet_lite0 at 32" in line


def test_weights_choose_among_stored_features(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=8)
    assert fx("extract", "--size", 32).status == 0
    assert fx("extract", "--size", 32, "--weights", "random").status == 0
    name = ("--backbone", "efficientnet_lite0")
    paths = {
        json.loads(fx("fit-head", "logreg", *words, "--json").out)["path"]
        for words in ((*name, "--weights", "default"), ("--weights", "random"), ())
    }
    assert len(paths) == 2
    line = one_line(fx("fit-head", "logreg", "--weights", "wheel:other"))
    assert "weights wheel:other" in line


def test_a_class_named_by_any_bytes_goes_through(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=8)
    (here / "data" / "a").rename(here / "data" / os.fsdecode(b"caf\xe9"))
    said = fx("extract", "--size", 32)
    assert said.status == 0, said.err
    assert fx("fit-head", "logreg").status == 0


def test_what_is_passed_over_is_told(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=3)
    (here / "data" / "a" / "notes.txt").write_text("notes")
    (here / "data" / "empty").mkdir()
    said = fx("extract", "--size", 32)
    assert "passed over: .txt (1), folders without images (1)\n" in said.out
    record = json.loads(fx("extract", "--size", 32, "--json").out)
    assert record["passed_over"] == {".txt": 1, "folders without images": 1}


@pytest.mark.parametrize(
    "command",
    [
        "finetune --from-scratch --backbone small_cnn --epochs 1",
        "finetune --unfreeze 0 --epochs 1",
        "compare --strategies centroid --seeds 1",
        "advise --backbone small_cnn --weights random",
    ],
)
def test_what_extracts_on_its_way_tells_what_is_not_used(here: Path, fx: Fx, command: str) -> None:
    write_classes(here / "data", per_class=12)
    write_classes(here / "data", per_class=1, classes=("a", "b", "single"))
    (here / "data" / "a" / "notes.txt").write_text("notes")
    (here / "data" / "b" / "bad.png").write_bytes(b"none")
    said = fx(*command.split(), "--size", 32, "--min-images", 2)
    assert said.status == 0, said.err
    text = " ".join(said.out.split())
    assert "assed over: .txt (1)" in text
    if "advise" not in command:
        assert "1 image cannot be read, the first is 'b/bad.png': not a JPEG" in text
        assert "lasses left out: single (1)" in text


def test_a_network_that_was_chosen_among_several_is_told(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=3)
    state = load_backbone("small_cnn", weights="random").module.state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": other, "model_ema": state}, here / "both.pth")
    words = ("extract", "--backbone", "small_cnn", "--weights", "both.pth", "--size", 32)
    said = fx(*words)
    assert "warning" not in said.err
    [note] = json.loads(fx(*words, "--json").out)["notes"]
    assert "model_ema of" in note
    assert f"note:{note}".replace(" ", "") in "".join(said.out.split())


def test_a_class_of_which_nothing_is_left_is_an_error(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=3)
    (here / "data" / "c").mkdir()
    (here / "data" / "c" / "1.png").write_bytes(b"none")
    line = one_line(fx("extract", "--size", 32))
    assert "nothing is left of class 'c': 'c/1.png': not a JPEG" in line
    (here / "data" / "c" / "1.png").rename(here / "data" / "c" / "1.dcm")
    assert "'c/1.dcm': .dcm files are not read" in one_line(fx("extract", "--size", 32))
    shutil.rmtree(here / "data" / "c")
    shutil.copytree(here / "data" / "b", here / "data" / "c")
    line = one_line(fx("extract", "--size", 32))
    assert "class 'b' and 1 more" in line
    assert "conflicting labels" in line


@pytest.mark.parametrize(
    "command", ["extract", "finetune", "finetune --from-scratch", "advise", "compare"]
)
def test_how_images_are_read_reaches_the_reader(
    here: Path, fx: Fx, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def listed(_: Path, reading: Reading) -> None:
        told.append(reading)
        raise FxError("told")

    monkeypatch.setattr("extract.images.sources._listed", listed)
    columns = {f"{name}_column": name.upper() for name in ("path", "label", "split", "group")}
    given = columns | {
        "layout": "splits",
        "min_images": 3,
        "root": Path("elsewhere"),
        "max_image_mb": 7,
    }
    words = [word for n, v in given.items() for word in (f"--{n.replace('_', '-')}", v)]
    for dry in [(), ("--dry-run",)] if command == "compare" else [()]:
        assert one_line(fx(*command.split(), "data", *words, *dry)) == "fx: error: told"
        assert told.pop() == Reading(**given)


def test_classes_of_few_images_are_told_and_may_be_left_out(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=6)
    write_classes(here / "data", per_class=1, classes=("a", "b", "single"))
    (here / "data" / "none").mkdir()
    (here / "data" / "none" / "1.png").write_bytes(b"none")
    words = ("extract", "--size", 32)
    assert "class 'none': " in one_line(fx(*words))
    assert "--min-images 1" in one_line(fx(*words))
    said = " ".join(fx(*words, "--min-images", 1).out.split())
    assert "classes left out: none (0)" in said
    assert "which heads and fine-tuning refuse: single (1); add images" in said
    assert fx("fit-head", "centroid").status == 1
    record = json.loads(fx(*words, "--min-images", 2, "--json").out)
    assert record["left_out"] == {"none": 0, "single": 1}
    assert record["too_few"] == {}
    assert fx("fit-head", "centroid").status == 0
    assert fx(*words, "--min-images", -1).status == 2


def test_images_of_which_networks_see_little_are_told(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=4)
    sizes = {"1": (1, 1), "2": (500, 3), "3": (9, 100), "4": (9, 90), "5": (8, 8)}
    for number, (name, size) in enumerate(sizes.items()):
        image = Image.new("RGB", size, (40 * number, 9, 9))
        image.save(here / "data" / "a" / f"x{name}.png")
    said = fx("extract", "--size", 32)
    assert (
        "very small or narrow, so that the network sees little: 3\n"
        "  a/x1.png: 1 by 1 pixels\n  a/x2.png: 500 by 3 pixels\n  a/x3.png: 9 by 100 pixels\n"
    ) in said.out
    odd = json.loads(fx("extract", "--size", 48, "--json").out)["odd"]
    assert odd[1] == {"path": "a/x2.png", "width": 500, "height": 3}


def test_folders_that_may_be_splits_are_asked_about_but_not_where_labels_are_given(
    here: Path, fx: Fx
) -> None:
    write_classes(here / "data" / "train", per_class=6)
    write_classes(here / "data" / "docs", per_class=1, classes=("c",))
    words = ("extract", "--size", 32)
    assert "--layout splits takes 'train' as splits and passes over 'docs'" in one_line(fx(*words))
    assert "passed over: images in no split (1)\n" in fx(*words, "--layout", "splits").out
    assert fx(*words, "--layout", "both").status == 2
    path = json.loads(fx("fit-head", "centroid", "--json").out)["path"]
    assert len(json.loads(fx("predict", path, "data", "--json").out)["predictions"]) == 13


def test_the_columns_of_a_table_are_told(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=3)
    rows = [f"{f.parent.name}/{f.name};{f.parent.name}" for f in here.glob("data/*/*.png")]
    (here / "t.csv").write_text("\n".join(["file;label", *rows]))
    words = ("extract", "t.csv", "--size", 32)
    assert "name one of them by --path-column" in one_line(fx(*words))
    said = fx(*words, "--path-column", "file", "--root", "data")
    assert "columns of the table: path 'file', label 'label'\n" in said.out
    record = json.loads(fx(*words, "--path-column", "file", "--root", "data", "--json").out)
    assert record["columns"] == {"path": "file", "label": "label"}
    (here / "data" / "u.csv").write_text("\n".join(["path;class", *rows]))
    unnamed = "no labels: no column of the table is called label; name it by --label-column\n"
    assert unnamed in fx("extract", "data/u.csv", "--size", 32).out
    named = fx("extract", "data/u.csv", "--size", 32, "--label-column", "class").out
    assert "2 classes; " in named


def test_an_interrupted_sample_is_written_again(
    here: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "data" / "0").mkdir(parents=True)
    (here / "data" / ".fx-sample").write_text("digits unfinished")
    assert "1797 images" in fx("sample", "digits").out


def test_images_of_a_snapshot_without_features_are_refused(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=6)
    assert fx("extract", "--size", 32).status == 0
    write_classes(here / "data", per_class=8)
    assert fx("extract", "--size", 48).status == 0
    line = one_line(fx("fit-head", "svm", "--size", 32))
    assert "images have no features" in line
    assert "extract the images again" in line


@pytest.mark.parametrize("harm", ["truncate", "empty", "text", "missing"])
def test_a_corrupt_head_is_refused(here: Path, fx: Fx, harm: str) -> None:
    write_classes(here / "data", per_class=8)
    fx("extract", "--size", 32)
    record = json.loads(fx("fit-head", "logreg", "--json").out)
    file = Path(record["path"]) / "head.safetensors"
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        new = {"truncate": data[: len(data) // 2], "empty": b"", "text": b"hello"}
        file.write_bytes(new[harm])
    assert "head.safetensors" in one_line(fx("predict", record["path"], "data"))


def test_what_is_no_model_is_refused(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=2)
    assert "no model at runs/none" in one_line(fx("predict", "runs/none", "data"))
    (here / "runs").mkdir()
    assert "neither head.json nor model.json" in one_line(fx("predict", "runs", "data"))


def test_without_a_network_the_download_is_explained(
    here: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    write_classes(here / "data", per_class=2)
    line = one_line(fx("extract", "--backbone", "resnet50"))
    for words in ("resnet50-11ad3fa6.pth", "checkpoints", "--weights", "efficientnet_lite0"):
        assert words in line


def test_debug_shows_the_traceback(here: Path, fx: Fx) -> None:
    with pytest.raises(Exception, match="no feature store"):
        fx("fit-head", "svm", "--debug")


def test_errors_are_one_json_object_too(here: Path, fx: Fx) -> None:
    said = fx("fit-head", "svm", "--json")
    assert said.status == 1
    assert "no feature store" in json.loads(said.out)["error"]


def test_json_has_the_names_of_the_contract(here: Path, fx: Fx) -> None:
    write_splits(here / "data", per_class=10)

    def answered(*words: object) -> dict[str, object]:
        said = fx(*words, "--json")
        assert said.status == 0, said.err
        return json.loads(said.out)

    extracted = answered("extract", "--size", 32)
    names = "store backbone spec images new reused failed duplicates dim seconds"
    assert set((names + " images_per_second engine precision").split()) <= set(extracted)
    head = answered("fit-head", "svm", "--kernel", "linear")
    names = "head kind path backbone classes n_train n_test c accuracy accuracy_ci macro_f1"
    assert set((names + " log_loss ece seconds confusion").split()) <= set(head)
    tuned = answered("finetune", "--epochs", 1)
    names = "path backbone unfreeze trainable_parameters epochs best_epoch n_train n_test accuracy"
    more = " accuracy_ci macro_f1 log_loss ece seconds images_per_second"
    assert set((names + more).split()) <= set(tuned)
    compared = answered(
        "compare",
        *("--sizes", "8,16", "--seeds", 1, "--epochs", 1),
        *("--strategies", "logreg,finetune:all,scratch"),
    )
    assert {"results", "differences", "recommendation", "crossover", "report"} <= set(compared)
    names = "strategy n_train seed accuracy macro_f1 log_loss seconds trainable_parameters"
    for record in compared["results"]:
        assert set((names + " peak_memory_mb").split()) <= set(record)
    assert len(compared["results"]) == 6
    for model in (head["path"], tuned["path"]):
        predicted = answered("predict", model, "data")
        assert set(predicted["predictions"][0]) == {"path", "label", "probability"}
        assert predicted["failed"] == []
        right = sum(f"/{p['label']}/" in p["path"] for p in predicted["predictions"])
        assert right >= 20
    listed = answered("store", "ls")
    assert [s["rows"] for s in listed["sets"]] == [30]
    assert answered("store", "verify")["damaged"] == []


def test_a_finished_run_is_not_done_again_unless_fresh(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=10)
    fx("extract", "--size", 32)
    first = json.loads(fx("fit-head", "logreg", "--json").out)
    again = json.loads(fx("fit-head", "logreg", "--json").out)
    fresh = json.loads(fx("fit-head", "logreg", "--json", "--fresh").out)
    assert first == again
    assert first["seconds"] != fresh["seconds"]
    without_time = {k: v for k, v in first.items() if k != "seconds"}
    assert without_time == {k: v for k, v in fresh.items() if k != "seconds"}


def test_strict_turns_an_unreadable_image_into_an_error(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=3)
    (here / "data" / "a" / "bad.jpg").write_bytes(b"nothing")
    said = fx("extract", "--size", 32)
    assert said.status == 0
    assert "a/bad.jpg" in said.out
    assert "a/bad.jpg" in one_line(fx("extract", "--size", 32, "--strict"))


def test_the_terminal_output_fits_80_columns(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=10)
    for words in (
        ("extract", "--size", "32"),
        ("fit-head", "logreg"),
        ("finetune", "--epochs", "1"),
        ("compare", "--sizes", "8,16", "--strategies", "logreg,svm"),
        ("store", "ls"),
        ("backbones",),
        ("backbones", "efficientnet_lite0"),
    ):
        said = fx(*words)
        assert said.status == 0, said.err
        assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80, said.out


def test_finished_runs_are_listed_the_newest_first(here: Path, fx: Fx) -> None:
    write_splits(here / "data", per_class=10)
    assert "no folder 'runs'" in one_line(fx("runs"))
    assert fx("extract", "--size", "32").status == 0
    head = json.loads(fx("fit-head", "centroid", "--json").out)
    compared = json.loads(
        fx("compare", "--sizes", "8", "--seeds", 1, "--strategies", "centroid,knn", "--json").out
    )
    (here / "runs" / "damaged").mkdir()
    (here / "runs" / "damaged" / "result.json").write_text("{")
    first, second = json.loads(fx("runs", "--json").out)["runs"]
    assert (first["what"], second["what"]) == ("comparison", "head")
    assert Path(compared["report"]).parent == Path(first["path"])
    assert first["recommended"] == compared["recommended"]
    for name in ("path", "accuracy", "log_loss", "n_train"):
        assert second[name] == head[name]
    said = fx("runs")
    told = said.out
    assert said.err.startswith("passed over: runs/damaged/result.json: ")
    assert told.index(Path(first["path"]).name) < told.index(Path(second["path"]).name)
    assert max(map(len, told.splitlines())) <= 80
    by_class = fx("fit-head", "centroid", "--per-class").out
    assert by_class.index("precision") < by_class.index("recall") < by_class.index("true")


def test_a_sample_is_not_written_over_other_files(here: Path, fx: Fx) -> None:
    (here / "data").mkdir()
    (here / "data" / "mine.txt").write_text("precious")
    assert "not empty" in one_line(fx("sample", "digits"))
    assert "choose one of: digits" in one_line(fx("sample", "digit", "other"))


def test_a_name_that_could_be_an_option_or_markup_is_printed_as_it_is(here: Path, fx: Fx) -> None:
    write_classes(here / "data", per_class=10, classes=("[red]x", "<script>"))
    assert fx("extract", "--size", 32).status == 0
    assert "[red]x" in fx("fit-head", "logreg").out


def test_python_m_fx_is_the_command() -> None:
    env = {**os.environ, "COLUMNS": "80"}
    result = subprocess.run(
        [sys.executable, "-m", "fx", "sample", "--help"], capture_output=True, text=True, env=env
    )
    assert result.returncode == 0
    assert "fx sample digits data" in result.stdout
