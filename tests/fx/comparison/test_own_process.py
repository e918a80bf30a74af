"""Work in a process of its own: results, refusals, deaths and progress come back."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from extract.errors import FxError, NoRoom
from fx.comparison.own_process import in_own_process
from fx.stages.memory import peak_memory_mb

Begin = Callable[[str], Callable[[int, int], None]]


def of_itself(number: int, *, begin: Begin) -> tuple[int, int]:
    progress = begin("counting")
    for done in range(3):
        progress(done + 1, 3)
    return number, os.getpid()


def refusing(*, begin: Begin) -> None:
    raise FxError("not with these")


def lacking_room(*, begin: Begin) -> None:
    raise NoRoom("the disk is full")


def failing(*, begin: Begin) -> None:
    raise ZeroDivisionError("here")


def dying(*, begin: Begin) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def filling(megabytes: int, *, begin: Begin) -> float:
    kept = np.ones(megabytes * 125_000)
    assert kept.sum()
    return peak_memory_mb()


def holding_a_lock(*, begin: Begin) -> None:
    with multiprocessing.Lock():
        begin("waiting")
        time.sleep(60)


def interrupted(what: str) -> Callable[[int, int], None]:
    raise KeyboardInterrupt


def unheard(what: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def test_a_result_and_its_progress_come_from_another_process() -> None:
    heard: list[object] = []

    def begin(what: str) -> Callable[[int, int], None]:
        heard.append(what)
        return lambda done, total: heard.append((done, total))

    number, process = in_own_process(of_itself, 7, begin=begin)
    assert number == 7
    assert process != os.getpid()
    assert heard[0] == "counting"
    assert heard[-1] == (3, 3)


def test_what_is_refused_is_refused_here() -> None:
    with pytest.raises(FxError, match="not with these"):
        in_own_process(refusing, begin=unheard)
    with pytest.raises(NoRoom, match="the disk is full"):
        in_own_process(lacking_room, begin=unheard)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: here"):
        in_own_process(failing, begin=unheard)


def test_a_process_that_is_killed_is_told_of() -> None:
    with pytest.raises(FxError, match=r"status -9.*too little memory"):
        in_own_process(dying, begin=unheard)


def test_a_process_that_could_not_be_begun_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_server(descriptor: int) -> int:
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(multiprocessing.forkserver, "read_signed", without_a_server)
    with pytest.raises(FxError, match=r"status None.*too little memory"):
        in_own_process(of_itself, 7, begin=unheard)


def test_memory_of_one_is_not_that_of_the_next() -> None:
    much = in_own_process(filling, 400, begin=unheard)
    little = in_own_process(filling, 1, begin=unheard)
    assert much - little == pytest.approx(400, abs=40)


def test_who_interrupts_is_told_nothing_of_semaphores() -> None:
    code = (
        "from test_own_process import *\n"
        "try: in_own_process(holding_a_lock, begin=interrupted)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    begun = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["interrupted"]
    assert run.stderr == ""
    assert time.monotonic() - begun < 50


SCRIPT = """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
from test_own_process import of_itself, unheard
from fx.comparison.own_process import PRELOADED, in_own_process

PRELOADED.clear()  # they take long to import
print("run")
"""
CALL = "number, process = in_own_process(of_itself, 7, begin=unheard)\n"
TELL = "print(number, process != os.getpid())\n"


def run_script(script: str, folder: Path, how: str = "file") -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(SCRIPT + script)
    words = {
        "file": [str(file)],
        "module": ["-m", "script"],
        "standard input": ["-"],
        "command": ["-c", SCRIPT + script],
    }[how]
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"TESTS": str(Path(__file__).parent)},
        input=SCRIPT + script if how == "standard input" else None,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("how", ["file", "module", "standard input"])
def test_a_script_needs_no_guard_and_is_run_once(how: str, tmp_path: Path) -> None:
    run = run_script(CALL + TELL, tmp_path, how)
    assert (run.stdout, run.stderr) == ("run\n7 True\n", "")


def test_a_script_s_thread_begins_processes_as_well(tmp_path: Path) -> None:
    run = run_script(
        "from threading import Thread\n"
        "def call(): print(in_own_process(of_itself, 7, begin=unheard)[0])\n"
        "threads = [Thread(target=call) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "from multiprocessing import spawn\n"
        "print('init_main_from_path' in spawn.get_preparation_data('another'))\n",
        tmp_path,
    )
    assert (run.stdout.split(), run.stderr) == (["run", "7", "7", "7", "True"], "")


DEFINED = """
def own(*, begin): return len("own")
def call(): print(in_own_process(own, begin=unheard))
"""


@pytest.mark.parametrize("how", ["file", "standard input", "command"])
def test_what_a_script_defines_needs_the_guard_and_the_error_names_it(
    how: str, tmp_path: Path
) -> None:
    unguarded = run_script(DEFINED + "call()\n", tmp_path, how)
    assert unguarded.returncode == 1
    told = unguarded.stderr.splitlines()[-1]
    assert told.startswith("extract.errors.FxError: a process that measures cannot import")
    assert 'below `if __name__ == "__main__":`' in told
    if how == "file":
        guarded = run_script(DEFINED + 'if __name__ == "__main__": call()\n', tmp_path)
        assert guarded.stdout.splitlines()[-1] == "3"
        assert guarded.returncode == 0
