"""``fx advise``: which strategy to try first, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands import arguments
from fx.commands.arguments import options_in
from fx.commands.printing import print_some, print_wrapped, show
from fx.output import counted, print_table, printable, progress_bars

if TYPE_CHECKING:
    from fx.records import Advice

# what is of one kind stands in one table: its title, its columns
_SCORES = {
    "cross-validated accuracy on n of the images, which chose k and C: not a test": {
        "n": "n",
        "knn": "k-NN",
        "logreg": "logreg",
    },
    "no accuracies: how features fit the labels; distance from the network's images": {
        "logme": "LogME",
        "h_score": "H-score",
        "distance": "distance",
    },
}


def advise(
    images: arguments.Images = arguments.DATA,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Network, or several between commas. [default: all whose weights are at hand]"
        ),
    ] = None,
    weights: arguments.Weights = None,
    size: arguments.Size = None,
    precision: arguments.Precision = "auto",
    device: arguments.Device = "auto",
    engine: arguments.EngineName = "auto",
    layout: arguments.Layout = None,
    path_column: arguments.PathColumn = None,
    label_column: arguments.LabelColumn = None,
    split_column: arguments.SplitColumn = None,
    group_column: arguments.GroupColumn = None,
    root: arguments.Root = None,
    min_images: arguments.MinImages = 0,
    max_image_mb: arguments.MaxImageMB = arguments.MAX_IMAGE_MB,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Say which strategy to try first, before any training."""
    options = options_in(locals())
    from fx.comparison import advise as give_advice

    with progress_bars(quiet=json_) as begin:
        advice = give_advice(images, options, begin=begin)
    return show(advice, json_, lambda: _print(advice))


def _print(advice: Advice) -> None:
    sample, classes = advice.sample, advice.classes
    print_wrapped(
        f"{sum(classes.values()):,} labelled images of {len(classes):,} classes: about "
        f"{advice.n_train:,} to train on, {advice.n_test:,} to test; the largest class has "
        f"{advice.imbalance:.1f} times as many as the smallest"
    )
    if advice.passed_over:
        print_wrapped(f"passed over: {counted(advice.passed_over)}")
    for note in dict.fromkeys(note for one in advice.networks for note in one.notes):
        print_wrapped(printable(f"note: {note}"))
    counts = {
        "unreadable": len(sample.unreadable),
        "copies": len(sample.copies),
        "near-copies": len(sample.near_copies),
        "across splits": len(sample.near_copies_across_splits),
    }
    odd = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    print(f"of {sample.n:,} looked at: {odd}")
    print_some("unreadable", [f"{r['path']}: {r['reason']}" for r in sample.unreadable])
    if sides := sample.shorter_side:
        inputs = ", ".join(f"{one.backbone} {one.size}" for one in advice.networks)
        print_wrapped(
            f"shorter sides: {sides.least:,} to {sides.greatest:,} pixels, median "
            f"{sides.median:,}; the network sees: {inputs}"
        )
    for title, columns in _SCORES.items():
        print_table(
            ["features", *columns.values()],
            [[getattr(one, name) for name in ("backbone", *columns)] for one in advice.networks],
            title=title,
        )
    print_table(
        ["seconds, predicted", "extract", *advice.networks[0].predicted_seconds],
        [
            [one.backbone, *map(round, (one.extraction_seconds, *one.predicted_seconds.values()))]
            for one in advice.networks
        ],
    )
    print_wrapped(advice.quadrant.said)
    print_wrapped(f"Try first: {advice.strategy}.")
