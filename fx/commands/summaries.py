"""What the commands print for people: a few lines, and tables that fit 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fx.output import print_table, printable

if TYPE_CHECKING:
    from extract.extraction import ExtractResult
    from extract.store import Garbage

# Records listed one by one; of more, only how many there are is said.
SHOWN = 5
_SCORES = ("knn", "logreg", "logme", "h_score", "distance")


def print_extraction(result: ExtractResult) -> None:
    """Print what an extraction did, and every oddity that the user should know of."""
    print(
        f"{result.images:,} images: {result.new:,} computed, {result.reused:,} already there, "
        f"{len(result.failed):,} unreadable"
    )
    widths = " + ".join(
        f"{one['dim']:,}" if one["layer"] == "pool" else f"{one['dim']:,} ({one['layer']})"
        for one in result.layers
    )
    how = result.precision + (f", {result.crops} crops" if result.crops > 1 else "")
    print(
        f"{result.backbone}, {widths} features each, {how}, {result.engine}: "
        f"{result.seconds:.1f} s, {result.images_per_second:,.0f} images/s"
    )
    splits = [f"{sum(counts.values()):,} {name}" for name, counts in result.splits.items()]
    if splits:
        classes = len(next(iter(result.splits.values())))
        print(f"{classes} classes; {', '.join(splits)}")
    _list("unreadable", [f"{r['path']}: {r['reason']}" for r in result.failed])
    _list("copies, counted once", [f"{r['path']} = {r['copy_of']}" for r in result.duplicates])
    _list("same bytes under two labels, in no split", result.conflicts)
    _list(
        "leaks between splits",
        [
            f"{r['path']} ({r['split']}) ~ {r.get('copy') or r['near_copy']} ({r['other']})"
            for r in result.leaks
        ],
    )
    print(f"store {result.store}, snapshot {result.snapshot}")


def _list(what: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"{what}: {len(lines):,}")
        for line in lines[:SHOWN]:
            print(f"  {printable(line)}")
        if len(lines) > SHOWN:
            print(f"  and {len(lines) - SHOWN:,} more (--json lists all)")


def print_measured(record: dict[str, Any], what: str) -> None:
    """Print how a head or network did on the test rows."""
    low, high = record["accuracy_ci"]
    print(f"{what}: accuracy {record['accuracy']:.3f} ({low:.3f} to {high:.3f}, 95 %)")
    also = [f"always the commonest class: {record['majority']:.3f}"]
    also += [f"balanced {record['balanced_accuracy']:.3f}"]
    also += [f"top 5 {record['top5']:.3f}"] if record["top5"] is not None else []
    print("; ".join(also))
    detail = f"macro F1 {record['macro_f1']:.3f}, log loss {record['log_loss']:.3f}, "
    print(detail + f"calibration error {record['ece']:.3f}")
    if "c" in record:
        print(_chosen(record))
    rows = f"{record['n_train']:,} training, {record['n_test']:,} test images"
    if record["measured_by"] != "test rows":
        rows = (
            f"fitted on {record['n_train']:,} images, measured on them by {record['measured_by']}"
        )
    if "best_epoch" in record:
        chosen = record["best_epoch"]
        kept = f"epoch {chosen} kept" if chosen else "the head it began as is kept"
        print(f"{rows}; {record['seconds']:.1f} s")
        rows = f"{record['trainable_parameters']:,} parameters trained for {record['epochs']} "
        print(f"{rows}epochs: {kept}")
        print(f"what is kept was fitted on {record['n_fitted']:,} images")
    else:
        print(f"{rows}; {record['seconds']:.1f} s")
    for note in record.get("notes", ()):
        _wrapped(f"note: {note}")
    _print_confusion(record["confusion"], record["classes"])
    if "audit" in record:
        _print_audit(record["audit"])
    print(f"saved in {record['path']}")


def _print_audit(audit: dict[str, Any]) -> None:
    print(f"labels contradicted: {audit['contradicted']:,} of {audit['audited']:,}")
    for one in audit["first"][:SHOWN]:
        path, label, other = (printable(one[name]) for name in ("path", "label", "suggested"))
        print(f"  {path}: {label}, more like {other}")
    print(f"all, to look at: {audit['page']}")
    print(f"to correct, and to give to fx extract: {audit['table']}")


def _chosen(record: dict[str, Any]) -> str:
    parts = [f"normalisation {record['normalize']}"]
    if record["kind"] == "knn":
        parts.insert(0, f"{record['c']:g} neighbours")
    elif record["kind"] != "centroid":
        parts.insert(0, f"C {record['c']:.3g}")
    return ", ".join([*parts, *([f"{record['kernel']} kernel"] if record["kernel"] else [])])


def _print_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    if len(classes) <= 12:
        rows = [
            [label, *(f"{count or '·'}" for count in row)]
            for label, row in zip(classes, confusion, strict=True)
        ]
        print_table(["true \\ said", *(label[:8] for label in classes)], rows)
        return
    wrong = sorted(
        (
            (count, classes[truth], classes[said])
            for truth, row in enumerate(confusion)
            for said, count in enumerate(row)
            if truth != said and count
        ),
        reverse=True,
    )
    if wrong:
        rows = [[truth, said, str(count)] for count, truth, said in wrong[:SHOWN]]
        print_table(["true", "said", "images"], rows, title="most confused")


def print_predictions(record: dict[str, Any]) -> None:
    """Print one line an image: probability, label or set of labels, path."""
    found = record["predictions"]
    labels = [printable(_answer(one)) for one in found]
    width = max(map(len, labels), default=0)
    for label, prediction in zip(labels, found, strict=True):
        path = printable(prediction["path"])
        print(f"{prediction['probability']:.3f}  {label:<{width}}  {path}")
    if "rejected" in record:
        print(f"none of these: {record['rejected']:,} of {len(found):,} images")
    if record.get("mean_set_size") is not None:
        print(f"mean size of the sets of labels: {record['mean_set_size']:.2f}")
    _list("unreadable", [f"{r['path']}: {r['reason']}" for r in record["failed"]])


def _answer(prediction: dict[str, Any]) -> str:
    if prediction["label"] is None:
        return "none of these"
    return " | ".join(prediction.get("labels") or [prediction["label"]])


def garbage_lines(garbage: Garbage) -> list[str]:
    """Say in a line each what can be dropped from a store."""
    lines = [f"snapshot {name}: {reason}" for name, reason in garbage.snapshots.items()]
    lines += [f"features {name}: {reason}" for name, reason in garbage.sets.items()]
    lines += [
        f"features {name}: {count:,} rows that no snapshot uses"
        for name, count in garbage.rows.items()
    ]
    lines += [f"network {name}: its features are gone" for name in garbage.networks]
    return [*lines, f"about {garbage.bytes / 1e6:,.1f} MB in all"]


def print_store(record: dict[str, Any]) -> None:
    """Print feature sets and snapshots."""
    sets = [
        [
            s["name"],
            # a spec may be somebody else's, and say less
            s["spec"].get("layer", "") + (f" ×{crops}" if crops > 1 else ""),
            s["spec"].get("size"),
            s["spec"].get("numerics"),
            s["rows"],
            s["dim"],
            f"{s['megabytes']:.1f}",
        ]
        for s in record["sets"]
        for crops in [s["spec"].get("crops", 1)]
    ]
    print_table(["features", "layer", "size", "as", "rows", "dim", "MB"], sets)
    snapshots = [
        [s["name"], s["images"], s["classes"], s["train"], s["val"], s["test"], s["failed"]]
        for s in record["snapshots"]
    ]
    columns = ["snapshot", "images", "classes", "train", "val", "test", "bad"]
    print_table(columns, snapshots)
    for reason in record["damaged"].values():
        print(f"damaged: {reason}")


def print_skipped(cells: Sequence[dict[str, Any]]) -> None:
    """Print what was not measured, and why: a line for every strategy, size and reason."""
    told = dict.fromkeys((c["strategy"], c["n_train"], c["reason"]) for c in cells)
    for strategy, size, reason in told:
        print(f"left out: {strategy} at {size:,}: {reason}")


def print_preview(record: dict[str, Any]) -> None:
    """Print what a comparison would measure, and what it would take."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for cell in record["cells"]:
        seconds.setdefault((cell["strategy"], cell["n_train"]), []).append(cell["seconds"])
    rows = [
        [strategy, f"{size:,}", len(each), f"{each[0]:,.0f}"]
        for (strategy, size), each in sorted(seconds.items())
    ]
    print_table(["strategy", "images", "seeds", "seconds each"], rows)
    print_skipped([cell | {"reason": "would not fit the budget"} for cell in record["skipped"]])
    extraction, shared = record["extraction_seconds"], record["shared_seconds"]
    print(f"extracting features: {extraction:,.0f} s; running frozen blocks: {shared:,.0f} s")
    print(
        f"in all about {record['seconds'] / 60:,.1f} minutes at most, "
        f"{record['disk_mb']:,.0f} MB on the disk"
    )
    print("as if nothing were there yet: what is finished takes no time again")


def print_advice(record: dict[str, Any]) -> None:
    """Print what images are like, what the networks' features promise, and what to try first."""
    sample, classes = record["sample"], record["classes"]
    _wrapped(
        f"{sum(classes.values()):,} labelled images of {len(classes):,} classes: about "
        f"{record['n_train']:,} to train on, {record['n_test']:,} to test; the largest class has "
        f"{record['imbalance']:.1f} times the smallest"
    )
    counts = {
        "unreadable": sample["unreadable"],
        "copies": sample["copies"],
        "near-copies": sample["near_copies"],
        "across splits": sample["near_copies_across_splits"],
    }
    odd = ", ".join(f"{len(found):,} {what}" for what, found in counts.items())
    print(f"of {sample['n']:,} looked at: {odd}")
    _list("unreadable", [f"{r['path']}: {r['reason']}" for r in sample["unreadable"]])
    if sides := sample["shorter_side"]:
        inputs = ", ".join(f"{one['backbone']} {one['size']}" for one in record["networks"])
        _wrapped(
            f"shorter sides: {sides['least']:,} to {sides['greatest']:,} pixels, median "
            f"{sides['median']:,}; the network sees: {inputs}"
        )
    print_table(
        ["features", "n", "k-NN", "logreg", "LogME", "H-score", "distance"],
        [[one[name] for name in ("backbone", "n", *_SCORES)] for one in record["networks"]],
        title="scores on the images looked at, cross-validated: no promise of a test",
    )
    print_table(
        ["seconds, predicted", "extract", *record["networks"][0]["predicted_seconds"]],
        [
            [one["backbone"], f"{one['extraction_seconds']:,.0f}"]
            + [f"{seconds:,.0f}" for seconds in one["predicted_seconds"].values()]
            for one in record["networks"]
        ],
    )
    _wrapped(record["quadrant"]["said"])
    _wrapped(f"Try first: {record['strategy']}.")


def _wrapped(said: str) -> None:
    print(textwrap.fill(said, 80))
