"""The README and docs/ tell the truth: commands are understood; without a download, they run."""

import io
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Said, write_classes
from sklearn.pipeline import Pipeline

from fx.commands.app import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
MEASUREMENTS = ROOT / "benchmarks" / "README.md"
PAGES = [README, *DOCS, MEASUREMENTS, ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md"]
Fx = Callable[..., Said]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every line of a page's shell blocks that runs fx."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [part for line in joined.splitlines() for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [w[1:] for w in words if w and Path(w[0]).name == "fx"]


def commands_in_text(page: Path) -> list[list[str]]:
    """The commands with options that a page's text names, placeholders aside."""
    found = re.findall(r"`fx ([a-z][^`]* --[^`]*)`", page.read_text())
    return [shlex.split(text) for text in found if "…" not in text]


def test_the_readme_has_the_two_commands() -> None:
    text = README.read_text()
    assert "<!-- demo -->" in text
    assert "<!-- test -->" in text
    assert len(commands(README)) >= 10
    for fixed in ("extract --backbone resnet50", "fit-head svm", "finetune --unfreeze 2"):
        assert fixed.split() in commands(README)


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len(README.read_text().split()) <= 1_200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in slugs, anchor


def test_every_page_is_linked_from_the_first_page_of_the_docs_which_the_readme_links() -> None:
    first = ROOT / "docs" / "index.md"
    assert "(docs/index.md)" in README.read_text()
    linked = {(first.parent / to).resolve() for to in re.findall(r"\]\((.*?)\)", first.read_text())}
    assert {*PAGES, ROOT / "CHANGELOG.md"} - {first} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(page) + commands_in_text(page):
        if words[0].startswith("-"):
            assert words[0] in {name for option in group.params for name in option.opts}
            continue
        command = group.commands[words[0]]
        rest = words[1:]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], list(rest), resilient_parsing=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_run_in_their_order(
    page: Path, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    data = tmp_path / "data"
    if page != README:
        write_classes(data, per_class=6, classes=("a", "b", "c"))
    run = []
    for words in commands(page):
        # these have tests of their own, and others would need a download
        if words[0] in ("demo", "serve") or any("resnet50" in word for word in words):
            continue
        if words[0] == "sample":
            shutil.rmtree(data, ignore_errors=True)
        words = [_standing_for(word, tmp_path) for word in words]
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # to who asks
        said = fx(*words)
        assert said.status == 0, (words, said.err)
        run.append(words[0])
        if words[0] == "sample":
            _leave_a_few(data)
    assert page != README or {
        "sample", "extract", "fit-head", "finetune", "compare", "predict"
    } <= set(run)  # fmt: skip
    for block in blocks(page, "python"):
        if "onnxruntime" in block:
            continue  # it runs without fx: tests/fx/test_export.py
        names: dict[str, Any] = {}
        exec(block, names)
        paths, model = [str(path) for path in sorted(data.rglob("*.png"))], names.get("model")
        if isinstance(model, Pipeline):
            names["features"] = model[0].transform(paths)
        elif model is not None:
            assert set(model.predict(paths)) <= set(model.classes)
            names |= {"features": names["images"].features, "labels": names["images"].labels}
        assert names["features"].shape[1] == 1280
        assert len(names["features"]) == len(names.get("labels", names["features"]))


def _leave_a_few(folder: Path) -> None:
    """Keep six images a class, so that the defaults run in a minute."""
    for label in folder.iterdir():
        if label.is_dir():
            for file in sorted(label.iterdir())[6:]:
                file.unlink()


def _standing_for(word: str, here: Path) -> str:
    """Put a real thing where a page has a placeholder."""
    if word == "new-images":
        return str(write_classes(here / word, per_class=2))
    if word.startswith("runs/") and word.endswith("-1a2b3c4d"):
        (found,) = list((here / "runs").glob(f"{word.split('/')[1].rsplit('-', 1)[0]}-*"))[:1]
        return str(found)
    return word
