"""Expected failures: what, got what, what to do, in a single line.

A message names parameters, in back-quotes; commands and options are the command line's matter.
"""

from collections.abc import Iterable


class FxError(Exception):
    """A failure that the user can fix; the command prints it in one line and exits with 1."""


class CannotWrite(FxError):
    """A place cannot be written to: the disk is read-only, or permission is denied."""


class NoRoom(CannotWrite):
    """A disk is full; the message names the place and the room that it needs."""


class UnknownBackbone(FxError):
    """No family of backbones has a network of this name."""


class NoImages(FxError):
    """There are no images at a place: a path, or one on object storage."""

    def __init__(self, message: str, path: object) -> None:
        super().__init__(message)
        self.path = path


def one_line(error: Exception | None) -> str:
    """What an exception says, in a line of at most 300 characters; of a file, the reason alone."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split())[:300] or type(error).__name__


def listed(names: Iterable[str], most: int = 3) -> str:
    """List the first of some names, cut where they are long, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - most:,} more" if len(known) > most else ""
    return ", ".join(name[:100] for name in known[:most]) + more
