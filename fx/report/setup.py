"""Sections of the report with what was measured on, and how: images, trainings, settings."""

import json
from typing import Any

from fx.report import figures as draw
from fx.report.cells import cells_of
from fx.report.numbers import number
from fx.report.page import ROWS_SHOWN, Section, choice, folded, pairs, paragraph, place, table, text

_MAX_LISTED = 200
_SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
_LISTS = {
    "failed": "Unreadable files",
    "conflicts": "The same image under two labels, in no split",
    "leaks": "Copies on both sides of the split",
}


def training(comparison: dict[str, Any]) -> Section | None:
    """Loss and accuracy by epoch, of every network that was trained."""
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
            places += place(plot_id, plots[plot_id][0])
        parts.append(f'{part}<div class="beside">\n{places}</div>\n')
    if not parts:
        return None
    decided = comparison.get("flips") or []
    note = (
        "Epoch 0 is the network before it was trained; a dotted line marks the epoch that was "
        "kept. The calibrated loss is that at the best temperature of the logits; in the last "
        "epochs, where there is none, the validation images trained, too."
    )
    told = "".join(paragraph(f"{one['backbone']}: {one['said']}.") for one in decided)
    body = paragraph(note) + told + "".join(parts)
    return Section("training", "How the networks trained", body, plots)


def images(comparison: dict[str, Any]) -> Section | None:
    """Images by class and split, and those that are in none."""
    parts = []
    counts: dict[str, dict[str, int]] = comparison.get("class_counts") or {}
    if counts:
        splits = [split for split in ("train", "val", "test") if counts.get(split)]
        splits += [split for split in counts if split not in splits and counts[split]]
        named = [str(name) for name in comparison.get("classes") or []]
        others = [name for split in splits for name in counts[split] if name not in named]
        rows = [
            (name, *(number(counts[split].get(name, 0), 0) for split in splits))
            for name in dict.fromkeys([*named, *others])
        ]
        rows.append(("all classes", *(number(sum(counts[split].values()), 0) for split in splits)))
        columns = ("Class", *(_SPLITS.get(split, split) for split in splits))
        content = table("Images by class and split", columns, rows, numeric=columns[1:])
        long = len(rows) > ROWS_SHOWN
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


def repeat(comparison: dict[str, Any]) -> Section | None:
    """Commands, settings and versions."""
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
