"""A piece of work in a process of its own: its memory is its own, and goes with it."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

from extract.errors import FxError
from fx.output import Begin

# imported once, for all processes that are begun after
PRELOADED = [
    "extract",
    "heads",
    "finetune",
    "fx.cells",
    "skops.io",
    "sklearn.linear_model",
    "torchvision",
]
BETWEEN_MESSAGES = 0.1  # seconds
GOODBYE = 5.0  # seconds that a process has to end by itself


def in_own_process(work: Callable[..., Any], *arguments: object, begin: Begin) -> Any:
    """Call ``work(*arguments, begin=...)`` in a new process and return what it returns.

    Parameters
    ----------
    work : a function of a module; it, its arguments and its result can be pickled
    begin : given what is being done, returns a progress callback; called here, in this process

    Raises
    ------
    FxError
        The one that the work raised, or that its process ended without a result.
    RuntimeError
        Of any other exception of the work, with its traceback.
    """
    receiver, sender = _context().Pipe(duplex=False)
    # typeshed's base context has no Process
    process = _context().Process(target=_child, args=(sender, work, arguments))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    progress: Callable[[int, int], None] | None = None
    try:
        while True:
            kind, *content = receiver.recv()
            if kind == "begin":
                progress = begin(*content)
            elif kind != "progress":
                break
            elif progress:
                progress(*content)
        # it ends by itself, and gives back what it shares with others
        process.join(GOODBYE)
        if kind == "refused":
            raise FxError(content[0])
        if kind == "failed":
            raise RuntimeError(f"in a process of its own:\n{content[0]}")
        return content[0]
    except EOFError:
        process.join()
        raise FxError(
            f"a process that measured ended with status {process.exitcode}; there may be too "
            "little memory: take fewer images, a smaller --size or --batch-size"
        ) from None
    finally:
        receiver.close()
        process.terminate()
        try:
            process.join(GOODBYE)
        finally:
            process.kill()
            process.join()


@cache
def _context() -> BaseContext:
    """Processes are forked from one that has imported what they need, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _child(sender: Connection, work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    # asked to end, it gives back what it shares with others; else Python warns of leaked semaphores
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # a terminal interrupts all its processes; the one that began this one will end it
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def begin(what: str) -> Callable[[int, int], None]:
        sender.send(("begin", what))
        last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done >= total or now - last > BETWEEN_MESSAGES:
                last = now
                sender.send(("progress", done, total))

        return progress

    try:
        sender.send(("result", work(*arguments, begin=begin)))
    except FxError as error:
        sender.send(("refused", str(error)))
    except Exception:
        sender.send(("failed", traceback.format_exc()))
