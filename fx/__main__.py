"""``fx`` and ``python -m fx``: the command as a process."""

from __future__ import annotations

import gc
import os
import sys

from fx.interruption import (
    Interrupted,
    go_on_in_a_process_of_its_own,
    heed_no_more,
    status_when_interrupted,
)


def open_standard_streams() -> None:
    """Lead to nowhere what the caller has closed: the next open file would be taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def main() -> None:
    """Import the command, which takes a moment in which a signal may come, and run it."""
    from fx.commands.app import main as command

    command()


def run() -> None:
    """Run the command, and end with its status."""
    # looking for cycles after every 700 objects is an eighth of the time that imports take
    gc.set_threshold(10_000)
    try:
        try:
            open_standard_streams()
            go_on_in_a_process_of_its_own()
            main()
        finally:
            heed_no_more()
    except (Interrupted, Exception):
        # C code makes others of it: "can't load unicodedata"
        status = status_when_interrupted()
        if status is None:
            raise
        sys.exit(status)
    finally:
        # Python would look for cycles in all that PyTorch has made, for a second, at its very end
        gc.freeze()


if __name__ == "__main__":
    run()
