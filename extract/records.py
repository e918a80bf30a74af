"""What all records have in common: they become JSON, are made from it, and show themselves."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Self

import msgspec

MOST_SHOWN = 10  # rows of a table, and values in a row, that a notebook shows


class Record(msgspec.Struct, frozen=True):
    """A frozen, typed record. A notebook shows it as a table."""

    def as_json(self) -> dict[str, Any]:
        """Turn into values that JSON can hold."""
        return dict(msgspec.to_builtins(self))

    def __getitem__(self, name: str) -> Any:
        """Give a value by its name in the JSON, as scripts that read that do."""
        return self.as_json()[name]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Make a record of JSON values.

        Raises
        ------
        ValueError
            If they are not of the types declared; it says which.
        """
        return msgspec.convert(plain, cls)

    def _repr_html_(self) -> str:
        # what has nothing to say is left out
        said = {n: v for n, v in self.as_json().items() if v not in (None, "", [], (), {})}
        return f"<b>{type(self).__name__}</b>{as_html(said)}"


def as_html(plain: object) -> str:
    """Show JSON values as HTML, escaped: objects as tables, whose long values fold.

    Of a list the first ten are shown, of objects in it a table with a column a name.
    """
    if isinstance(plain, Mapping):
        rows = [f"<th>{escape(str(name))}</th>{_cell(value)}" for name, value in plain.items()]
        return _table(rows)
    if not isinstance(plain, list | tuple):
        return escape(f"{plain:.4g}" if isinstance(plain, float) else _said(plain))
    shown = plain[:MOST_SHOWN]
    more = f" and {len(plain) - len(shown):,} more" if len(plain) > len(shown) else ""
    if shown and all(isinstance(one, Mapping) for one in shown):
        names = dict.fromkeys(name for one in shown for name in one)
        head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
        rows = ["".join(_cell(one.get(name)) for name in names) for one in shown]
        return _table([head, *rows]) + more
    if shown and all(isinstance(one, list | tuple) for one in shown):
        return _table(["".join(map(_cell, one[:MOST_SHOWN])) for one in shown]) + more
    return ", ".join(map(as_html, shown)) + more


def _cell(value: object) -> str:
    text = as_html(value)
    if isinstance(value, list | tuple | Mapping) and "<table>" in text:
        text = f"<details><summary>{len(value):,}</summary>{text}</details>"
    return f"<td>{text}</td>"


def _table(rows: list[str]) -> str:
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _said(value: object) -> str:
    return "–" if value is None else str(value)
