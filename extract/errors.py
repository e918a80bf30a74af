"""Expected failures: what, got what, what to do, in a single line."""


class FxError(Exception):
    """A failure that the user can mend; the command prints it in one line and exits with 1."""


class CannotWrite(FxError):
    """A place cannot be written to: a disk is read-only, or the place is somebody else's."""


class NoRoom(CannotWrite):
    """A disk is full; the message names the place and the room that it needs."""
