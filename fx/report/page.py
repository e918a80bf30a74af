"""The page that a report stands on: whatever is put into it is escaped, and it loads nothing.

One HTML file holds the style sheet, the scripts and the figures. Its content security policy
forbids every request and every script but the two whose hashes it names.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from fx.report.figures import Figure

ROWS_SHOWN = 30  # of a table; longer ones are folded away


@dataclass(frozen=True)
class Section:
    """A part of the page: `body` is HTML; `plots` are its figures by the id of their place."""

    id: str
    heading: str
    body: str
    plots: dict[str, list[Figure]] = field(default_factory=dict)


def text(value: object) -> str:
    """Escape `value` for HTML, inside attributes too."""
    return html.escape(str(value))


def paragraph(value: str, *, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{text(value)}</p>\n"


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[str]
) -> str:
    """Return a table of plain text that scrolls by itself where it is wider than the page.

    Parameters
    ----------
    caption : what the table shows
    columns : headings; the first column names the rows
    rows : as many strings each as there are columns
    numeric : the columns whose values are set to the right
    """
    classes = [_class("number" if column in numeric else "") for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{text(column)}</th>'
        for column, kind in zip(columns, classes, strict=True)
    )
    body = []
    for row in rows:
        cells = [f"<td{kind}>{text(v)}</td>" for v, kind in zip(row, classes, strict=True)]
        cells[0] = f'<th scope="row"{classes[0]}>{text(row[0])}</th>'
        body.append(f"<tr>{''.join(cells)}</tr>\n")
    content = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(body)}</tbody>\n</table>"
    # no <caption>: it would be as wide as the table, and cut where the table is
    return figure(scrolling(content, caption), caption, above=True)


def figure(content: str, caption: str, *, above: bool = False) -> str:
    """Put HTML and its caption, which is plain text, together."""
    legend = f"<figcaption>{text(caption)}</figcaption>\n"
    return (
        f"<figure>\n{legend}{content}</figure>\n"
        if above
        else (f"<figure>\n{content}{legend}</figure>\n")
    )


def scrolling(content: str, label: str) -> str:
    """Put HTML that may be wide into a region that scrolls, by keyboard too."""
    return (
        f'<div class="scrolling" role="region" tabindex="0" aria-label="{text(label)}">\n'
        f"{content}\n</div>\n"
    )


def pairs(values: Iterable[tuple[str, str]], *, kind: str = "") -> str:
    """Return a list of names, each with what belongs to it, as plain text."""
    items = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>\n" for k, v in values)
    return f"<dl{_class(kind)}>\n{items}</dl>\n"


def folded(summary: str, content: str) -> str:
    """Fold HTML away under one line; print shows it unfolded."""
    return f"<details><summary>{text(summary)}</summary>\n{content}</details>\n"


def place(plot_id: str, first: Figure) -> str:
    """Return the place where the script draws the figures of that id, the first of them at once."""
    height = first["layout"]["height"]
    return (
        f'<div class="plot" id="{text(plot_id)}" role="img" aria-label="{text(first["alt"])}" '
        f'style="min-height:{height}px"></div>\n'
    )


def choice(label: str, options: Sequence[str], plot_ids: Sequence[str]) -> str:
    """Return a list to choose from; the places of `plot_ids` then show the figure chosen."""
    items = "".join(f"<option>{text(option)}</option>" for option in options)
    ids = text(" ".join(plot_ids))
    return f'<p><label>{text(label)} <select data-plots="{ids}">{items}</select></label></p>\n'


def page(title: str, head: str, sections: Sequence[Section], *, plotly: str = "") -> str:
    """Return the whole HTML document.

    Parameters
    ----------
    title : plain text, of the browser's tab
    head : HTML above the first section
    sections : in the order of reading
    plotly : source of plotly.js; without it the page has no scripts, and no plots
    """
    plots = {place: figures for section in sections for place, figures in section.plots.items()}
    links = "".join(f'<li><a href="#{s.id}">{text(s.heading)}</a></li>\n' for s in sections)
    parts = "".join(
        f'<section id="{s.id}" aria-labelledby="{s.id}-heading">\n'
        f'<h2 id="{s.id}-heading">{text(s.heading)}</h2>\n{s.body}</section>\n'
        for s in sections
    )
    style, script = _packaged("report.css"), _packaged("report.js")
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    scripts = ""
    if plotly:
        policy += f"; script-src '{_hash(plotly)}' '{_hash(script)}'"
        scripts = (
            "<noscript><p>The plots need JavaScript; the tables hold the same numbers.</p>"
            "</noscript>\n"
            f'<script type="application/json" id="figures">{_json_in_html(plots)}</script>\n'
            f"<script>{plotly}</script>\n<script>{script}</script>\n"
        )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="fx">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
{head}</header>
<nav aria-label="Contents"><ul>
{links}</ul></nav>
<main>
{parts}</main>
{scripts}</body>
</html>
"""


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _packaged(name: str) -> str:
    # on lines of its own in the page
    return "\n" + files("fx.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _json_in_html(value: object) -> str:
    # HTML reads no entities inside a script, so what could end it is written as JSON escapes.
    code = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return code.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
