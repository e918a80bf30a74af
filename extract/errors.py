"""Expected failures: what, got what, what to do, in a single line."""


class FxError(Exception):
    """A failure that the user can mend; the command prints it in one line and exits with 1."""


class NoRoom(FxError):
    """A disk is full; the message names the place and the room that it needs."""
