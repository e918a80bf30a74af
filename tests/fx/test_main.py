"""The end of the command's process: quickly, with nothing lost."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

START = "import atexit, sys, threading, time\nimport fx.__main__ as command\n"
END = "\ncommand.main = main\ncommand.run()"


def run(body: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a process whose command is the function main that `body` defines."""
    words = [sys.executable, "-c", START + body + END]
    buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, env=buffered)


@pytest.mark.parametrize(
    ("words", "status"), [(["--help"], 0), (["extrat"], 2), (["store", "ls", "nowhere"], 1)]
)
def test_a_process_has_the_status_of_its_command(words: list[str], status: int) -> None:
    result = subprocess.run([sys.executable, "-m", "fx", *words], capture_output=True, text=True)
    assert result.returncode == status
    assert result.stdout or result.stderr


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_stream_that_is_closed_is_nobody_else_s(closed: str) -> None:
    words = ["/bin/sh", "-c", f'exec "$0" -m fx store ls nowhere {closed}', sys.executable]
    said = subprocess.run(words, capture_output=True, text=True)
    error = "" if "2>" in closed else "fx: error: no feature store at nowhere"
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith(error)
    assert bool(said.stderr) == bool(error)


def test_all_that_was_printed_reaches_a_pipe() -> None:
    result = run("def main():\n    print('x' * 100_000, end='')\n    sys.exit(0)")
    assert result.returncode == 0
    assert result.stdout == "x" * 100_000


def test_threads_and_handlers_come_to_their_end_first() -> None:
    result = run("""
def last():
    time.sleep(0.2)
    print("thread")

def main():
    atexit.register(print, "handler")
    threading.Thread(target=last).start()
    sys.exit(3)
""")
    assert result.returncode == 3
    assert result.stdout == "thread\nhandler\n"


def test_no_cycles_are_collected_at_the_end() -> None:
    result = run("""
class Cycle:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("collected")

def main():
    Cycle()
    sys.exit()
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("raised", "told"),
    [("RuntimeError('broken')", "RuntimeError: broken"), ("SystemExit('so it is')", "so it is")],
)
def test_what_python_tells_at_a_process_end_is_told(raised: str, told: str) -> None:
    result = run(f"def main():\n    raise {raised}")
    assert result.returncode == 1
    assert result.stderr.endswith(told + "\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_output_that_could_not_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        result = run("def main():\n    print('lost')\n    sys.exit(0)", stdout=full)
    assert result.returncode == 120  # Python's own
    assert "No space left on device" in result.stderr


def test_a_process_without_an_output_says_nothing_of_it() -> None:
    result = run("def main():\n    sys.stdout.close()\n    sys.stdout = None\n    sys.exit(0)")
    assert (result.returncode, result.stderr) == (0, "")
    result = run("def main():\n    sys.stdout.close()\n    sys.exit(0)")
    assert (result.returncode, result.stderr) == (0, "")
