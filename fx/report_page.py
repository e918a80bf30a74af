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

from fx.report_figures import Figure


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


def place(plot_id: str, alt: str, *, height: int) -> str:
    """Return the place where the script draws the figure of that id, `height` pixels high."""
    return (
        f'<div class="plot" id="{text(plot_id)}" role="img" aria-label="{text(alt)}" '
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
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    scripts = ""
    if plotly:
        policy += f"; script-src '{_hash(plotly)}' '{_hash(_SCRIPT)}'"
        scripts = (
            "<noscript><p>The plots need JavaScript; the tables hold the same numbers.</p>"
            "</noscript>\n"
            f'<script type="application/json" id="figures">{_json_in_html(plots)}</script>\n'
            f"<script>{plotly}</script>\n<script>{_SCRIPT}</script>\n"
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
<style>{_STYLE}</style>
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


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _json_in_html(value: object) -> str:
    # HTML reads no entities inside a script, so what could end it is written as JSON escapes.
    code = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return code.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_STYLE = """
:root {
  --ground: #ffffff; --panel: #f4f6f8; --ink: #1a1f24; --muted: #55606b; --rule: #d5dbe1;
  --link: #005a8f; --shade: #00000038; --right: 0 114 178; --wrong: 213 94 0;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #14181c; --panel: #1d2329; --ink: #e8ecf0; --muted: #a5b0bb; --rule: #38414a;
    --link: #7cc4f2; --shade: #ffffff40;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}
p { margin: 0 0 .8rem; max-width: 44rem; }
h1 {
  margin: .2rem 0 .7rem; max-width: 44rem; text-wrap: balance;
  font-size: clamp(1.4rem, 1.1rem + 1.6vw, 2.1rem); line-height: 1.22; letter-spacing: -.01em;
}
h2 { margin: 0 0 .8rem; font-size: 1.35rem; line-height: 1.3; }
h3 { margin: 1.4rem 0 .5rem; font-size: 1.05rem; overflow-wrap: anywhere; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.eyebrow, .note, figcaption { color: var(--muted); font-size: .9rem; }
.eyebrow { margin: 0; overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; }
nav ul {
  display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1.4rem 0 0; padding: .7rem 0;
  border: solid var(--rule); border-width: 1px 0; list-style: none; font-size: .95rem;
}
section { margin-top: 2.6rem; scroll-margin-top: 1rem; }
dl { margin: 0 0 .8rem; }
dl div {
  display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 0 1rem; padding: .2rem 0;
}
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
dl.files div { grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); }
dl.files dt { color: var(--ink); }
dl.facts {
  display: flex; flex-wrap: wrap; gap: 1px; margin-top: 1.2rem; overflow: hidden;
  border: 1px solid var(--rule); border-radius: .5rem; background: var(--rule);
}
dl.facts div { display: block; flex: 1 0 auto; max-width: 100%; padding: .6rem 1rem; }
dl.facts div { background: var(--panel); }
dl.facts dt { font-size: .85rem; }
dl.facts dd { font-weight: 600; }
figure { margin: 0 0 1rem; min-width: 0; }
figcaption { margin: .4rem 0; max-width: 48rem; }
.plot { width: 100%; }
.plot text { fill: var(--ink) !important; }
.plot .hoverlayer text { fill: #ffffff !important; }
.plot .gridlayer path, .plot path.crisp { stroke: var(--rule) !important; }
.plot .shapelayer path { stroke: var(--ink) !important; }
.beside { display: grid; gap: 0 1.5rem; }
.beside { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.pictures {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr));
}
.pictures img { display: block; width: 100%; height: 8rem; object-fit: contain; }
.pictures img { background: var(--panel); border-radius: .3rem; }
.pictures figcaption { font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
.pictures b { color: var(--ink); }
.scrolling {
  overflow-x: auto; margin-bottom: 1rem;
  /* a shadow at the side where there is more to see */
  background:
    linear-gradient(to right, var(--ground) 50%, transparent) local left / 3rem 100% no-repeat,
    linear-gradient(to left, var(--ground) 50%, transparent) local right / 3rem 100% no-repeat,
    linear-gradient(to right, var(--shade), transparent) scroll left / .9rem 100% no-repeat,
    linear-gradient(to left, var(--shade), transparent) scroll right / .9rem 100% no-repeat;
}
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--rule); text-align: left; }
th { font-weight: 600; }
thead th { color: var(--muted); font-size: .85rem; vertical-align: bottom; }
tbody th { position: sticky; left: 0; background: var(--ground); }
th:first-child { padding-left: 0; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.confusion { font-size: .85rem; }
.confusion th, .confusion td { padding: .25rem .4rem; border: 0; }
.confusion td { min-width: 2.1rem; border: 1px solid var(--ground); text-align: center; }
.confusion .right { background: rgb(var(--right) / var(--share)); }
.confusion .wrong { background: rgb(var(--wrong) / var(--share)); }
.confusion thead th { vertical-align: bottom; text-align: center; }
.confusion th span {
  display: block; max-width: 9rem; overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
}
.confusion tbody th { text-align: right; }
.confusion .upright { max-width: none; max-height: 9rem; writing-mode: vertical-rl; }
#peek {
  position: fixed; z-index: 10; pointer-events: none; padding: .4rem; max-width: 14rem;
  border: 1px solid var(--rule); border-radius: .4rem; background: var(--panel);
  font-size: .8rem; overflow-wrap: anywhere;
}
#peek img { display: block; width: 6rem; height: 6rem; object-fit: contain; }
details { margin-bottom: 1rem; }
summary { padding: .3rem 0; cursor: pointer; color: var(--link); }
select { max-width: 100%; padding: .25rem .5rem; font: inherit; }
pre {
  margin: 0 0 .8rem; padding: .8rem 1rem; border-radius: .5rem; background: var(--panel);
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem;
}
@media (max-width: 30rem) {
  dl:not(.facts) div { display: block; padding: .35rem 0; }
  th, td { padding: .35rem .5rem; }
  .confusion th span { max-width: 6rem; }
  .confusion .upright { max-height: 7rem; }
}
@media print {
  @page { margin: 15mm; }
  html { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, tr, pre, .confusion { break-inside: avoid; }
  h2, h3, figcaption { break-after: avoid; }
  .scrolling { overflow: visible; background: none; }
  .confusion td, dl.facts div { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_SCRIPT = """
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = Array.from(document.querySelectorAll(".plot"));
const touch = matchMedia("(pointer: coarse)").matches;

function draw(plot, index) {
  const figure = figures[plot.id][index];
  // A finger that crosses a plot scrolls the page; it must not zoom the plot.
  const layout = touch ? {...figure.layout, dragmode: false} : figure.layout;
  plot.setAttribute("aria-label", figure.alt);
  return Plotly.react(plot, figure.data, layout, {responsive: true, displayModeBar: false});
}

for (const plot of plots) draw(plot, 0);
for (const select of document.querySelectorAll("select[data-plots]")) {
  select.addEventListener("change", () => {
    for (const id of select.dataset.plots.split(" ")) {
      draw(document.getElementById(id), select.selectedIndex);
    }
  });
}

// A map's point shows its picture beside the pointer; a click does it for fingers.
const map = document.getElementById("feature-map");
if (map) {
  const peek = document.body.appendChild(document.createElement("div"));
  peek.id = "peek";
  peek.hidden = true;
  const image = peek.appendChild(document.createElement("img"));
  const words = peek.appendChild(document.createElement("span"));
  const show = ({points: [point], event}) => {
    const [picture, path] = point.customdata;
    image.src = picture;
    image.alt = "";
    words.textContent = path;
    peek.hidden = false;
    const left = Math.min(event.clientX + 16, innerWidth - peek.offsetWidth - 8);
    const top = Math.min(event.clientY + 16, innerHeight - peek.offsetHeight - 8);
    peek.style.left = `${left}px`;
    peek.style.top = `${top}px`;
  };
  map.on("plotly_hover", show);
  map.on("plotly_click", show);
  map.on("plotly_unhover", () => { peek.hidden = true; });
}

// Paper is narrower than most screens, and nothing on it can be unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of unfolded) details.open = true;
  for (const plot of plots) Plotly.relayout(plot, {width: Math.min(plot.clientWidth, 640)});
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
  for (const plot of plots) Plotly.relayout(plot, {width: null, autosize: true});
});
"""
