"""``fx compare``: all strategies, measured on the same splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands import arguments
from fx.commands.arguments import choice, options_in, with_unit
from fx.commands.command import Command
from fx.commands.printing import print_wrapped, show
from fx.options import names_in
from fx.output import print_comparison, print_table, progress_bars, rough_duration

if TYPE_CHECKING:
    from extract.registry import Registry
    from fx.comparison import Plan
    from fx.records import Comparison, Preview

SECONDS = {"S": 1, "M": 60, "H": 3600}


class Compare(Command):
    """Its help lists the strategies."""

    def choices(self) -> Mapping[str, Registry[Any]]:
        from fx.comparison import STRATEGIES

        return {"Strategies": STRATEGIES}


def compare(
    images: arguments.Images = arguments.DATA,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="N,N", help="Numbers of training images. [default: five sizes up to all]"
        ),
    ] = "",
    strategies: Annotated[
        str, typer.Option(metavar="A,B", help="Strategies, of those below.")
    ] = "logreg,svm,finetune:1",
    seeds: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Draws of each size; fewer of more than 5,000 images."),
    ] = 3,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs of fine-tuning at most. [default: 7, and up to 24 with few images]",
        ),
    ] = None,
    class_weight: arguments.ClassWeight = None,
    metric: Annotated[
        str, typer.Option(help="What decides: accuracy, log-loss or macro-f1.")
    ] = "accuracy",
    prefer: Annotated[
        str,
        typer.Option(help="Recommend the best, or cheap: the cheapest that none is shown to beat."),
    ] = "cheap",
    wanted: Annotated[
        float | None,
        typer.Option(min=0, help="Predict how many images such an accuracy, or metric, takes."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Measure what is predicted to fit in a time such as 30m."
        ),
    ] = None,
    log_to: arguments.LogTo = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print what would be measured, and how long it takes."),
    ] = False,
    backbone: arguments.Backbones = None,
    weights: arguments.Weights = None,
    size: arguments.Size = None,
    channels: arguments.Channels = None,
    store: arguments.Store = arguments.FEATURES,
    precision: arguments.Precision = "auto",
    device: arguments.Device = "auto",
    engine: arguments.EngineName = "auto",
    batch_size: arguments.BatchSize = None,
    layout: arguments.Layout = None,
    path_column: arguments.PathColumn = None,
    label_column: arguments.LabelColumn = None,
    split_column: arguments.SplitColumn = None,
    group_column: arguments.GroupColumn = None,
    root: arguments.Root = None,
    min_images: arguments.MinImages = 0,
    max_image_mb: arguments.MaxImageMB = arguments.MAX_IMAGE_MB,
    split_seed: arguments.SplitSeed = 0,
    near_copies: arguments.NearCopies = "group",
    seed: arguments.Seed = 0,
    out: arguments.Out = arguments.RUNS,
    fresh: arguments.Fresh = False,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Measure all strategies and write a report."""
    options = options_in(locals())
    plan = _plan(strategies, sizes, seeds, epochs, class_weight)
    choice("--prefer", prefer, ("cheap", "best"))
    choice("--metric", metric, _deciding_metrics())
    example = "a duration such as 90s, 30m or 2h"
    limit = None if budget is None else with_unit("--budget", budget, SECONDS, example)
    if dry_run:
        from fx.comparison import preview

        with progress_bars(quiet=json_) as begin:
            planned = preview(images, options, plan, budget=limit, begin=begin)
        return show(planned, json_, lambda: _print_preview(planned))
    from fx.comparison import compare as run_comparison

    with progress_bars(quiet=json_) as begin:
        comparison = run_comparison(
            images,
            options,
            plan,
            metric=metric.replace("-", "_"),
            prefer=prefer,
            wanted=wanted,
            budget=limit,
            log_to=log_to,
            begin=begin,
        )
    return show(comparison, json_, lambda: _print(comparison))


def _deciding_metrics() -> tuple[str, ...]:
    from heads.metrics import METRICS

    found = (METRICS[name] for name in METRICS)
    return tuple(one.name.replace("_", "-") for one in found if one.per_image is not None)


def _plan(
    strategies: str, sizes: str, seeds: int, epochs: int | None, class_weight: str | None
) -> Plan:
    from fx.comparison import Plan

    words = names_in(sizes)
    if not all(word.isdecimal() for word in words):
        raise typer.BadParameter(f"--sizes must be numbers between commas; got {sizes!r}")
    try:
        return Plan(names_in(strategies), tuple(map(int, words)), seeds, epochs, class_weight)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _print(comparison: Comparison) -> None:
    print_comparison(comparison)
    _print_skipped([(one.strategy, one.n_train, one.reason) for one in comparison.skipped])
    for flips in comparison.flips:
        print_wrapped(f"{flips.backbone}: {flips.said}.")
    for note in comparison.notes:
        print_wrapped(f"{note}.")
    print_wrapped(comparison.recommendation)
    if comparison.quadrant:
        print_wrapped(comparison.quadrant.said)
    print(f"report: {comparison.report}")


def _print_skipped(cells: Iterable[tuple[str, int, str]]) -> None:
    """Print what was not measured, and why: a line for every strategy, size and reason."""
    for strategy, size, reason in dict.fromkeys(cells):
        print(f"left out: {strategy} at {size:,}: {reason}")


def _print_preview(planned: Preview) -> None:
    """Print what a comparison would measure, and what it would take."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for cell in planned.cells:
        seconds.setdefault((cell.strategy, cell.n_train), []).append(cell.seconds)
    rows = [
        [strategy, size, len(each), round(each[0])]
        for (strategy, size), each in sorted(seconds.items())
    ]
    print_table(["strategy", "images", "seeds", "seconds each"], rows)
    reason = "would not fit the budget"
    _print_skipped([(one.strategy, one.n_train, reason) for one in planned.skipped])
    extraction, shared = planned.extraction_seconds, planned.shared_seconds
    print(f"extracting features: {extraction:,.0f} s; running frozen blocks: {shared:,.0f} s")
    print(
        f"in all about {rough_duration(planned.seconds)} at most, "
        f"{planned.disk_mb:,.0f} MB on the disk"
    )
    print("as if nothing were there yet: what is finished takes no time again")
