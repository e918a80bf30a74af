"""Sections of the report, in the order of reading.

Each is a function of the comparison alone; it returns None where there is nothing to show.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from fx import report_figures as draw
from fx.report_cells import cells_of, describe, finite, styles_of
from fx.report_evidence import disputed, feature_map, mistakes, reliability
from fx.report_page import (
    Section,
    choice,
    figure,
    folded,
    pairs,
    paragraph,
    place,
    scrolling,
    table,
    text,
)

_MAX_CLASSES_IN_TABLE = 20
_MAX_CLASSES_IN_PLOT = 200
_MAX_LISTED = 200
_FOLDED_FROM = 30
_SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
_LISTS = {
    "failed": "Unreadable files",
    "conflicts": "The same picture under two labels, in no split",
    "leaks": "Copies on both sides of the split",
}
_NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def head(comparison: dict[str, Any], title: str) -> str:
    """Return the HTML above the first section: the recommendation, and what was compared."""
    recommendation = str(comparison.get("recommendation") or "").strip()
    headline, _, rest = recommendation.partition("\n")
    if not rest:
        # The first sentence is the headline; a point inside a number ends none.
        first = re.match(r"(.+?[.!?])\s+(?=\S)", recommendation)
        headline, rest = (
            (first[1], recommendation[first.end() :]) if first else (recommendation, "")
        )
    parts = [
        paragraph(title, kind="eyebrow") if headline else "",
        f"<h1>{text(headline or title)}</h1>\n",
        paragraph(rest.strip(), kind="lead") if rest else "",
        paragraph(quadrant) if (quadrant := (comparison.get("quadrant") or {}).get("said")) else "",
        pairs(_facts(comparison), kind="facts"),
    ]
    return "".join(parts)


def _facts(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    size = comparison.get("size")
    facts = [
        ("Images", comparison.get("images")),
        ("Classes", len(comparison.get("classes") or []) or None),
        ("Training images", comparison.get("n_train")),
        ("Validation images", comparison.get("n_validation") or None),
        ("Test images", comparison.get("n_test")),
        ("Backbone", comparison.get("backbone")),
        ("Picture size", f"{size} \N{MULTIPLICATION SIGN} {size}" if size else None),
        ("Unreadable files", len(comparison.get("failed") or []) or None),
    ]
    return [
        (name, f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in facts
        if value is not None
    ]


def _curve(comparison: dict[str, Any]) -> Section | None:
    cells = cells_of(comparison)
    if not cells:
        return None
    crossover = comparison.get("crossover") or {}
    crossing = finite(crossover.get("n_train"))
    curve = draw.learning_curve(cells, styles_of(list(cells)), crossing)
    note = _what_bands_cover(comparison)
    if any(len(cell.runs) > 1 for row in cells.values() for cell in row):
        note += " Lines are means over the seeds; small markers are single seeds."
    note += " A click on a name in the legend hides its line."
    body = figure(_place("learning-curve", curve), note)
    if crossing is not None:
        body += paragraph(
            f"The dotted line marks {crossing:,.0f} training images: from there on, fine-tuning "
            f"is ahead of the classifiers on frozen features. {_how_sure(crossover)}"
        )
    elif "crossover" in comparison and any(name.startswith("finetune") for name in cells):
        body += paragraph(
            "At none of these sizes does fine-tuning overtake the classifiers on frozen features "
            "to stay ahead of them."
        )
    body += pairs((name, description) for name in cells if (description := describe(name)))
    return Section("curve", "Accuracy by training images", body, plots={"learning-curve": [curve]})


def _what_bands_cover(comparison: dict[str, Any]) -> str:
    sizes: dict[str, set[int]] = {}
    for one in comparison.get("estimates") or []:
        sizes.setdefault(one["covers"], set()).add(one["n_train"])
    if len(sizes) <= 1:
        return f"Bands are 95 % intervals; they allow for {next(iter(sizes), 'chance')}."
    each = [
        f"at {', '.join(f'{n:,}' for n in sorted(found))} images for {covers}"
        for covers, found in sorted(sizes.items(), key=lambda item: min(item[1]))
    ]
    return f"Bands are 95 % intervals; they allow {'; '.join(each)}."


def _how_sure(crossover: dict[str, Any]) -> str:
    low, high = finite(crossover.get("low")), finite(crossover.get("high"))
    if low is None:
        return ""
    to = f"to {high:,.0f}" if high is not None else "to beyond the largest size"
    share = finite(crossover.get("share")) or 0.0
    return (
        f"With other seeds and test images it could lie from {low:,.0f} {to} (95 %); in "
        f"{share:.0%} of the resamples it lies within the sizes measured."
    )


def _forecasts(comparison: dict[str, Any]) -> Section | None:
    found = comparison.get("forecasts") or []
    told = [one for one in found if "at" in one]
    reasons = list(dict.fromkeys(one["reason"] for one in found if "reason" in one))
    if not found:
        return None
    body = ""
    if told:
        rows = [
            (
                one["strategy"],
                f"{at['n_train']:,}",
                _number(finite(at["accuracy"])),
                f"{at['low']:.3f} to {at['high']:.3f}",
            )
            for one in told
            for at in one["at"]
        ]
        columns = ("Strategy", "Training images", "Accuracy", "90 % interval")
        caption = (
            "Predicted by a power law with an asymptote, fitted to the measured sizes; the "
            "interval is of what would be measured on these test images"
        )
        body += table(f"{caption}.", columns, rows, numeric=columns[1:])
    body += "".join(paragraph(_wanted(one)) for one in told if "wanted" in one)
    body += "".join(paragraph(f"Not predicted: {reason}.") for reason in reasons)
    return Section("forecasts", "Would more images help?", body)


def _wanted(one: dict[str, Any]) -> str:
    wanted = one["wanted"]
    target = f"{one['strategy']}, accuracy {wanted['accuracy']:.3f}:"
    if wanted["n_train"] is None:
        return f"{target} not reached by more images, as far as these can tell."
    high = f"{wanted['high']:,}" if wanted["high"] is not None else "never"
    return f"{target} about {wanted['n_train']:,} training images ({wanted['low']:,} to {high})."


def _cost(comparison: dict[str, Any]) -> Section | None:
    cells = cells_of(comparison)
    if not any(cell.mean("seconds") for row in cells.values() for cell in row):
        return None
    curve = draw.cost(cells, styles_of(list(cells)))
    body = figure(
        _place("cost-curve", curve),
        "The larger the marker, the more training images. Of the points on the dotted line (the "
        "Pareto front) none is beaten by a quicker one.",
    )
    extraction = finite(comparison.get("extraction_seconds"))
    if extraction is not None:
        body += paragraph(
            f"Extracting the features took {_seconds(extraction)} s, once for all classifiers on "
            "them; it is not part of the seconds here."
        )
    return Section("cost", "What it costs", body, plots={"cost-curve": [curve]})


def _results(comparison: dict[str, Any]) -> Section | None:
    cells = [cell for row in cells_of(comparison).values() for cell in row]
    if not cells:
        return None
    cells.sort(key=lambda cell: (-cell.n_train, -(cell.mean("accuracy") or 0)))
    rows = [
        (
            cell.strategy,
            f"{cell.n_train:,}",
            _number(cell.mean("accuracy")),
            f"{cell.interval[0]:.3f} to {cell.interval[1]:.3f}" if cell.interval else _NOTHING,
            _seconds(cell.mean("seconds")),
            _number(cell.mean("macro_f1")),
            _number(cell.mean("log_loss")),
            _number(cell.mean("ece")),
            _number(cell.mean("trainable_parameters"), 0),
            _number(cell.mean("peak_memory_mb"), 0),
            _number(cell.mean("deployed_mb"), 1),
            _number(cell.mean("predict_ms"), 1),
            _number(cell.mean("settings_tried"), 0),
            str(len(cell.runs)),
        )
        for cell in cells
    ]
    columns = (
        "Strategy",
        "Training images",
        "Accuracy",
        "95 % interval",
        "Seconds",
        "Macro F1",
        "Log loss",
        "Calibration error",
        "Trained parameters",
        "Memory, MB",
        "Deployed, MB",
        "Milliseconds a picture",
        "Settings tried",
        "Seeds",
    )
    caption = (
        "On the test images, the largest training set first; means over the seeds. Calibration "
    )
    caption += (
        "error is the expected one; memory is the peak of the process; deployed is the head with "
        "its network, or the network; milliseconds are of predicting, decoding included; settings "
        "are values of C, normalisations and kernels, or epochs, of which validation rows chose."
    )
    body = table(caption, columns, rows, numeric=columns[1:])
    return Section("results", "All results", body)


def _pairs(comparison: dict[str, Any]) -> Section | None:
    tests = comparison.get("pairs") or []
    compared = comparison.get("differences") or []
    if not tests and not compared:
        return None
    body = (_of_strategies(compared) if compared else "") + (_of_models(tests) if tests else "")
    return Section("pairs", "Are the differences real?", body)


def _of_strategies(compared: list[dict[str, Any]]) -> str:
    rows = [
        (
            f"{pair['a']} {_MINUS} {pair['b']}",
            f"{pair['n_train']:,}",
            _signed(finite(pair["difference"])),
            " to ".join(_signed(finite(bound)) for bound in pair["interval"]),
            _probability(finite(pair["p_holm"])),
            str(pair["seeds"]),
            _verdict(pair),
        )
        for pair in sorted(compared, key=lambda pair: -int(pair["n_train"]))
    ]
    columns = (
        "Strategies",
        "Training images",
        "Difference",
        "Interval",
        "p, corrected",
        "Seeds",
        "Reading",
    )
    caption = (
        "Differences in accuracy, paired by seed and test image. The intervals hold at once (95 %) "
        "for all pairs of a size; p is corrected for the number of rows (Holm). With three seeds "
        "or more both allow for other training images too, else for other test images alone."
    )
    content = table(caption, columns, rows, numeric=columns[1:6])
    long = len(rows) > _FOLDED_FROM
    return folded(f"{len(rows)} differences between strategies", content) if long else content


def _of_models(tests: list[dict[str, Any]]) -> str:
    rows = [
        (
            f"{pair.get('a')} {_MINUS} {pair.get('b')}",
            _number(finite(pair.get("n_train")), 0),
            _signed(finite(pair.get("difference"))),
            _probability(finite(pair.get("p_value"))),
            _probability(finite(pair.get("p_holm"))),
            _verdict(pair),
        )
        for pair in sorted(tests, key=lambda pair: -(finite(pair.get("n_train")) or 0))
    ]
    names = sorted({str(pair["test"]) for pair in tests if pair.get("test")})
    columns = ("Pair", "Training images", "Difference", "p", "p, corrected", "Reading")
    caption = "Difference in accuracy on the same test images"
    caption += f"; test: {', '.join(names)}." if names else "."
    return table(caption, columns, rows, numeric=columns[1:5]) + paragraph(
        "Corrected is for the number of tests (Holm); a difference is called shown where that p is "
        "under 0.05. The tests are of these fitted models; another training run could differ.",
        kind="note",
    )


def _verdict(pair: dict[str, Any]) -> str:
    p = finite(pair.get("p_holm"))
    difference = finite(pair.get("difference"))
    if p is None or difference is None:
        return _NOTHING
    if p >= 0.05:
        return "no difference shown"
    return f"{pair['a'] if difference > 0 else pair['b']} is better"


def _confusion(comparison: dict[str, Any]) -> Section | None:
    classes = [str(name) for name in comparison.get("classes") or []]
    parts = []
    plots = {}
    for index, row in enumerate(cells_of(comparison).values()):
        run = row[-1].best
        matrix = run.get("confusion")
        if not matrix or len(matrix) != len(classes):
            continue
        heading = f"{run['strategy']}, {run['n_train']:,} training images"
        part = f"<h3>{text(heading)}</h3>\n"
        if len(classes) <= _MAX_CLASSES_IN_TABLE:
            part += scrolling(_matrix(matrix, classes), f"Confusion matrix of {heading}")
        else:
            if len(classes) <= _MAX_CLASSES_IN_PLOT:
                plot_id = f"confusion-{index}"
                plots[plot_id] = [draw.confusion(matrix, classes, heading)]
                part += _place(plot_id, plots[plot_id][0])
            part += _worst(matrix, classes, heading)
        parts.append(f"<div>\n{part}</div>\n")
    if not parts:
        return None
    body = paragraph(
        "Rows are the true classes, columns the predicted ones; numbers are test images. "
        "Of several seeds, the one with the highest accuracy is shown."
    )
    return Section(
        "confusion",
        "What is taken for what",
        f'{body}<div class="beside">\n{"".join(parts)}</div>\n',
        plots,
    )


def _matrix(matrix: list[list[int]], classes: list[str]) -> str:
    upright = ' class="upright"' if max(map(len, classes)) > 3 else ""
    head = "".join(
        f'<th scope="col"><span{upright} title="{text(name)}">{text(name)}</span></th>'
        for name in classes
    )
    rows = []
    for true, counts in enumerate(matrix):
        total = sum(counts) or 1
        cells = []
        for predicted, count in enumerate(counts):
            kind = "right" if predicted == true else "wrong"
            # the root, so that a few mistakes among many images are still seen
            share = 0.7 * (count / total) ** 0.5
            cells.append(f'<td class="{kind}" style="--share:{share:.2f}">{count}</td>')
        name = text(classes[true])
        rows.append(
            f'<tr><th scope="row"><span title="{name}">{name}</span></th>{"".join(cells)}</tr>\n'
        )
    return (
        f'<table class="confusion"><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody></table>"
    )


def _worst(matrix: list[list[int]], classes: list[str], heading: str) -> str:
    mistakes = [
        (count, classes[true], classes[predicted])
        for true, counts in enumerate(matrix)
        for predicted, count in enumerate(counts)
        if count and predicted != true
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    rows = [(true, predicted, f"{count:,}") for count, true, predicted in mistakes[:10]]
    columns = ("True class", "Predicted", "Test images")
    return table(f"The most frequent mistakes of {heading}", columns, rows, numeric=columns[2:])


def _training(comparison: dict[str, Any]) -> Section | None:
    parts = []
    plots: dict[str, list[draw.Figure]] = {}
    for index, row in enumerate(cells_of(comparison).values()):
        runs = [run for cell in reversed(row) for run in cell.runs if run.get("history")]
        if not runs:
            continue
        names = [f"{r['n_train']:,} training images, seed {r.get('seed', 0)}" for r in runs]
        strategy = runs[0]["strategy"]
        part = f"<h3>{text(strategy)}</h3>\n"
        ids = [f"training-{index}-{quantity}" for quantity in ("loss", "accuracy")]
        if len(runs) > 1:
            part += choice("Run", names, ids)
        else:
            part += paragraph(names[0])
        places = ""
        for plot_id, quantity in zip(ids, ("loss", "accuracy"), strict=True):
            plots[plot_id] = [
                draw.training(run, quantity, f"{strategy}, {name}")
                for run, name in zip(runs, names, strict=True)
            ]
            places += _place(plot_id, plots[plot_id][0])
        parts.append(f'{part}<div class="beside">\n{places}</div>\n')
    if not parts:
        return None
    note = (
        "Epoch 0 is the network before it was trained; a dotted line marks the epoch that was "
        "kept for its validation loss."
    )
    return Section("training", "How the networks trained", paragraph(note) + "".join(parts), plots)


def _data(comparison: dict[str, Any]) -> Section | None:
    parts = []
    counts: dict[str, dict[str, int]] = comparison.get("class_counts") or {}
    if counts:
        splits = [split for split in ("train", "val", "test") if counts.get(split)]
        splits += [split for split in counts if split not in splits and counts[split]]
        named = [str(name) for name in comparison.get("classes") or []]
        others = [name for split in splits for name in counts[split] if name not in named]
        rows = [
            (name, *(_number(counts[split].get(name, 0), 0) for split in splits))
            for name in dict.fromkeys([*named, *others])
        ]
        rows.append(("all classes", *(_number(sum(counts[split].values()), 0) for split in splits)))
        columns = ("Class", *(_SPLITS.get(split, split) for split in splits))
        content = table("Images by class and split", columns, rows, numeric=columns[1:])
        long = len(rows) > _FOLDED_FROM
        parts.append(folded(f"Images of {len(rows) - 1} classes", content) if long else content)
    for name, heading in _LISTS.items():
        items = comparison.get(name) or []
        if items:
            parts.append(f"<h3>{text(heading)}</h3>\n{_listed(items)}")
    return Section("data", "The images", "".join(parts)) if parts else None


def _listed(items: list[Any]) -> str:
    entries = [_plain(item) for item in items[:_MAX_LISTED]]
    if all(isinstance(item, dict) and {"path", "reason"} <= item.keys() for item in items):
        reasons = ((str(item["path"]), str(item["reason"])) for item in items[:_MAX_LISTED])
        content = pairs(reasons, kind="files")
    else:
        content = "<ul>\n" + "".join(f"<li>{text(entry)}</li>\n" for entry in entries) + "</ul>\n"
    if len(items) > _MAX_LISTED:
        content += paragraph(f"and {len(items) - _MAX_LISTED:,} more")
    return folded(f"{len(items):,} listed", content) if len(items) > 10 else content


def _repeat(comparison: dict[str, Any]) -> Section | None:
    parts = []
    commands = comparison.get("commands") or []
    if commands:
        parts.append(f"<pre><code>{text(chr(10).join(map(str, commands)))}</code></pre>\n")
    snapshot = comparison.get("snapshot")
    settings = ({"snapshot": snapshot} if snapshot else {}) | (comparison.get("settings") or {})
    for heading, values in (("Settings", settings), ("Versions", comparison.get("versions"))):
        if values:
            rows = ((str(name), _plain(value)) for name, value in values.items())
            parts.append(f"<h3>{heading}</h3>\n{pairs(rows)}")
    return Section("repeat", "To repeat it", "".join(parts)) if parts else None


def _place(plot_id: str, first: draw.Figure) -> str:
    return place(plot_id, first["alt"], height=first["layout"]["height"])


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value and all(map(_is_simple, value.values())):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list) and all(map(_is_simple, value)):
        return ", ".join(map(_plain, value)) or "none"
    return json.dumps(value, ensure_ascii=False)


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _number(value: float | None, decimals: int = 3) -> str:
    return _NOTHING if value is None else f"{value:,.{decimals}f}"


def _signed(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:+.3f}".replace("-", _MINUS)


def _probability(value: float | None) -> str:
    return "under 0.001" if value is not None and value < 0.001 else _number(value)


def _seconds(value: float | None) -> str:
    return _number(value, 1 if value is not None and value >= 1 else 2)


SECTIONS: tuple[Callable[[dict[str, Any]], Section | None], ...] = (
    _curve,
    _forecasts,
    _cost,
    _results,
    _pairs,
    _confusion,
    reliability,
    mistakes,
    disputed,
    feature_map,
    _training,
    _data,
    _repeat,
)
