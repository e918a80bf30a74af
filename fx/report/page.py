"""Pages: HTML files that open without a network, written by templates that escape all text.

A page holds its style sheet, its scripts and its figures. Its content security policy forbids every
request and every script but the two whose hashes it names.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NOTHING = "\N{EN DASH}"
ROWS_SHOWN = 30  # of a table; longer ones are folded away
ITEMS_LISTED = 200

Figure = dict[str, Any]
Figures = dict[str, list[Figure]]  # by the id of their place


def render(
    template: str, *, title: str, figures: Figures | None = None, plotly: str = "", **shown: object
) -> str:
    """Return a whole page.

    Parameters
    ----------
    template : of the page's content: ``SECTIONS``, the id and heading of each, a macro of the same
        name as the id, which is left out where it gives nothing, and a macro ``head``
    title : of the browser's tab
    figures : for plotly
    plotly : source of plotly.js; without it the page has no scripts, and no plots
    shown : what the template shows
    """
    plots = figures or {}
    content = _templates().get_template(template)
    parts = vars(content.make_module({"title": title, "plots": plots, **shown}))
    sections = [
        (name, heading, body)
        for name, heading in parts["SECTIONS"]
        if (body := parts[name]()).strip()
    ]
    style, script = ("\n" + _packaged(name) for name in ("report.css", "report.js"))
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    if plotly:
        policy += f"; script-src '{_hash(plotly)}' '{_hash(script)}'"
    page = _templates().get_template("page.html")
    return page.render(
        title=title,
        policy=Markup(policy),
        style=Markup(style),
        head=parts["head"](),
        sections=sections,
        figures=_json_in_html({name: plots[name] for name in plots if plots[name]}),
        plotly=Markup(plotly),
        script=Markup(script),
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("fx.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": _signed,
        "seconds": _seconds,
        "interval": _interval,
        "plain": _plain,
    }
    environment.globals |= {"ROWS_SHOWN": ROWS_SHOWN, "ITEMS_LISTED": ITEMS_LISTED}
    return environment


def _packaged(name: str) -> str:
    return files("fx.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _json_in_html(value: object) -> Markup:
    # HTML reads no entities inside a script, so what could end it is written as JSON escapes
    code = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(code.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}))


def number(value: float | None, decimals: int = 3) -> str:
    """A number with its thousands marked; a dash where there is none."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _seconds(value: float | None) -> str:
    return number(value, 1 if value is not None and value >= 1 else 2)


def _interval(bounds: tuple[float, float] | None, signs: bool = False) -> str:
    if bounds is None:
        return NOTHING
    return " to ".join(_signed(bound) if signs else number(bound) for bound in bounds)


def _plain(value: object) -> str:
    """What a setting says, or a record of a few."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return json.dumps(value, ensure_ascii=False)
