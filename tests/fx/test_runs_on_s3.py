"""Runs on object storage: a result is found there by any machine, and a killed run goes on."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import answered
from s3_server import S3Server

from extract.files import cache_directory, delete, mirror, place, working_folder
from finetune.training import checkpoint as loop
from fx.options import Options
from fx.runs import Run
from fx.stages.load import load


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def on_another_machine() -> None:
    """Forget all that is not on the object storage."""
    shutil.rmtree(cache_directory(), ignore_errors=True)
    mirror._mirrors.clear()


def names_in(url: str) -> set[str]:
    return {path.name for path, _ in place(url).walk()}


def test_a_head_on_s3_is_used_by_all_commands(images: Path, s3: str, fx, tmp_path: Path) -> None:
    store, out = f"{s3}/f.zarr", f"{s3}/runs"
    answered(fx, "extract", images, "--store", store, "--size", 32)
    head = answered(fx, "fit-head", "logreg", store, "--out", out)
    assert head["path"].startswith(f"{out}/logreg-efficientnet_lite0-")
    assert {"head.json", "result.json", "README.md"} <= names_in(head["path"])
    here = answered(fx, "fit-head", "logreg", store, "--out", tmp_path / "runs")
    on_another_machine()
    again = answered(fx, "fit-head", "logreg", store, "--out", out)
    assert again == head
    assert {k: v for k, v in again.items() if k not in ("path", "seconds")} == {
        k: v for k, v in here.items() if k not in ("path", "seconds")
    }
    on_another_machine()
    said = answered(fx, "predict", head["path"], images / "a")
    assert said["predictions"] == answered(fx, "predict", here["path"], images / "a")["predictions"]
    listed = answered(fx, "runs", out)["runs"]
    assert [(one["path"], one["accuracy"]) for one in listed] == [(head["path"], head["accuracy"])]
    assert load(head["path"]).classes == ("a", "b", "c")
    explained = answered(
        fx, "explain", head["path"], images / "a" / "000.png", "--out", f"{s3}/why", "--nearest", 0
    )
    assert explained["page"] == f"{s3}/why/index.html"
    assert len(names_in(f"{s3}/why")) == 2
    file = f"{s3}/exported/a.onnx"
    answered(fx, "export", head["path"], file)
    exported = answered(fx, "predict", file, images / "a")["predictions"]
    assert [p["label"] for p in exported] == [p["label"] for p in said["predictions"]]


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_on_another_machine(
    images: Path, s3: str, fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = f"{s3}/f.zarr", f"{s3}/runs"
    words = ["finetune", images, "--store", store, "--out", out, "--size", 32, "--epochs", 3]
    begun: list[bool] = []

    def saved_and_killed(*arguments: object, **options: object) -> None:
        loop.save_training_state(*arguments, **options)
        for one in mirror._mirrors.values():
            one.upload()
        raise KeyboardInterrupt

    def loaded(*arguments: object, **options: object) -> object:
        state = loop.load_training_state(*arguments, **options)
        begun.append(state is None)
        return state

    monkeypatch.setattr("finetune.training.loop.SAVE_INTERVAL", 0)
    with monkeypatch.context() as patch:
        patch.setattr("finetune.training.loop.save_training_state", saved_and_killed)
        assert fx(*words).status == 130
    on_another_machine()
    assert "training.safetensors" in names_in(out)
    monkeypatch.setattr("finetune.training.loop.load_training_state", loaded)
    said = fx(*words)
    assert said.status == 0, said.err
    assert begun[0] is False
    assert {"model.json", "result.json"} <= names_in(out)
    assert "training.safetensors" not in names_in(out)


@pytest.mark.slow
def test_a_comparison_on_s3_is_whole_there(images: Path, s3: str, fx) -> None:
    options = ["--store", f"{s3}/f.zarr", "--out", f"{s3}/runs", "--size", 32]
    plan = ["--strategies", "logreg", "--sizes", 40, "--seeds", 1]
    said = answered(fx, "compare", images, *options, *plan)
    assert said["report"].startswith(f"{s3}/runs/")
    page = place(said["report"]).read_bytes().decode()
    assert "logreg" in page
    on_another_machine()
    again = answered(fx, "compare", images, *options, *plan)
    assert again["results"] == said["results"]


def test_only_what_changed_is_written_and_fetched(s3: str, s3_server: S3Server) -> None:
    folder = working_folder(place(f"{s3}/runs/one"))
    one = mirror._mirrors[folder]
    (folder / "cells").mkdir(parents=True)
    for name in ("a.json", "cells/result.json", "b.partial"):
        (folder / name).write_text(name)
    one.upload()
    assert names_in(f"{s3}/runs") == {"a.json", "result.json"}
    s3_server.requests.clear()
    one.upload()
    assert s3_server.requests == {}
    # whoever clears a cache away deletes nothing but that
    shutil.move(folder / "a.json", folder.parent / "a.json")
    one.upload()
    assert names_in(f"{s3}/runs") == {"a.json", "result.json"}
    shutil.move(folder.parent / "a.json", folder / "a.json")
    delete(folder / "a.json")
    one.upload()
    assert names_in(f"{s3}/runs") == {"result.json"}
    (place(f"{s3}/runs/one") / "c.json").write_bytes(b"{}")
    (folder / "d.json").write_text("written here alone")
    mirror._mirrors.clear()
    s3_server.requests.clear()
    assert working_folder(place(f"{s3}/runs/one")) == folder
    # a listing, what is new there, and what is new here
    assert s3_server.requests == {"GET": 2, "PUT": 1}
    assert {file.name for file in folder.rglob("*.json")} == {"c.json", "d.json", "result.json"}
    assert names_in(f"{s3}/runs") == {"c.json", "d.json", "result.json"}


def test_what_programs_write_for_folders_is_no_file_of_a_run(s3: str, s3_server: S3Server) -> None:
    (place(s3) / "runs/one/cells/a.json").write_bytes(b"{}")
    for placeholder in ("runs/", "runs/one/", "runs/one/cells/", "runs/one/cells/b/"):
        s3_server.client.put_object(Bucket=s3.removeprefix("s3://"), Key=placeholder)
    folder = working_folder(place(s3) / "runs" / "one")
    assert [file.name for file in folder.rglob("*")] == ["cells", "a.json"]


def test_a_result_that_could_not_be_written_there_is_the_next_time(
    images: Path, s3: str, s3_server: S3Server, fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = f"{s3}/f.zarr", f"{s3}/runs"
    answered(fx, "extract", images, "--store", store, "--size", 32)
    with monkeypatch.context() as patch:

        def refused(run: Run, result: object) -> None:
            s3_server.refuse = lambda method: 403 if method == "PUT" else None
            Run.finish(run, result)

        patch.setattr("fx.stages.fit_head.Run", type("Refused", (Run,), {"finish": refused}))
        assert fx("fit-head", "centroid", store, "--out", out).status == 1
    s3_server.refuse = lambda _: None
    assert "result.json" not in names_in(out)
    mirror._mirrors.clear()
    head = answered(fx, "fit-head", "centroid", store, "--out", out)
    assert {"head.json", "result.json"} <= names_in(head["path"])


def test_of_a_place_that_is_no_model_nothing_is_fetched(s3: str, fx, images: Path) -> None:
    (place(s3) / "photos" / "a.jpg").write_bytes(b"1")
    said = fx("predict", f"{s3}/photos", images)
    assert said.status == 1
    assert f"no model at {s3}/photos" in said.err
    assert not list(cache_directory().rglob("a.jpg"))


@pytest.mark.parametrize("command", [["sample", "digits"], ["demo"]])
def test_what_is_written_here_alone_says_so(s3: str, fx, command: list[str], tmp_path) -> None:
    said = fx(*command, f"{s3}/somewhere")
    assert said.status == 1
    assert "is on object storage; give a folder of this machine" in said.err
    assert not Path("s3:").exists()


def test_options_know_urls_in_any_form() -> None:
    options = Options(store=Path("s3://b/f.zarr"), out="s3://b/runs")
    assert (str(options.store), str(options.out)) == ("s3://b/f.zarr", "s3://b/runs")
    assert json.loads(json.dumps(str(options.out))) == "s3://b/runs"
