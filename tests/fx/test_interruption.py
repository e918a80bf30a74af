"""SIGINT and SIGTERM end every command in time, with its status, one line and no process left."""

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from getpass import getuser
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import Said, write_splits
from test_store import RUN, SPEC, keys_of, rows_of

from extract.backbones import Backbone
from extract.engines import make_engine
from extract.store import FeatureStore
from extract.store import writer as writer_module
from extract.store.feature_set import ROW_ARRAYS
from fx.commands.demo import demo_commands, run_demo
from fx.interruption import MESSAGE

SIGNALS = [signal.SIGINT, signal.SIGTERM]
LINE = f"fx: {MESSAGE}\n"
IN_TIME = 2.0
# A command whose work is the function `main`; it tells by a file that it has come to its point.
OWN = """
import itertools, sys, time
from pathlib import Path

def begun():
    Path(sys.argv[1]).touch()
    return True
"""
CALL = """
if __name__ == "__main__":
    import fx.__main__ as command
    command.main = main
    command.run()
"""
# C code that never ends, and does not let go of Python's lock
KEEPING = "sum(itertools.repeat(1))"


class Started:
    """A command as a process, in a session of its own, by which all that it began is known."""

    def __init__(self, words: Iterable[object], directory: Path) -> None:
        # of a short name: a socket's may have a hundred letters, and those of tests are long
        self.temporary = Path(tempfile.mkdtemp(prefix="fx"))
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(self.temporary)},
        )

    def processes(self) -> list[psutil.Process]:
        """All that run, but for those that clear up after the others, and then end."""
        found = []
        for process in psutil.process_iter():
            try:
                theirs = os.getsid(process.pid) == self.process.pid
                if theirs and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return [p for p in found if not any("resource_tracker" in word for word in _words_of(p))]

    def signalled(self, number: signal.Signals, *, group: bool = False) -> Said:
        """Send a signal, to the one process or as a terminal does; assert that all end in time."""
        sent = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, number)
        self.process.wait(30)
        seconds, left = time.monotonic() - sent, self.processes()
        out, err = self.process.communicate()
        assert not left
        assert seconds < IN_TIME
        # PyTorch's is a cache
        assert {file.name for file in self.temporary.iterdir()} <= {f"torchinductor_{getuser()}"}
        return Said(self.process.returncode, out, err)


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a command with the body of its work; returns when that calls ``begun``."""
    started: list[Started] = []

    def start(body: str, *words: str) -> Started:
        # a file, which the process that measures imports
        script, begun = tmp_path / "command.py", tmp_path / "begun"
        script.write_text(OWN + body + CALL)
        one = Started([script, begun, *words], tmp_path)
        started.append(one)
        wait_for(begun.exists, one)
        return one

    yield start
    for one in started:
        kill_all(one)


def wait_for(what: Callable[[], object], one: Started) -> None:
    """Wait until something is so, while a command runs."""
    until = time.monotonic() + 120
    while not what():
        assert one.process.poll() is None, one.process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_ended(one: Started) -> None:
    """Give all processes of a command that was killed five seconds to end."""
    until = time.monotonic() + 5
    while one.processes():
        assert time.monotonic() < until
        time.sleep(0.01)


def kill_all(one: Started) -> None:
    """Leave nothing behind when a test fails."""
    for process in one.processes():
        process.kill()
    one.process.communicate()
    shutil.rmtree(one.temporary, ignore_errors=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_fit_of_libsvm_ends_with_one_line_and_the_status_of_the_signal(
    own: Callable[..., Started], number: signal.Signals
) -> None:
    fitting = own("""
import numpy as np
from sklearn.svm import SVC

def main():
    rng = np.random.default_rng(0)
    # of noise, which takes it minutes
    rows, labels = rng.normal(size=(20_000, 100)), rng.integers(0, 2, 20_000)
    begun()
    SVC(C=1000.0).fit(rows, labels)
""")
    said = fitting.signalled(number)
    assert (said.status, said.out, said.err) == (128 + number, "", LINE)


@pytest.mark.parametrize("number", SIGNALS)
def test_code_that_keeps_pythons_lock_ends_too(
    own: Callable[..., Started], number: signal.Signals
) -> None:
    # a library that is loaded from a slow disk, a large network that OpenVINO writes
    keeping = own(f"def main(): begun() and {KEEPING}", "--json")
    said = keeping.signalled(number, group=True)
    assert (said.status, said.err) == (128 + number, LINE)
    assert json.loads(said.out) == {"error": MESSAGE}


def test_what_is_unfinished_is_removed_and_further_signals_are_ignored(
    own: Callable[..., Started], tmp_path: Path
) -> None:
    writing = own("""
import tempfile

def main():
    with tempfile.TemporaryDirectory():
        try:
            begun() and time.sleep(30)
        finally:
            Path("removing").touch()
            time.sleep(0.4)
            Path("removed").touch()
""")
    os.kill(writing.process.pid, signal.SIGTERM)
    wait_for((tmp_path / "removing").exists, writing)
    said = writing.signalled(signal.SIGINT, group=True)
    assert (tmp_path / "removed").exists()
    assert (said.status, said.out, said.err) == (143, "", LINE)


@pytest.mark.parametrize("where", ["in the command", "while it is imported"])
def test_an_error_that_the_signal_became_is_not_told(
    own: Callable[..., Started], where: str
) -> None:
    other = own(f"""
def main():
    if {where == "in the command"}:
        from fx.commands import app

        app.app = failing
        app.main()
    failing()

def failing():
    try:
        begun() and time.sleep(30)
    except BaseException:
        raise RuntimeError("of C++ code, in whose call it came")
""")
    said = other.signalled(signal.SIGINT)
    assert (said.status, said.out, said.err) == (130, "", LINE)


def test_a_signal_inside_a_destructor_is_no_traceback(own: Callable[..., Started]) -> None:
    destroying = own("""
class Destroyed:
    def __del__(self):
        begun() and time.sleep(30)

def main():
    Destroyed()
    time.sleep(30)
""")
    said = destroying.signalled(signal.SIGTERM)
    assert (said.status, said.out, said.err) == (143, "", LINE)


# after the second the process is killed, which costs nothing any more
@pytest.mark.parametrize("seconds", [0.5, 5])
def test_a_result_that_has_been_printed_is_the_only_one(
    seconds: float, own: Callable[..., Started]
) -> None:
    printing = own(
        f"""
from fx.commands import printing

def main():
    printing.show({{"all": "done"}}, True, None)
    begun() and time.sleep({seconds})
    sys.exit(0)
""",
        "--json",
    )
    said = printing.signalled(signal.SIGTERM)
    assert (said.status, json.loads(said.out), said.err) == (0, {"all": "done"}, "")


def test_a_result_stands_where_the_signal_comes_after_the_end_of_python(
    own: Callable[..., Started],
) -> None:
    leaving = own(
        """
from fx.commands import printing

def main():
    import ctypes

    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(libc.pause, None, None)
    printing.show({"all": "done"}, True, None)
    begun()
""",
        "--json",
    )
    (command,) = (p for p in leaving.processes() if p.pid != leaving.process.pid)
    caught = re.compile(r"SigCgt:\s*(\w+)")

    def left() -> bool:
        found = caught.search(Path(f"/proc/{command.pid}/status").read_text())
        assert found
        return not int(found[1], 16) >> (signal.SIGTERM - 1) & 1

    wait_for(left, leaving)
    said = leaving.signalled(signal.SIGTERM)
    assert (said.status, json.loads(said.out), said.err) == (0, {"all": "done"}, "")


def test_of_several_processes_the_first_speaks(
    own: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    said = own("def main(): begun() and time.sleep(30)", "--json").signalled(signal.SIGINT)
    assert (said.status, said.out, said.err) == (130, "", "")


def test_a_command_ends_with_the_process_that_was_started(own: Callable[..., Started]) -> None:
    waiting = own(f"def main(): begun() and {KEEPING}")
    assert len(waiting.processes()) == 2
    waiting.process.kill()
    assert waiting.process.wait() == -signal.SIGKILL
    assert_ended(waiting)


def test_a_command_that_is_killed_is_seen_to_be_killed(own: Callable[..., Started]) -> None:
    killed = own("import os\ndef main(): begun() and time.sleep(0.1) or os.kill(os.getpid(), 9)")
    assert killed.process.wait() == -signal.SIGKILL


def test_a_signal_to_the_commands_own_process_counts(own: Callable[..., Started]) -> None:
    waiting = own("def main(): begun() and time.sleep(30)")
    (command,) = (p for p in waiting.processes() if p.pid != waiting.process.pid)
    command.terminate()
    _, err = waiting.process.communicate(timeout=30)
    assert (waiting.process.returncode, err) == (143, LINE)


MEASURING = """
def measured(*, begin):
    progress = begin("measuring")
    begun()
    {work}

def main():
    from fx.comparison import own_process

    own_process.PRELOADED = []
    own_process.in_own_process(measured, begin=lambda what: lambda done, total: None)
"""
COMPUTING, TELLING = "time.sleep(60)", "while True: progress(1, 1)"


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(KEEPING, id="computing"),
        pytest.param(COMPUTING, id="waiting"),
        pytest.param(TELLING, id="telling"),
    ],
)
def test_a_process_that_measures_ends_with_its_command(
    own: Callable[..., Started], work: str
) -> None:
    said = own(MEASURING.format(work=work)).signalled(signal.SIGTERM)
    assert (said.status, said.out, said.err) == (143, "", LINE)


def test_a_process_that_measures_is_interrupted_by_a_terminal_too(
    own: Callable[..., Started],
) -> None:
    said = own(MEASURING.format(work=COMPUTING)).signalled(signal.SIGINT, group=True)
    assert (said.status, said.out, said.err) == (130, "", LINE)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(COMPUTING, id="waiting"),
        pytest.param(TELLING, id="telling"),
    ],
)
def test_a_process_that_measures_ends_with_a_command_that_is_killed(
    own: Callable[..., Started], work: str
) -> None:
    killed = own(MEASURING.format(work=work))
    killed.process.kill()
    assert_ended(killed)
    assert killed.process.communicate() == ("", "")


@pytest.mark.parametrize(
    "lacking", ["sys.platform = 'darwin'", "os.fork = lambda: os.open('/', 1)"]
)
def test_where_a_second_process_cannot_be_had_the_first_is_interrupted(
    own: Callable[..., Started], lacking: str
) -> None:
    body = f"import os\n{lacking}\ndef main(): begun() and time.sleep(30)"
    waiting = own(body, "--json")
    assert len(waiting.processes()) == 1
    said = waiting.signalled(signal.SIGINT)
    assert (said.status, json.loads(said.out), said.err) == (130, {"error": MESSAGE}, LINE)


def test_a_command_that_is_called_in_a_process_leaves_its_signals_alone(
    fx: Callable[..., Said],
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    assert fx("extrat").status == 2
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("arrays", range(1, len(ROW_ARRAYS)))
def test_rows_of_which_an_interruption_has_written_a_part_are_written_again(
    arrays: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, written = FeatureStore.create(tmp_path / "f.zarr"), 0
    write_array = writer_module.RowBuffer._write_array

    def interrupted(self: writer_module.RowBuffer, name: str, rows: np.ndarray) -> list[int]:
        nonlocal written
        written += 1
        if written == len(ROW_ARRAYS) + arrays + 1:
            raise KeyboardInterrupt
        return write_array(self, name, rows)

    monkeypatch.setattr(writer_module.RowBuffer, "_write_array", interrupted)
    with store.lock():
        writer = store.start([(SPEC, 5)], RUN)
        with suppress(KeyboardInterrupt):
            for rows in (range(2), range(2, 5), range(5, 9)):
                writer.append(keys_of(rows), [rows_of(rows)], np.zeros((len(rows), 32), np.uint8))
                writer.commit()
        assert len(store.sets()[0].rows) == 2
        # as an extraction does that is interrupted
        writer.commit()
    assert not store.verify()
    (filled,) = store.sets()
    assert np.array_equal(filled.features(keys_of(range(5))), rows_of(range(5)))
    assert len(filled.rows) == 5


def test_a_demonstration_stops_at_the_command_that_was_interrupted(tmp_path: Path) -> None:
    ran = []

    def run(words: list[str]) -> int | None:
        ran.append(words[0])
        return 130 if words[0] == "extract" else None  # as typer does

    with pytest.raises(SystemExit) as ended:
        run_demo(tmp_path, run=run)
    assert ended.value.code == 130
    assert ran == ["sample", "extract"]


def test_a_demonstrations_result_is_its_own_comparison(tmp_path: Path) -> None:
    # and not the newest of what lies there
    answers = [None] * (len(demo_commands(tmp_path)) - 1) + [{"recommendation": "this one"}]
    record = run_demo(tmp_path, run=lambda words: answers.pop(0))
    assert record == {"recommendation": "this one"}


FX = ["-m", "fx"]
SMALL = ["--store", "features.zarr", "--size", "32"]
# what is run before, and the command
COMMANDS: dict[str, tuple[list[list[str]], list[str]]] = {
    "sample": ([], ["sample", "digits", "digits"]),
    "extract": ([], ["extract", "data", *SMALL, "--json"]),
    "extract with torch": ([], ["extract", "data", *SMALL, "--engine", "torch"]),
    "fit-head": ([["extract", "data", *SMALL]], ["fit-head", "svm", "features.zarr"]),
    "finetune": ([["extract", "data", *SMALL]], ["finetune", "data", *SMALL, "--epochs", "3"]),
    "compare": (
        [["extract", "data", *SMALL]],
        ["compare", "data", *SMALL, "--epochs", "2", "--seeds", "1", "--sizes", "40,80", "--json"],
    ),
    "predict": (
        [["extract", "data", *SMALL], ["fit-head", "centroid", "features.zarr", "--out", "runs"]],
        ["predict", "runs/centroid", "data"],
    ),
    "store verify": ([["extract", "data", *SMALL]], ["store", "verify", "features.zarr"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_in_time_at_any_moment_and_goes_on(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a network is converted in each
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before, words = COMMANDS[command]
    here = tmp_path / "here"
    write_splits(here / "data", 80, 20, ("a", "b", "c"))
    for one in before:
        subprocess.run([sys.executable, *FX, *one], cwd=here, check=True)
    if command == "predict":
        (head,) = (here / "runs").glob("centroid-*")
        head.rename(here / "runs" / "centroid")
    whole = shutil.copytree(here, tmp_path / "whole")
    begun = time.monotonic()
    subprocess.run([sys.executable, *FX, *words], cwd=whole, check=True)
    seconds = time.monotonic() - begun
    ended = 0
    parts = 4 if command in ("finetune", "compare") else 6  # these take half a minute each
    for part in range(parts):
        # each goes on from where the one before was interrupted
        number, moment = SIGNALS[part % 2], 0.1 + seconds * (part + random.random()) / parts
        one = Started([*FX, *words], here)
        try:
            with suppress(subprocess.TimeoutExpired):
                one.process.wait(moment)
            if one.process.poll() is None:
                said = one.signalled(number, group=part % 3 == 0)
                if not said.status:  # it was at its end
                    continue
                ended += 1
                assert said.status == 128 + number, (moment, said)
                told = [line for line in said.err.splitlines() if line.startswith("fx: ")]
                assert told == [LINE.strip()], (moment, said)
                assert "Traceback" not in said.err, (moment, said)
                if "--json" in words:
                    assert json.loads(said.out) == {"error": MESSAGE}
        finally:
            kill_all(one)
    assert ended
    done = subprocess.run([sys.executable, *FX, *words], cwd=here, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_demonstration_begins_no_command_after_the_one_that_was_interrupted(
    tmp_path: Path,
) -> None:
    one = Started([*FX, "demo", "demo", "--json"], tmp_path)
    assert one.process.stderr
    # the step that takes longest of those that another one follows
    while "$ fx finetune" not in one.process.stderr.readline():
        assert one.process.poll() is None
    time.sleep(0.5)
    said = one.signalled(signal.SIGINT, group=True)
    kill_all(one)
    assert said.status == 130
    assert json.loads(said.out) == {"error": MESSAGE}
    assert "$ fx" not in said.err
    assert said.err.endswith(LINE)


def test_converting_a_network_tells_nobody() -> None:
    # OpenVINO's telemetry forks a process for each, which a signal would leave behind; in a process
    # of its own, where nobody has imported OpenVINO before
    code = (
        "import importlib; from extract.backbones import load_backbone;"
        "from extract.engines import make_engine;"
        "one = load_backbone('efficientnet_lite0', size=32);"
        "make_engine(one.module, one.preprocessing, name='openvino', device='cpu').graph();"
        "print(importlib.import_module('openvino.tools.ovc.telemetry_utils').tm.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "openvino.tools.ovc.telemetry_stub\n"


def test_a_graph_that_was_not_finished_does_not_stay(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept, of_another = tmp_path / "fx", tmp_path / "fx" / "0123-1.bin"
    kept.mkdir()
    of_another.touch()
    engine = make_engine(
        backbone.module,
        backbone.preprocessing,
        name="openvino",
        device="cpu",
        identity=backbone.identity,
    )
    openvino = importlib.import_module("openvino")
    save_model = openvino.save_model

    def interrupted(*arguments: object, **options: object) -> None:
        save_model(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "save_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.graph()
    assert list(kept.iterdir()) == [of_another]
    # as one that was killed has left it; another may be writing its own
    os.utime(of_another, (0, 0))
    of_another.with_name("4567-2.bin").touch()
    engine.graph()
    assert sorted(file.suffix for file in kept.iterdir()) == [".bin", ".bin", ".xml"]
    assert not of_another.exists()
