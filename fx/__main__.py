"""``fx`` and ``python -m fx``: the command as a process, which ends as soon as it has ended."""

from __future__ import annotations

import atexit
import os
import sys

from fx.interruption import (
    Interrupted,
    go_on_in_a_process_of_its_own,
    heed_no_more,
    status_when_interrupted,
)


def main() -> None:
    """Import the command, which takes a moment in which a signal may come, and run it."""
    from fx.commands.app import main as command

    command()


def run() -> None:
    """Run the command, then end without a clean-up of what the system takes back anyway.

    Threads come to their end and what was registered with `atexit` since is called. Objects are not
    freed one by one (files are to be closed), and libraries not unloaded: of PyTorch's build for
    CUDA the latter takes half a second and 130 MB, with no GPU in the machine.
    """
    status: int | None = None

    def leave() -> None:
        if status is None:
            return
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream and not stream.closed:
                    stream.flush()
        except OSError:  # which Python tells by itself
            return
        os._exit(status)

    # the first to be registered is the last to be called, after all threads
    atexit.register(leave)
    try:
        try:
            go_on_in_a_process_of_its_own()
            main()
        finally:
            heed_no_more()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        raise
    except (Interrupted, Exception):
        # C code makes others of it: "can't load unicodedata"
        status = status_when_interrupted()
        if status is None:
            raise
        sys.exit(status)


if __name__ == "__main__":
    run()
