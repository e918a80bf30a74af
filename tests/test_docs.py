"""The documentation's site: it is built without a warning, whole, and its links lead somewhere."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

import fx
from fx.commands.app import app

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
PROSE = [ROOT / "README.md", ROOT / "data" / "README.md", *ROOT.glob("docs/**/*.md")]


class Page(HTMLParser):
    """What can be linked to in a page, where its links lead, and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {str(found[name]) for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        elif tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(str(found["href"]))
        elif found.get("src"):
            self.loaded.append(str(found["src"]))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    where = ["-d", str(folder / "doctrees"), str(ROOT), str(folder / "html")]
    built = subprocess.run([*command, *where], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Its pages, but for the theme's own parts."""
    return {file: Page(file) for file in site.rglob("*.html") if "_static" not in file.parts}


def commands(command: Any, path: str = "fx") -> Iterator[tuple[str, Any]]:
    """Every command and sub-command, by what one types."""
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{path} {name}")


ALL_COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_link_leads_to_a_page_and_a_place_in_it(pages: dict[Path, Page]) -> None:
    wrong = []
    for file, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                assert target.scheme in ("https", "mailto"), link
                continue
            linked = (file.parent / unquote(target.path)).resolve() if target.path else file
            anchor = unquote(target.fragment)
            if not linked.is_file():
                wrong.append(f"{file.name}: {link}")
            elif anchor and linked in pages and anchor not in pages[linked].ids:
                wrong.append(f"{file.name}: {link}, which has no such place")
    assert not wrong
    assert len(pages) > 15


def test_a_page_loads_what_lies_beside_it_and_nothing_else(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for loaded in page.loaded:
            target = urlsplit(loaded)
            if target.scheme != "data":
                assert not target.netloc, loaded
                assert (file.parent / unquote(target.path)).is_file(), loaded


@pytest.mark.parametrize("path", ALL_COMMANDS)
def test_every_command_and_option_is_documented(
    path: str, site: Path, pages: dict[Path, Page]
) -> None:
    page = pages[site / "docs" / "reference" / "options.html"]
    slug = path.replace(" ", "-")
    assert slug in page.ids
    shown = " ".join(page.text.split())
    for parameter in ALL_COMMANDS[path].params:
        assert parameter.help, parameter.name
        assert " ".join(re.sub("[`*]", "", parameter.help).split()) in shown
        for option in parameter.opts:
            if option.startswith("-"):
                assert f"cmdoption-{slug}-{option.lstrip('-')}" in page.ids, option


@pytest.mark.parametrize("name", fx.__all__)
def test_every_public_name_has_a_docstring_on_the_site(
    name: str, site: Path, pages: dict[Path, Page]
) -> None:
    documented = getattr(fx, name)
    assert documented.__doc__
    page = pages[site / "docs" / "reference" / "api.html"]
    assert f"fx.{name}" in page.ids
    if inspect.isclass(documented):
        own = {key: value for key, value in vars(documented).items() if key[0] != "_"}
        for key, value in own.items():
            assert not callable(value) or value.__doc__, key
    summary = str(documented.__doc__).strip().split(".")[0]
    assert " ".join(summary.replace("`", "").split()) in " ".join(page.text.split())


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_named_in_the_text_exist(page: Path) -> None:
    known = {name for one in ALL_COMMANDS.values() for option in one.params for name in option.opts}
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", text):
        named = re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)
        if named and span.startswith(("fx ", "--")):
            assert {*named} <= known | {"--help"}, span


def test_every_page_is_found_from_the_first_one(site: Path, pages: dict[Path, Page]) -> None:
    first = pages[site / "docs" / "index.html"]
    linked = {(site / "docs" / urlsplit(link).path).resolve() for link in first.links}
    generated = {site / name for name in ("index.html", "genindex.html", "search.html")}
    assert set(pages) - generated - {site / "docs" / "index.html"} <= linked
    assert "docs/index.html" in (site / "index.html").read_text()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no browser")
def test_no_page_is_wider_than_a_telephone(site: Path, pages: dict[Path, Page]) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        for file in {*pages} - {site / "index.html"}:  # which leads on
            tab.goto(file.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390, file.name
        browser.close()
