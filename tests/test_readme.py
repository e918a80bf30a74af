"""The README tells the truth: every command in it is one, and those without a download run."""

import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from conftest import Said, write_classes

from fx.commands.app import app

README = Path(__file__).parents[1] / "README.md"
Fx = Callable[..., Said]


def commands() -> list[list[str]]:
    """Every line of the README's shell blocks that runs fx."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [part for line in joined.splitlines() for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [w[1:] for w in words if w and Path(w[0]).name == "fx"]


def test_the_readme_has_the_two_commands() -> None:
    text = README.read_text()
    assert "<!-- demo -->" in text
    assert "<!-- test -->" in text
    assert len(commands()) >= 10


def test_every_command_of_the_readme_is_understood() -> None:
    group = typer.main.get_command(app)
    for words in commands():
        command = group.commands[words[0]]
        rest = words[1:]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], list(rest), resilient_parsing=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme_run_in_their_order(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    run = []
    for words in commands():
        # the demonstration has a test of its own, these would need a download, and this one has
        # images that not everybody has, and takes 21 minutes
        if words[0] == "demo" or any("resnet50" in word or word == "cifar4" for word in words):
            continue
        words = [_standing_for(word, tmp_path) for word in words]
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # to who asks
        said = fx(*words)
        assert said.status == 0, (words, said.err)
        run.append(words[0])
        if words[0] == "sample":
            _leave_a_few(tmp_path / "data")
    assert {"sample", "extract", "fit-head", "finetune", "compare", "predict"} <= set(run)
    for block in re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S):
        names: dict[str, object] = {}
        exec(block, names)
        if "model" in names:
            paths = [str(path) for path in sorted((tmp_path / "data").rglob("*.png"))]
            names["features"] = names["model"][0].transform(paths)
        assert names["features"].shape[1] == 1280
        assert len(names["features"]) == len(names.get("labels", names["features"]))


def _leave_a_few(folder: Path) -> None:
    """Keep twelve images a class, so that the README's defaults run in a minute."""
    for label in folder.iterdir():
        if label.is_dir():
            for file in sorted(label.iterdir())[12:]:
                file.unlink()


def _standing_for(word: str, here: Path) -> str:
    """Put a real thing where the README has a placeholder."""
    if word == "new-images":
        return str(write_classes(here / word, per_class=2))
    if word.startswith("runs/") and not (here / word).exists():
        (found,) = list((here / "runs").glob(f"{word.split('/')[1].rsplit('-', 1)[0]}-*"))[:1]
        return str(found)
    return word
