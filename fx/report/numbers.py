"""Numbers as the report prints them: a dash where there is none."""

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, decimals: int = 3) -> str:
    """A number with its thousands marked."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return NOTHING if value is None else f"{value:+.3f}".replace("-", MINUS)


def probability(value: float | None) -> str:
    """A p-value, without the digits that nobody needs."""
    return "under 0.001" if value is not None and value < 0.001 else number(value)


def seconds(value: float | None) -> str:
    """Seconds, the short ones to a hundredth."""
    return number(value, 1 if value is not None and value >= 1 else 2)
