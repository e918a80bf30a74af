"""The library names parameters; the command that runs names its own options in their place."""

import ast
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import Said

from extract.errors import FxError
from fx.commands.app import app
from fx.commands.printing import print_confusion
from fx.output import _Lines, number_of

Fx = Callable[..., Said]
ROOT = Path(__file__).parents[2]
PARAMETER = re.compile(r"`([a-z_][a-z0-9_]*)(?:=[^`]*)?`")
MESSAGES = {
    "give another `size`": "give another --size",
    "take `weights=random`, or a file": "take --weights random, or a file",
    "raise `max_image_mb`; `batch_size=4` is less": "raise --max-image-mb; --batch-size 4 is less",
    # no options of fx extract
    "raise `cache_limit`, or take `bn=train`": "raise cache_limit, or take bn=train",
    "no features in `store`": "no features in --store",
    # what a file's name may hold
    "a/`size`.png and x`size` are no images": "a/`size`.png and x`size` are no images",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_parameters_become_options_of_the_command_that_runs(
    message: str, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        warnings.warn(message, UserWarning, stacklevel=1)
        raise FxError(message)

    monkeypatch.setattr("fx.stages.extract.extract_images", fail)
    said = fx("extract", "--json")
    told = MESSAGES[message]
    assert said.err.splitlines() == [f"fx: warning: {told}", f"fx: error: {told}"]
    assert told in said.out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_too_little_memory_is_told_with_what_takes_less(
    error: Exception, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fx.stages.extract.extract_images", fail)
    said = fx("extract")
    assert said.err.startswith("fx: error: too little memory")
    assert said.err.endswith("give a smaller --batch-size or --size, or fewer images\n")


def test_a_parameter_may_have_another_name_than_its_option(
    fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FxError("take `batch_norm=inference` and `unfreeze=0`")

    monkeypatch.setattr("fx.stages.finetune.finetune_images", fail)
    assert fx("finetune").err == "fx: error: take --bn inference and --unfreeze 0\n"


def texts(tree: ast.AST) -> Iterator[str]:
    """All texts of a module but its docstrings, the values in them as a dot."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            left_out.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            left_out.update(node.values)
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "." for part in node.values
            )
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node.value


def options() -> set[str]:
    """Names of the parameters of all commands."""
    waiting, names = [typer.main.get_command(app)], set()
    for command in waiting:
        waiting += getattr(command, "commands", {}).values()
        names |= {str(one.name) for one in command.params}
    return names


@pytest.mark.parametrize("package", ["extract", "heads", "finetune"])
def test_the_library_names_no_option_but_parameters_that_a_command_has(package: str) -> None:
    known, found = options(), 0
    for file in sorted((ROOT / package).rglob("*.py")):
        for text in texts(ast.parse(file.read_text())):
            # pip's own option
            text = text.replace("pip install --no-deps", "")
            assert not re.search(r"(?<![\w-])--[a-z]", text), (file, text)
            for name in PARAMETER.findall(text):
                assert name in known, (file, text)
                found += 1
    assert found


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5, "10 of 100, 2.0/s, 45 s left"), (40, "10 of 100, 4.0 s each, 6 min 0 s left")],
)
def test_progress_is_told_as_a_rate_or_as_seconds_each(
    seconds: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, float(seconds), float(seconds)])
    monkeypatch.setattr("fx.output.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("fx.output._SECONDS_BETWEEN_LINES", 1.0)
    file = io.StringIO()
    lines = _Lines("training", file)
    lines.progress(0, 100)
    lines.progress(10, 100)
    assert file.getvalue() == f"training: {said}\n"


def test_one_is_no_plural() -> None:
    told = [number_of(count, noun) for count in (1, 2000) for noun in ("image", "class")]
    assert told == ["1 image", "1 class", "2,000 images", "2,000 classes"]


def test_progress_without_any_progress_is_told_without_a_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fx.output._SECONDS_BETWEEN_LINES", 0.0)
    file = io.StringIO()
    lines = _Lines("trying", file)
    lines.progress(0, 2)
    lines.progress(0, 2)
    assert file.getvalue() == "trying: 0 of 2\n" * 2


@pytest.mark.parametrize("classes", [2, 10, 11, 1000])
def test_a_confusion_is_shown_whole_or_says_what_is_not_shown(
    classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = np.eye(classes, dtype=int) * 700
    matrix[:, 0] = 1  # each class has a mistake but the first
    matrix[-1] = 0  # and the last one no image
    names = [f"a class of a very long name that is told whole {n}" for n in range(classes)]
    print_confusion(matrix.tolist(), names)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    if classes <= 10:
        assert re.findall(r"^ *(\d+) a class", said, re.M) == [str(n + 1) for n in range(classes)]
        return
    said = " ".join(said.split())
    assert f"1 of {classes:,} classes is without a mistake; 1 without a test image" in said
    assert f"the 5 largest of {classes - 2:,} confusions" in said
