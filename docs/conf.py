"""The site: README, guides and measurements, as they are read on GitHub too. See CONTRIBUTING.md.

Sphinx reads from the root of the repository, so that one link leads to the same page in both.
What only the site has is written while it is built: its navigation, out of the links of
``index.md``; the options, out of the commands; the API, out of the docstrings.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import typer
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import fx  # noqa: E402
from extract.records import Record  # noqa: E402
from fx.commands.app import app as commands  # noqa: E402

project = "fx"
version = release = version_of("fx-images")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
READ = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "benchmarks", "data"}
# images lie below data/
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in READ]
exclude_patterns += [f"data/{one.name}" for one in ROOT.glob("data/*") if one.name != "README.md"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes between names and descriptions; quotes stay as they are

HEADINGS = ("Heads", "Strategies")  # of what a command's help lists
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [(heading, "params_style") for heading in HEADINGS]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"show-inheritance": True}
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "fx"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_center": [],
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

API = {
    "Functions": [f"fx.{name}" for name in fx.__all__],
    "What they return": [
        *("extract.extraction.ExtractResult", "fx.stages.records.MeasuredModel"),
        *("fx.stages.records.HeadResult", "fx.stages.records.FinetunedModel"),
        *("fx.records.Comparison", "fx.records.Advice", "fx.stages.records.Predictions"),
        *("fx.stages.load.StoredImages", "fx.stages.load.Model"),
    ],
    "Parts": ["heads.estimator.HeadClassifier", "extract.store.FeatureStore"],
}
LEFT_OUT = ":exclude-members: set_fit_request, set_score_request"  # scikit-learn's own


def add_what_is_generated(_: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what is not written by hand."""
    if page == root_doc:
        source[0] += "".join(navigation(source[0]))
    elif page == "docs/reference/options":
        source[0] += "".join(options_of(typer.main.get_command(commands), "fx"))
    elif page == "docs/reference/api":
        for heading, names in API.items():
            source[0] += f"\n## {heading}\n" + "".join(map(documented, names))
    elif source[0].startswith("{"):
        source[0] = "\n\n".join(as_markdown(json.loads(source[0])))


def navigation(text: str) -> Iterator[str]:
    """Make a table of contents of the links below each heading of the first page."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        pages = re.findall(r"\[([^]]*)\]\(([^)#:]*)\.(?:md|ipynb)\)", body)
        listed = "\n".join(f"{title} <{page}>" for title, page in pages)
        yield f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{listed}\n```\n"


def options_of(command: Any, path: str) -> Iterator[str]:
    """Describe a command and its sub-commands, as their help does."""
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    example = (command.epilog or "").partition(": ")[2].replace("; ", "\n")
    yield f"\n## {path}\n\n{inspect.cleandoc(command.help or '')}\n"
    yield f"\n```text\n{usage}\n```\n"
    if example:
        yield f"\nFor example:\n\n```sh\n{example}\n```\n"
    yield f"\n```{{program}} {path}\n```\n"
    for parameter in command.params:
        names, text = parameter.get_help_record(context) or (parameter.name, "")
        # an option that it names would get a dash for its hyphens
        text = re.sub(r"(?<!\S)--[a-z-]+", r"`\g<0>`", text)
        yield f"\n````{{option}} {names}\n{text}\n````\n"
    for heading, registry in getattr(command, "choices", dict)().items():
        listed = "\n".join(f"- `{name}`: {registry.help(name)}" for name in registry)
        yield f"\n{heading}:\n\n{listed}\n"
    for sub in getattr(command, "commands", {}).values():
        yield from options_of(sub, f"{path} {sub.name}")


def documented(name: str) -> str:
    """Write the directive that documents a public name."""
    module, _, last = name.rpartition(".")
    is_class = inspect.isclass(getattr(import_module(module), last))
    kind, members = ("class", f"   :members:\n   {LEFT_OUT}\n") if is_class else ("function", "")
    return f"\n```{{eval-rst}}\n.. auto{kind}:: {name}\n{members}```\n"


def as_markdown(notebook: dict[str, Any]) -> Iterator[str]:
    """Write a notebook as Markdown, with the outputs that it was saved with."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            shown = {kind: "".join(lines) for kind, lines in output.get("data", {}).items()}
            if "text/html" in shown:
                # the theme's own classes, without which cells touch
                table = re.sub("<table[^>]*>", '<table class="table">', shown["text/html"])
                scrolled = f'<div class="pst-scrollable-table-container">{table}</div>'
                yield f"````{{raw}} html\n{scrolled}\n````"
            elif "image/png" in shown:
                image = f"data:image/png;base64,{shown['image/png'].strip()}"
                yield f'````{{raw}} html\n<img alt="The plot of this cell" src="{image}">\n````'
            elif "text/plain" in shown:
                yield f"```text\n{shown['text/plain']}\n```"


def plain_descriptions(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Let what follows a parameter's colon be its description, where it is no type.

    In numpydoc a type stands there; fx's types are in the code.
    """

    def entry(found: re.Match[str]) -> str:
        names, first, rest = found.groups()
        if rest and re.fullmatch(r"[\w.]+(\[.*\])?( \| \w+)*", first):
            return found[0]
        # an underscore at the end would be a link's
        each = (re.sub("_$", r"\\_", name) for name in names.split(", "))
        return "\n".join(f"{name}\n    {first}{rest}" for name in each)

    pattern = r"^([\w, *]+) : (.*)((?:\n {4}.*)*)"
    lines[:] = re.sub(pattern, entry, "\n".join(lines), flags=re.MULTILINE).split("\n")


def without_signature(
    _app: Sphinx, _what: str, _name: str, one: object, *_: object
) -> tuple[str, str] | None:
    """Leave out how records are made: functions make them."""
    return ("", "") if inspect.isclass(one) and issubclass(one, Record) else None


def show_all_pages(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """Have the navigation begin at the first page, not at the section that a page is in."""
    context["generate_toctree_html"] = partial(context["generate_toctree_html"], startdepth=0)
    context["suppress_sidebar_toctree"] = lambda **_: False


def write_first_page(app: Sphinx, error: Exception | None) -> None:
    """Have the site's folder open at its first page."""
    if error is None:
        to = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        page = (
            f'<!doctype html><html lang="en"><title>fx</title>{to}<a href="{root_doc}.html">fx</a>'
        )
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    """Name what is called while the site is built."""
    app.connect("source-read", add_what_is_generated)
    # before napoleon, and after the theme
    app.connect("autodoc-process-docstring", plain_descriptions, priority=400)
    app.connect("autodoc-process-signature", without_signature)
    app.connect("html-page-context", show_all_pages, priority=900)
    app.connect("build-finished", write_first_page)
