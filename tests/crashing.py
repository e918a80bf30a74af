"""A warm process that forks children to be killed: some time after their start, or at a step.

A step is a change on the disk: a file opened for writing, renamed or removed, a folder made or
removed. A child killed before each of its steps in turn has been killed at any moment, but for
what stands half written in a file that nothing reads yet.
"""

import contextlib
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Ended:
    """How a child ended: killed, or with what its function returned; its steps; from when to when.

    Times are those of ``time.monotonic``, which all processes share.
    """

    killed: bool
    answer: Any
    steps: int
    began: float
    died: float


class WarmProcess:
    """Has imported what is slow to import, and runs functions of the tests in forked children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # with the folders of the tests, as pytest has found them
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(
        self,
        function: Any,
        *arguments: object,
        at_step: int | None = None,
        after: float | None = None,
    ) -> Ended:
        """Run a test module's function in a child of its own.

        Parameters
        ----------
        function : of a test module; what that module's ``warm_up`` does, if it has
            one, is done before, and once
        arguments : paths, numbers, texts
        at_step : the child is killed before this step, from 1
        after : the child is killed after so many seconds
        """
        call = {
            "function": [function.__module__, function.__qualname__],
            "arguments": [str(a) if isinstance(a, Path) else a for a in arguments],
            "at_step": at_step,
            "after": after,
        }
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        self._process.stdin.flush()
        ended = Ended(**json.loads(self._process.stdout.readline()))
        # a test that fails, not a child that was meant to be killed
        assert ended.killed or "error" not in ended.answer, ended.answer["error"]
        return ended


@functools.cache
def warm_process() -> WarmProcess:
    """The one of this session; it ends when its input does."""
    return WarmProcess()


def die() -> None:
    """Kill this process, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _serve() -> None:
    import torch

    # a forked child has none of its parent's threads
    torch.set_num_threads(1)
    warm = set()
    for line in sys.stdin.buffer:
        call = json.loads(line)
        name, function = call["function"]
        module = importlib.import_module(name)
        if name not in warm and hasattr(module, "warm_up"):
            module.warm_up()
        warm.add(name)
        print(json.dumps(_run(getattr(module, function), call)), flush=True)


def _run(function: Any, call: dict[str, Any]) -> dict[str, Any]:
    heard, told = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _live(function, call, told)
    os.close(told)
    if call["after"] is not None and not select.select([heard], [], [], call["after"])[0]:
        os.kill(child, signal.SIGKILL)
    died = time.monotonic()
    said = b""
    while data := os.read(heard, 1 << 16):
        said += data
        died = time.monotonic()
    os.close(heard)
    _, status = os.waitpid(child, 0)
    ended = {"answer": None, "steps": 0, "began": began, "died": died}
    if os.WIFSIGNALED(status):
        return {**ended, "killed": True}
    return {**ended, "killed": False, **json.loads(said)}


def _live(function: Any, call: dict[str, Any], told: int) -> None:
    # stdout is for the answers
    os.dup2(2, 1)
    steps = _count_steps(call["at_step"])
    try:
        answer = function(*call["arguments"])
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(BaseException):
        os.write(told, json.dumps({"answer": answer or {}, "steps": steps[0]}).encode())
    os._exit(0)


def _count_steps(at_step: int | None) -> list[int]:
    steps = [0]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and (event != "open" or arguments[2] & WRITING):
            steps[0] += 1
            if steps[0] == at_step:
                die()

    sys.addaudithook(count)
    return steps


if __name__ == "__main__":
    _serve()
