"""Killed at any change of a file, a command goes on when it is given again, to the same result."""

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_splits
from crashing import warm_process

# times, places and memory are those of a run
VARYING = {"seconds", "images_per_second", "shared_seconds", "predict_ms", "peak_memory_mb"}
VARYING |= {"extraction_seconds", "store", "path", "report", "commands", "settings", "images"}
# of strategies that are equally good the quickest is recommended
VARYING |= {"recommended", "recommendation", "quadrant"}
SMALL = ["--size", "32", "--engine", "torch", "--json"]
EXTRACT = ["extract", "data", *SMALL]
COMMANDS = {
    "sample": (["sample", "digits", "digits", "--json"], []),
    "extract": (EXTRACT, []),
    "fit-head": (["fit-head", "logreg", "--audit", "--json"], [EXTRACT]),
    "finetune": (
        ["finetune", "data", "--epochs", "2", "--augment", "flip", *SMALL],
        [EXTRACT],
    ),
    "compare": (
        ["compare", "data", "--epochs", "1", "--sizes", "8,16", "--seeds", "1", *SMALL],
        [EXTRACT],
    ),
    "gc": (["store", "gc", "--keep", "1", "--yes", "--json"], [EXTRACT, "fewer images", EXTRACT]),
    "verify": (["store", "verify", "--json"], [EXTRACT]),
}


def warm_up() -> None:
    """Import what the commands import, and keep what they measure in this process."""
    import matplotlib.pyplot
    import plotly.graph_objects  # noqa: F401

    import finetune.training.loop
    import fx.commands.app
    import fx.comparison.measure
    from extract.backbones import load_backbone

    matplotlib.pyplot.figure()
    load_backbone("efficientnet_lite0", size=32)
    # every epoch's state is written
    finetune.training.loop.SAVE_INTERVAL = -1.0
    fx.comparison.measure.in_own_process = lambda work, *given, begin: work(*given, begin=begin)


def run_in(folder: str, words: list[str]) -> dict:
    """Run a command in a folder, and return its JSON."""
    from fx.commands.app import main

    os.chdir(folder)
    sys.argv = ["fx", *words]
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.suppress(SystemExit):
        main()
    return json.loads(heard.getvalue())


def without_times(record: object) -> object:
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if k not in VARYING}
    return [without_times(one) for one in record] if isinstance(record, list) else record


def prepared(folder: Path, before: list[list[str] | str]) -> Path:
    write_splits(folder / "data", per_class=11, tests=3)
    for words in before:
        if words == "fewer images":
            for file in (folder / "data").rglob("00*.png"):
                file.unlink()
        else:
            assert "error" not in warm_process().run(run_in, folder, words).answer
    return folder


def check_kills(command: str, tmp_path: Path, choose: Iterable[int] | int | None) -> int:
    """Kill a command before some of its steps, each time from where it begins; all for None."""
    words, before = COMMANDS[command]
    start, here = prepared(tmp_path / "start", before), tmp_path / "here"
    shutil.copytree(start, here)
    ended = warm_process().run(run_in, here, words)
    expected, steps = ended.answer, ended.steps
    assert "error" not in expected, expected
    files = {str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()}
    chosen = range(1, steps + 1)
    if isinstance(choose, int):
        rng = np.random.default_rng(choose)
        chosen = sorted(rng.choice(steps, min(choose, steps), replace=False) + 1)
    for step in map(int, chosen):
        shutil.rmtree(here)
        shutil.copytree(start, here)
        assert warm_process().run(run_in, here, words, at_step=step).killed
        found = warm_process().run(run_in, here, words).answer
        after = {str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()}
        # what a finished run leaves, and nothing else
        assert {file for file in after - files if "snapshots" not in file} == set(), step
        assert files - after == set(), step
        if command in ("gc", "verify", "extract"):
            # what was done before the kill is not done again, and so not told
            assert "error" not in found, (step, found)
            told = warm_process().run(run_in, here, ["store", "verify", "--json"]).answer
            assert told["damaged"] == [], step
        else:
            assert without_times(found) == without_times(expected), step
    return steps


def test_a_killed_collection_of_garbage_goes_on(tmp_path: Path) -> None:
    check_kills("gc", tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_at_many_changes_of_files_goes_on(command: str, tmp_path: Path) -> None:
    # those that train take ten seconds each
    check_kills(command, tmp_path, 6 if command in ("finetune", "compare") else 12)
