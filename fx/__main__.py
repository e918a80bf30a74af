"""``fx`` and ``python -m fx``: the command as a process, which ends as soon as it has ended."""

from __future__ import annotations

import atexit
import os
import sys

from fx.cli import main


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
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        raise


if __name__ == "__main__":
    run()
