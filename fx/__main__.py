"""``fx`` and ``python -m fx``: the command as a process."""

from __future__ import annotations

import gc
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
    """Run the command, and end with its status."""
    try:
        try:
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
