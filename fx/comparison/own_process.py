"""A piece of work in a process of its own: its memory is its own, and goes with it.

Python has such a process run the script that began it once more, which would begin the work again
unless the script guards it, and cannot be done with a script from standard input. It is left out,
except where the work is made of what that script defines.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any
from unittest.mock import patch

from extract.errors import FxError
from fx.interruption import Interrupted, deferred, heed_no_more, raise_when_signalled
from fx.output import Begin

# imported once, for all processes that are begun after
PRELOADED = [
    "finetune.finetuning",
    "fx.comparison.measure",
    "heads.files",
    "heads.fitting",
    "sklearn.linear_model",
    "torchvision",
]
BETWEEN_MESSAGES = 0.1  # seconds
# Seconds that a process has to end by itself: when its work is done, and when it is told to.
JOIN_TIMEOUT, NOTICE = 5.0, 0.3
NOT_IMPORTED = (
    "a process that measures cannot import the script that runs, which defines a part of what is "
    'measured; put what the script does below `if __name__ == "__main__":`, or what it defines '
    "into a module of its own"
)

# held while a process of this module is begun
_starting = threading.Lock()


def in_own_process(work: Callable[..., Any], *arguments: object, begin: Begin) -> Any:
    """Call ``work(*arguments, begin=...)`` in a new process and return what it returns.

    The process ends with this call, and with this process.

    Parameters
    ----------
    work : a function of a module; it, its arguments and its result can be pickled. Where one of
        them is defined in the script that runs, that script needs Python's guard,
        ``if __name__ == "__main__":``
    begin : given what is being done, returns a progress callback; called here, in this process

    Raises
    ------
    FxError
        The one that the work raised, or that its process ended without a result.
    RuntimeError
        Of any other exception of the work, with its traceback.
    """
    pickled = bytes(ForkingPickler.dumps((work, arguments)))
    of_script = b"__main__" in pickled
    receiver, sender = _context().Pipe(duplex=False)
    # typeshed's base context has no Process
    process = _context().Process(target=_child, args=(sender, pickled, dict(os.environ)))  # type: ignore[attr-defined]
    progress: Callable[[int, int], None] | None = None
    try:
        _start_server()
        # a process that is half begun prints a traceback when the other half does not come
        with deferred(_kill_server), nullcontext() if of_script else _script_left_out():
            process.start()
        sender.close()
        while True:
            kind, *content = receiver.recv()
            if kind == "begin":
                progress = begin(*content)
            elif kind != "progress":
                break
            elif progress:
                progress(*content)
        # it ends by itself, and gives back what it shares with others
        process.join(JOIN_TIMEOUT)
        if kind == "refused":
            raise content[0]
        if kind == "failed":
            raise RuntimeError(f"in a process of its own:\n{content[0]}")
        return content[0]
    except EOFError:
        if process.pid is not None:
            process.join()
        if of_script and (process.exitcode or 0) > 0:
            raise FxError(NOT_IMPORTED) from None
        raise FxError(
            f"a process that measured ended with status {process.exitcode}; there may be too "
            "little memory: take fewer images, a smaller `size` or `batch_size`"
        ) from None
    finally:
        if process.pid is not None:
            process.terminate()
            try:
                process.join(NOTICE)
            finally:
                process.kill()
                process.join()
        # not before: it may be telling something
        receiver.close()


@cache
def _context() -> BaseContext:
    """Processes are forked from one that has imported what they need, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _start_server() -> None:
    """Start the process that others are forked from; it and they begin with SIGINT blocked.

    A terminal interrupts all its processes, and Python's answer to that while it imports, or before
    ``_child`` is called, is a traceback.
    """
    # else it is started by the server's start, and lets the signal through
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _script_left_out() -> Iterator[None]:
    """Begin processes in this thread that do not run the script ``__main__`` first."""
    described = spawn.get_preparation_data
    thread = threading.get_ident()

    def without_script(name: str) -> dict[str, Any]:
        about: dict[str, Any] = described(name)
        if threading.get_ident() == thread:
            for key in ("init_main_from_name", "init_main_from_path"):
                about.pop(key, None)
        return about

    # there is no public way to say so
    with _starting, patch.object(spawn, "get_preparation_data", without_script):
        yield


def _kill_server() -> None:
    """Let nobody wait for a server that is still importing."""
    # there is no public way to its number
    server = getattr(forkserver, "_forkserver", None)
    if (number := getattr(server, "_forkserver_pid", None)) is not None:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _child(sender: Connection, pickled: bytes, environment: dict[str, str]) -> None:
    # as it is now: the server that forked it has that of its own start, without new credentials
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # a terminal interrupts all its processes; the one that began this one will end it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        try:
            # it gives back what it shares with others; else Python warns of leaked semaphores
            raise_when_signalled([signal.SIGTERM])
            _work(sender, pickled)
        finally:
            heed_no_more()
    except Interrupted:
        sys.exit(1)


def _work(sender: Connection, pickled: bytes) -> None:
    def send(*told: object) -> None:
        # nobody may be there any more
        with suppress(BrokenPipeError):
            sender.send(told)

    def begin(what: str) -> Callable[[int, int], None]:
        send("begin", what)
        last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done >= total or now - last > BETWEEN_MESSAGES:
                last = now
                send("progress", done, total)

        return progress

    try:
        try:
            work, arguments = pickle.loads(pickled)
        except AttributeError as error:
            raise FxError(NOT_IMPORTED) from error
        send("result", work(*arguments, begin=begin))
    except FxError as error:
        send("refused", error)
    except Exception:
        send("failed", traceback.format_exc())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
