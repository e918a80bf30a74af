"""What fx shows: the report's page and image, a training history, tables, JSON and progress."""

import base64
import csv
import dataclasses
import io
import json
import random
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import plotly.graph_objects
import pytest
from PIL import Image

from finetune.training import EpochRow, write_history
from fx import output
from fx.output import print_comparison, print_table, progress_bar, to_json
from fx.records import Comparison
from fx.report import learning_curve_png, write_report
from fx.report.images import Evidence

HOSTILE = "<script>alert(1)</script>"
BREAKOUT = '</script><img src="http://example.invalid/x.png" onerror="alert(2)">'
CLASSES = [HOSTILE, BREAKOUT, "a & b \"quoted\" 'name'", "<b>bold</b>", "Ünïcödé 蝶", "plain"]
ACCURACY = {
    "logreg": (0.853, 0.909, 0.946),
    "svm": (0.841, 0.917, 0.958),
    "finetune:1": (0.848, 0.925, 0.972),
    "finetune:all": (0.779, 0.918, 0.981),
    "scratch": (0.412, 0.704, 0.9),
}
SECONDS = {"logreg": 0.4, "svm": 1.1, "finetune:1": 21.0, "finetune:all": 96.0, "scratch": 88.0}
SIZES = (144, 455, 1437)


def history(top: float, epochs: int = 7) -> list[dict[str, float | None]]:
    records: list[dict[str, float | None]] = [
        {"epoch": 0, "train_loss": None, "train_accuracy": None, "validation_loss": 0.5}
        | {"validation_accuracy": top - 0.05, "learning_rate": None}
    ]
    for epoch in range(1, epochs):
        share = 1 - 0.6**epoch
        records.append(
            {"epoch": epoch, "train_loss": 0.6 - 0.5 * share, "learning_rate": 1e-4 * (1 - share)}
            | {"train_accuracy": top - 0.1 * (1 - share), "validation_loss": 0.5 - 0.2 * share}
            | {"validation_accuracy": top - 0.05 * (1 - share)}
        )
    return records


def confusion(accuracy: float, n_classes: int, per_class: int = 60) -> list[list[int]]:
    chance = random.Random(f"{accuracy} {n_classes}")
    matrix = [[0] * n_classes for _ in range(n_classes)]
    for true in range(n_classes):
        for _ in range(per_class):
            right = chance.random() < accuracy
            matrix[true][true if right else chance.randrange(n_classes)] += 1
    return matrix


def comparison_json(classes: list[str] = CLASSES) -> dict[str, Any]:
    """A made-up comparison: five strategies, three sizes, three seeds at the smaller two."""
    results = []
    for strategy, accuracies in ACCURACY.items():
        for n_train, accuracy in zip(SIZES, accuracies, strict=True):
            for seed in range(3 if n_train < 1000 else 1):
                at = accuracy + 0.008 * (seed - 1) * (n_train < 1000)
                tuned = strategy not in ("logreg", "svm")
                results.append(
                    {"strategy": strategy, "n_train": n_train, "seed": seed, "accuracy": at}
                    | {"accuracy_ci": [at - 0.03, min(at + 0.025, 1)], "macro_f1": at - 0.004}
                    | {"log_loss": 1.1 - at, "ece": 0.031, "peak_memory_mb": 512.3}
                    | {"seconds": SECONDS[strategy] * (n_train / 1437) ** 0.8}
                    | {"trainable_parameters": 3_413_024 if tuned else 7_686}
                    | {"confusion": confusion(at, len(classes))}
                    | {"reliability": [[0.6, at - 0.2, 180], [0.98, at, 180]]}
                    | ({"history": history(at), "best_epoch": 5} if tuned else {})
                )
    return {
        "images": "data",
        "backbone": "efficientnet_lite0",
        "size": 224,
        "snapshot": "2026-01-02-a1b2c3",
        "classes": classes,
        "n_train": 1437,
        "n_test": 360,
        "n_validation": 0,
        "results": results,
        "estimates": [
            {"strategy": strategy, "n_train": n_train, "seeds": 3 if n_train < 1000 else 1}
            | {"value": accuracy, "interval": [accuracy - 0.03, min(accuracy + 0.025, 1)]}
            | {"covers": "other seeds and images" if n_train < 1000 else "other test images"}
            for strategy, accuracies in ACCURACY.items()
            for n_train, accuracy in zip(SIZES, accuracies, strict=True)
        ],
        "differences": [
            {"n_train": 144, "a": "svm", "b": "logreg", "seeds": 3, "difference": 0.012}
            | {"interval": [-0.003, 0.027], "covers": "other seeds"},
            {"n_train": 144, "a": "svm", "b": "scratch", "seeds": 3, "difference": 0.412}
            | {"interval": None, "covers": "nothing: 7 groups of test images"},
        ],
        "forecasts": [
            {"strategy": "svm", "sizes": list(SIZES), "level": 0.9}
            | {"at": [{"n_train": 2874, "value": 0.981, "low": 0.972, "high": 0.988}]}
            | {"wanted": {"value": 0.99, "n_train": 9000, "low": 4100, "high": None}},
            {"strategy": "scratch", "sizes": list(SIZES), "reason": "three sizes are too few"},
        ],
        "recommendation": "Fine-tune the last block: accuracy 0.972 with 1,437 images. "
        "It gains 0.014 over the SVM and takes 21 s instead of 1.1 s.",
        "crossover": {"n_train": 440, "low": 210, "high": 1437},
        "extraction_seconds": 12.3,
        "failed": [
            {"path": f"data/{HOSTILE}/holiday.jpg", "reason": "truncated after 1,024 bytes"},
            {"path": "data/plain/no\udcffunicode.png", "reason": "not an image"},
        ],
        "conflicts": [f"data/{BREAKOUT}/1.png"],
        "leaks": [{"path": "data/a/2.png", "split": "train", "copy": "b.png", "other": "test"}],
        "class_counts": {
            "train": {name: 240 - index for index, name in enumerate(classes)},
            "test": dict.fromkeys(classes, 60),
        },
        "settings": {"seeds": 3, "sizes": list(SIZES), "device": "cpu", "note": BREAKOUT},
        "versions": {"fx": "0.1.0", "python": "3.11.9", "torch": "2.14.1+cpu"},
        "commands": ["fx sample digits data", f"fx compare data --sizes 144,455,1437 '{HOSTILE}'"],
    }


def comparison(classes: list[str] = CLASSES, **changed: Any) -> Comparison:
    return Comparison.from_json(comparison_json(classes) | changed)


class Page(HTMLParser):
    """Collects elements and the text outside of scripts; checks that what opens is closed."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self) -> dict[str, list[dict[str, Any]]]:
        figures: dict[str, list[dict[str, Any]]] = json.loads(self.scripts[0])
        return figures


def evidence() -> Evidence:
    """Made-up images: a red square each, of files with hostile names."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), (200, 0, 0)).save(buffer, "JPEG")
    data_uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    shown = {"path": f"a/{BREAKOUT}.jpg", "label": HOSTILE, "said": BREAKOUT, "image": data_uri}
    plain = {
        "n_train": 1437,
        "mistakes": {"logreg": [shown] * 3, "svm": [shown], "scratch": []},
        "disputed": [shown, shown],
        "map": [
            {"x": float(i), "y": float(i % 7), "label": CLASSES[i % len(CLASSES)]}
            | {"path": f"a/{i} {HOSTILE}.jpg", "image": data_uri}
            for i in range(60)
        ],
    }
    return Evidence.from_json(plain)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    title = f"Comparison of {HOSTILE}"
    return write_report(path, comparison(), title=title, evidence=evidence())


@pytest.fixture(scope="module")
def parsed(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_the_page_is_one_small_file_of_balanced_html(report: Path, parsed: Page) -> None:
    assert report.stat().st_size < 8_000_000
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]
    assert parsed.open == []
    assert parsed.named("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_headings_go_down_one_level_at_a_time(parsed: Page) -> None:
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(low - high <= 1 for high, low in pairwise(levels))


def test_nothing_on_the_page_names_another_place(parsed: Page) -> None:
    for tag, attributes in parsed.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in parsed.text
    assert "@import" not in parsed.text


def test_hostile_names_are_shown_and_never_read_as_html(report: Path, parsed: Page) -> None:
    for name in CLASSES:
        assert name in parsed.text
    source = report.read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert '<img src="http' not in source
    assert len(parsed.named("script")) == 3
    assert "data/plain/no\\udcffunicode.png" in parsed.text


def test_hostile_names_are_no_markup_for_plotly_either(tmp_path: Path) -> None:
    classes = CLASSES + [f"class {number}" for number in range(30)]
    many = comparison_json(classes)
    many["results"][0]["strategy"] = '<a href="http://example.invalid">x</a>'
    comparison = Comparison.from_json(many)
    path = write_report(tmp_path / "report.html", comparison, title="many classes")
    figures = Page(path.read_text(encoding="utf-8")).figures()
    names = figures["confusion-1"][0]["data"][0]["x"]
    assert names[0] == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert "<a href" not in json.dumps(figures["learning-curve"][0]["data"])


def test_every_figure_is_one_that_plotly_knows(tmp_path: Path, parsed: Page) -> None:
    many = comparison([str(number) for number in range(40)])
    path = write_report(tmp_path / "report.html", many, title="many classes")
    figures = parsed.figures() | Page(path.read_text(encoding="utf-8")).figures()
    assert {"learning-curve", "cost-curve", "training-2-loss", "confusion-0"} <= figures.keys()
    assert {"reliability-curve", "feature-map"} <= figures.keys()
    for choices in figures.values():
        for figure in choices:
            # raises where a property or a value is unknown
            plotly.graph_objects.Figure(data=figure["data"], layout=figure["layout"])
            assert figure["alt"]


@pytest.mark.parametrize(("classes", "told"), [(40, "point at one"), (300, "the JSON has all")])
def test_what_is_left_out_of_a_large_confusion_is_said(
    classes: int, told: str, tmp_path: Path
) -> None:
    many = comparison([str(number) for number in range(classes)])
    matrix = np.array(many.curves()["logreg"][-1].best.confusion)
    mistaken = np.count_nonzero(matrix) - np.count_nonzero(matrix.diagonal())
    path = write_report(tmp_path / "report.html", many, title="many classes")
    shown = Page(path.read_text(encoding="utf-8")).text
    assert f"10 of {mistaken:,} mistaken pairs of classes" in shown
    assert told in shown


def test_the_learning_curve_has_means_intervals_and_single_seeds(parsed: Page) -> None:
    [figure] = parsed.figures()["learning-curve"]
    band, dots, line = [t for t in figure["data"] if t["legendgroup"] == "logreg"]
    assert line["x"] == list(SIZES)
    assert line["y"] == pytest.approx(ACCURACY["logreg"])
    assert band["y"][:3] == pytest.approx([a - 0.03 for a in ACCURACY["logreg"]])
    assert band["y"][3:] == pytest.approx([a + 0.025 for a in reversed(ACCURACY["logreg"])])
    assert len(dots["x"]) == 6
    assert "logreg 0.853 at 144" in figure["alt"]
    looks = {
        (t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"])
        for t in figure["data"]
        if t["mode"] == "lines+markers"
    }
    assert len(looks) == len(ACCURACY)
    for values in zip(*looks, strict=True):
        assert len(set(values)) == len(ACCURACY)


def test_the_recommendation_is_the_headline(tmp_path: Path, parsed: Page) -> None:
    assert "h1" in [tag for tag, _ in parsed.elements]
    source = write_report(tmp_path / "a.html", comparison(), title="t").read_text(encoding="utf-8")
    headline = "Fine-tune the last block: accuracy 0.972 with 1,437 images"
    assert f"<h1>{headline}</h1>" in source
    assert "It gains 0.014 over the SVM and takes 21 s instead of 1.1 s.</p>" in source


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_comparison_with_little_in_it_still_makes_a_page(tmp_path: Path, kept: int) -> None:
    bare: list[dict[str, Any]] = [
        {},
        {"results": []},
        {"results": [{"strategy": "logreg", "n_train": 60, "seed": 0, "accuracy": 0.9}]},
        {
            "results": [
                {"strategy": "new/one", "n_train": 60, "seed": 0, "accuracy": None, "seconds": 1}
            ],
            "crossover": None,
        },
    ]
    little = Comparison.from_json(bare[kept])
    path = write_report(tmp_path / "report.html", little, title="Little")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert "Little" in page.text
    learning_curve_png(tmp_path / "curve.png", little)


def test_of_the_front_none_is_beaten_by_a_quicker_one(parsed: Page) -> None:
    *strategies, front = parsed.figures()["cost-curve"][0]["data"]
    assert front["name"] == "Pareto front"
    points = [p for trace in strategies for p in zip(trace["x"], trace["y"], strict=True)]
    on_front = list(zip(front["x"], front["y"], strict=True))
    for seconds, accuracy in points:
        beaten = any(
            s <= seconds and a >= accuracy for s, a in points if (s, a) != (seconds, accuracy)
        )
        assert ((seconds, accuracy) in on_front) == (not beaten)


def test_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    long = comparison(failed=[{"path": f"{n}.jpg", "reason": "empty file"} for n in range(1234)])
    path = write_report(tmp_path / "report.html", long, title="Long")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "1,234 listed" in text
    assert "199.jpg" in text
    assert "200.jpg" not in text
    assert "and 1,034 more" in text


# --- in a browser ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (360, "dark")], ids=["desktop", "phone in the dark"]
)
def test_in_a_browser_every_plot_is_drawn_and_nothing_is_loaded(
    browser: Any, report: Path, parsed: Page, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    places = page.locator(".plot")
    assert places.count() == len(parsed.figures())
    for index in range(places.count()):
        place = places.nth(index)
        place.locator("svg.main-svg .scatterlayer .trace").first.wait_for(state="attached")
        box = place.bounding_box()
        assert box["width"] <= width
        assert box["height"] >= 300
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.select_option("select", index=2)
    assert "455 training images" in page.locator("#training-2-loss").get_attribute("aria-label")
    assert told == []
    assert asked == [report.as_uri()]
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_axe_finds_nothing_to_mend(browser: Any, report: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(report.as_uri())
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    found = axe.Axe().run(page).response["violations"]
    told = [
        (one["id"], node["html"][:120], node["any"][:1] and node["any"][0]["message"])
        for one in found
        for node in one["nodes"]
    ]
    assert told == []
    context.close()


def test_in_a_browser_hovering_shows_the_numbers(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(report.as_uri())
    point = page.locator("#learning-curve .scatterlayer .trace").nth(2).locator(".points path")
    box = point.nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = page.locator("#learning-curve .hoverlayer")
    label.locator("text").first.wait_for()
    assert "0.909 (0.879 to 0.934, 3 seeds)" in label.text_content()
    page.close()


def test_in_a_browser_hovering_over_the_map_shows_the_image(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(report.as_uri())
    plot = page.locator("#feature-map")
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .trace").nth(1).locator(".points path").nth(3)
    point.wait_for(state="attached")
    assert not page.locator("#peek").is_visible()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    peeked = page.locator("#peek img")
    peeked.wait_for(state="visible")
    assert peeked.evaluate("image => image.naturalWidth") == 48
    assert f"{HOSTILE}.jpg" in page.locator("#peek").text_content()
    page.mouse.move(5, 5)
    page.locator("#peek").wait_for(state="hidden")
    page.close()


def test_in_print_the_page_is_light_and_unfolded(browser: Any, tmp_path: Path) -> None:
    long = comparison(failed=[{"path": f"{n}.jpg", "reason": "empty file"} for n in range(30)])
    report = write_report(tmp_path / "report.html", long, title="Long")
    context = browser.new_context(color_scheme="dark", viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(report.as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(media="print", color_scheme="dark")
    tick = page.locator("#learning-curve .xtick text").first
    assert dark == "rgb(20, 24, 28)"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert tick.evaluate("e => getComputedStyle(e).fill") == "rgb(26, 31, 36)"
    listed = page.get_by_text("29.jpg")
    assert not listed.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert listed.is_visible()
    assert page.locator("#learning-curve svg.main-svg").first.bounding_box()["width"] <= 640
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not listed.is_visible()
    context.close()


# --- images -------------------------------------------------------------------------------


def test_the_learning_curve_is_also_a_image(tmp_path: Path) -> None:
    path = learning_curve_png(tmp_path / "new" / "curve.png", comparison())
    with Image.open(path) as image:
        assert image.size == (1200, 720)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1_000_000)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_a_history_is_written_as_a_table_and_a_image(tmp_path: Path) -> None:
    rows = msgspec.convert(history(0.9, epochs=3), list[EpochRow])
    write_history(tmp_path / "run", rows)
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["train_loss"] == ""
    assert [float(row["validation_loss"]) for row in rows] == pytest.approx([0.5, 0.42, 0.372])
    with Image.open(tmp_path / "run" / "history.png") as image:
        assert image.width > 2 * image.height


def test_a_history_with_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="f1"):
        msgspec.convert({"epoch": 0, "f1": 0.5}, EpochRow)


# --- on a terminal --------------------------------------------------------------------------


def test_a_comparison_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480]
    results = [
        {"strategy": strategy, "n_train": n, "seed": 0, "accuracy": 0.5 + n / 50_000}
        | {"seconds": 12_345.6, "log_loss": 0.25, "ece": 0.0125}
        for strategy in ("logreg", "finetune:all")
        for n in sizes
        if (strategy, n) != ("finetune:all", 20480)
    ]
    print_comparison(comparison(results=results))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "6 of 10 sizes" in lines[0]
    logreg, of_loss, of_ece = [line.split() for line in lines if "logreg" in line]
    assert (logreg[1], logreg[-2], logreg[-1]) == ("0.501", "0.910", "12,345.6")
    assert of_loss == ["logreg"] + ["0.250"] * 6
    assert of_ece[-1] in ("0.013", "0.012")
    tuned, of_loss, _ = [line.split() for line in lines if "finetune:all" in line]
    assert tuned[-2:] == ["\N{EN DASH}"] * 2
    assert of_loss[-1] == "\N{EN DASH}"
    titles = [line for line in lines if "by training images" in line]
    assert [title.split(",")[0] for title in titles[1:]] == ["log loss", "calibration error"]


def test_a_table_loses_no_text_and_obeys_no_markup() -> None:
    file = io.StringIO()
    long = "word " * 40 + "end"
    print_table(("name", "n"), [("[red]x[/red]\x1b[2J", 12345), (long, None)], file=file)
    printed = file.getvalue()
    assert r"[red]x[/red]\x1b[2J" in printed
    assert "12,345" in printed
    assert "end" in printed
    assert printed.count("word") == 40


@dataclasses.dataclass
class Record:
    path: Path
    scores: np.ndarray
    loss: float


def test_json_takes_records_arrays_and_paths_and_has_no_nan() -> None:
    record = Record(Path("a") / "b.png", np.array([[1.5, np.nan]], dtype=np.float32), float("inf"))
    value = {"record": record, "n": np.int64(3), 4: (True, None), "names": {"b", "a"}}
    assert json.loads(to_json(value)) == {
        "record": {"path": "a/b.png", "scores": [[1.5, None]], "loss": None},
        "n": 3,
        "4": [True, None],
        "names": ["a", "b"],
    }
    assert to_json({"path": "\udcff ü"}).isascii()


@pytest.mark.parametrize("value", [[1, 2], 3, "text", {"x": object()}])
def test_json_is_one_object_or_an_error(value: object) -> None:
    with pytest.raises(TypeError):
        to_json(value)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    with progress_bar("extracting") as progress:
        for done in range(1000, 1301, 10):
            progress(done, 1300)
            now += 1.0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "extracting: 1,100 of 1,300, 10.0/s, 20 s left",
        "extracting: 1,200 of 1,300, 10.0/s, 10 s left",
        "extracting: 1,300 of 1,300 in 31 s",
    ]


@pytest.mark.parametrize("quiet", [False, True])
def test_short_and_quiet_work_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    with progress_bar("extracting", quiet=quiet) as progress:
        progress(1, 2)
        now = 5000.0 if quiet else 5.0
        progress(2, 2)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("extracting [red]") as progress:
        progress(100, 2000)
        progress(2000, 2000)
    assert "extracting [red]" in terminal.getvalue()
    assert "2000/2000" in terminal.getvalue()
