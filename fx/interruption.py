"""SIGINT and SIGTERM end a command within two seconds, whatever it is doing.

Python hears of a signal when C code returns (a fit of libsvm's: minutes), and a thread beside it
runs only where that code lets go of Python's lock: importing a large library does not for a second,
nor OpenVINO for four seconds while it writes a large network. So the command runs in a process of
its own, where a signal raises ``Interrupted``, so that what is done is kept and what is unfinished
removed. The process that was started does nothing but see to it that this one ends in time, and
everything that it began with it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress

# not from typing: this is imported while the command cannot be interrupted
TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType
    from typing import NoReturn

MESSAGE = "interrupted; the same command goes on from here"
ENDED = "ended by a signal"  # of a command that nothing goes on from
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds from the first signal on: for the command to end by itself, and then for the system to
# take back the memory of processes that were killed.
TO_UNWIND, TO_DIE = 0.9, 0.5
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, sys/prctl.h


class Interrupted(BaseException):
    """A signal asked this process to end; no ``KeyboardInterrupt``, which typer answers itself."""


class _State:
    """Of the signals of this process.

    Attributes
    ----------
    received : the first one
    heeded : whether it raises ``Interrupted``
    give_up : is called in place of raising
    told : two bytes that two processes share. The first is 0, or 1 where a JSON object follows on
        stdout, 2 where all of the result is there; the second, how many seconds the command may
        take to end by itself
    watched : whether another process sees to the end of this one
    """

    received: int | None = None
    heeded = True
    give_up: Callable[[], None] | None = None
    told: bytearray | memoryview = bytearray(2)
    watched = False


_state = _State()


def received() -> int | None:
    """Return the signal that asked this process to end, or None."""
    return _state.received


def result_follows() -> None:
    """Say that what the command prints now is all of its result: a signal changes it no more."""
    _state.heeded = False
    _state.told[0] = 1


def result_is_out() -> None:
    """Say that all of the result has been printed: ending the process costs nothing any more."""
    _state.told[0] = 2


def takes_time_to_end(seconds: int) -> None:
    """Say that the command ends by itself within some seconds, 255 at most, from a signal on.

    A second signal ends it as any other command.
    """
    _state.told[1] = seconds


def heed_no_more() -> None:
    """Let signals pass from here on: the command has ended."""
    _state.heeded = False


def status_when_interrupted() -> int | None:
    """Return the status to end with after a signal; None if there was none.

    Where no other process sees to the end of this one, it says here that it was interrupted.
    """
    if _state.received is None:
        return None
    if not _state.watched:
        _tell()
    return 128 + _state.received


@contextmanager
def deferred(give_up: Callable[[], None]) -> Iterator[None]:
    """Raise ``Interrupted`` at the end of the block, not inside it.

    Parameters
    ----------
    give_up : called when the signal comes; has what the block waits for end
    """
    before = _state.received
    _state.give_up = give_up
    try:
        yield
    finally:
        _state.give_up = None
        if _state.received != before:
            raise Interrupted from None


def raise_when_signalled(numbers: Collection[int] = SIGNALS) -> None:
    """Have the first of these signals raise ``Interrupted`` in the main thread, and none after it.

    In processes that are forked from this one SIGINT, which a terminal sends to all, is ignored,
    and SIGTERM ends them.
    """
    _state.received, _state.heeded = None, True
    for number in numbers:
        signal.signal(number, _interrupt)
    sys.unraisablehook = _unraisable
    os.register_at_fork(after_in_child=_as_a_forked_process)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _state.received is not None:
        return
    _state.received = number
    if _state.give_up:
        _state.give_up()
    elif _state.heeded:
        raise Interrupted


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    # where it was raised nothing can be (a destructor): the end comes when the time is over
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _as_a_forked_process() -> None:
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def go_on_in_a_process_of_its_own() -> None:
    """Return in a new process, where signals raise ``Interrupted``; this one waits for its end.

    It ends with the status of the new one, with 130 or 143 after SIGINT or SIGTERM, also where a
    shell had it ignore SIGINT, as scripts' shells do in the background: what is interrupted can go
    on. Elsewhere than on Linux the command stays in this process, and ends when C code has
    returned.
    """
    if sys.platform == "linux":
        # no signal shall come before each of the two knows what to do with it
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        _state.told = _shared_bytes()
        starter = os.getpid()
        try:
            command = os.fork()
            _state.watched = True
        except OSError:  # of a system that allows no more processes
            command = 0
        if command:
            _see_to_the_end_of(command)
        if _state.watched:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != starter:
                os._exit(1)
    raise_when_signalled()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _see_to_the_end_of(command: int) -> NoReturn:
    """Wait for a command's process, pass signals on to it, and end as it did."""
    first: int | None = None
    killed = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = number
            signal.setitimer(signal.ITIMER_REAL, TO_UNWIND + _state.told[1])
        elif left := signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, min(left, TO_UNWIND))
        os.kill(command, number)

    def kill(number: int, frame: FrameType | None) -> None:
        nonlocal killed
        if killed:  # but it waits for a disk, say
            _tell()
            os._exit(128 + (first or 0))
        killed = True
        signal.setitimer(signal.ITIMER_REAL, TO_DIE)
        _kill_descendants()

    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, kill)
    # now, while nobody waits
    import psutil  # noqa: F401

    # processes whose parent has ended become this one's children
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # it stays a zombie, so that its number means no other process when a signal is passed on
    os.waitid(os.P_PID, command, os.WEXITED | os.WNOWAIT)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _, status = os.waitpid(command, 0)
    code, ended = os.waitstatus_to_exitcode(status), {128 + number for number in SIGNALS}
    if first is None and code in ended:
        # somebody has sent it to the command's own process
        first = code - 128
    if first is not None and (code < 0 or code in ended):
        _await_the_end_of_descendants()
        if _state.told[0] == 2:
            # on its way out, which takes a busy machine a second; at the end of it Python has left
            # and a signal ends the process by itself
            os._exit(0)
        _tell()
        os._exit(128 + first)
    if code < 0:
        with suppress(OSError):  # of SIGKILL, which needs none
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)


def _kill_descendants() -> bool:
    """Kill all processes below this one but those that clear up after them; whether there is any.

    Those that were begun first are killed last: a process that outlives the one that it works for
    may say so.
    """
    import psutil

    found = psutil.Process().children(recursive=True)
    for process in reversed(found):
        with suppress(psutil.Error):
            # Python's and joblib's: they wait for the end of all others, and then end
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()
    return bool(found)


def _await_the_end_of_descendants() -> None:
    until = time.monotonic() + TO_DIE
    while _kill_descendants() and time.monotonic() < until:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


def _tell() -> None:
    """Say on stderr, and where it is wanted as JSON on stdout, that the command was interrupted."""
    # of several processes that ``accelerate launch`` has started, the first alone speaks
    if os.environ.get("RANK", "0") != "0":
        return
    if "--json" in sys.argv[1:] and not any(_state.told):
        _write(1, f'{{\n  "error": "{MESSAGE}"\n}}\n')
    # a progress bar has hidden the cursor of a terminal
    clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
    _write(2, f"{clear}fx: {ENDED if _state.told[1] else MESSAGE}\n")


def _write(descriptor: int, text: str) -> None:
    """Write to where somebody reads; wait for nobody."""
    with suppress(OSError):
        if select.select([], [descriptor], [], 0.1)[1]:
            os.write(descriptor, text.encode())


def _shared_bytes() -> memoryview:
    import mmap

    return memoryview(mmap.mmap(-1, 2))


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value)
