"""The one class of expected failures: what, got what, what to do, in a single line."""


class FxError(Exception):
    """A failure that the user can mend; the command prints it in one line and exits with 1."""
