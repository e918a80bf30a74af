"""The commands that say which strategy to use: by measuring, and before anything is trained."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands.arguments import (
    DATA,
    FEATURES,
    MAX_IMAGE_MB,
    RUNS,
    BatchSize,
    Channels,
    ClassWeight,
    Debug,
    Device,
    EngineName,
    Fresh,
    Images,
    Json,
    MaxImageMB,
    Out,
    Precision,
    Seed,
    Size,
    SplitSeed,
    Store,
    Weights,
    choice,
    names_in,
    seconds_in,
    show,
)
from fx.output import print_comparison, progress_bars

if TYPE_CHECKING:
    from fx.comparison.plan import Plan


def compare(
    images: Images = DATA,
    sizes: Annotated[
        str, typer.Option(help="Training images in all. [default: five sizes up to all]")
    ] = "",
    strategies: Annotated[
        str,
        typer.Option(
            help="Of logreg, svm, knn, centroid, finetune:K, finetune:all, scratch, small_cnn."
        ),
    ] = "logreg,svm,finetune:1",
    seeds: Annotated[
        int, typer.Option(min=1, help="Training subsets of each size; fewer of large ones.")
    ] = 3,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of a fine-tuning, at most. [default: 7, up to 24 of few images]"),
    ] = None,
    class_weight: ClassWeight = None,
    prefer: Annotated[
        str, typer.Option(help="cheap: the cheapest about as good as the best; or accuracy.")
    ] = "cheap",
    wanted: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="An accuracy: predict how many images it would take."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="A time such as 30m: measure what fits, by cost_model on this machine."),
    ] = None,
    log_to: Annotated[
        str | None, typer.Option(help="tensorboard or mlflow, where installed: every cell.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be measured, and its time.")
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(help="Network, or several between commas. [default: the last extracted]"),
    ] = None,
    weights: Weights = None,
    size: Size = None,
    channels: Channels = None,
    store: Store = FEATURES,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    batch_size: BatchSize = None,
    max_image_mb: MaxImageMB = MAX_IMAGE_MB,
    split_seed: SplitSeed = 0,
    seed: Seed = 0,
    out: Out = RUNS,
    fresh: Fresh = False,
    json_: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Measure all strategies on the same splits over growing training sets; write a report."""
    from fx.commands.summaries import print_preview
    from fx.comparison.comparison import compare as run_comparison
    from fx.comparison.preview import preview
    from fx.options import Options

    weighing = choice("--class-weight", class_weight, (None, "balanced"))
    plan = _plan(strategies, sizes, seeds, epochs, weighing)
    options = Options(
        store=store,
        out=out,
        backbone=backbone,
        weights=weights,
        size=size,
        channels=channels,
        precision=precision,
        device=device,
        engine=engine,
        batch_size=batch_size,
        split_seed=split_seed,
        seed=seed,
        fresh=fresh,
        max_image_mb=max_image_mb,
    )
    choice("--prefer", prefer, ("cheap", "accuracy"))
    limit = None if budget is None else seconds_in("--budget", budget)
    if dry_run:
        with progress_bars(quiet=json_) as begin:
            planned = preview(images, options, plan, budget=limit, begin=begin)
        show(planned, json_, lambda: print_preview(planned))
        return planned
    with progress_bars(quiet=json_) as begin:
        record = run_comparison(
            images,
            options,
            plan,
            prefer=prefer,
            wanted=wanted,
            budget=limit,
            log_to=choice("--log-to", log_to, (None, "tensorboard", "mlflow")),
            begin=begin,
        )
    show(record, json_, lambda: _tell(record))
    return record


def _plan(
    strategies: str, sizes: str, seeds: int, epochs: int | None, class_weight: str | None
) -> Plan:
    from fx.comparison.plan import Plan

    try:
        of_sizes = tuple(int(word) for word in sizes.split(",") if word.strip())
        return Plan(names_in(strategies), of_sizes, seeds, epochs, class_weight)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _tell(record: dict[str, Any]) -> None:
    from fx.commands.summaries import print_skipped

    print_comparison(record)
    print_skipped(record["skipped"])
    notes = [f"{one['backbone']}: {one['said']}." for one in record["flips"]]
    notes += [f"{note}." for note in record["notes"]]
    for said in (*notes, record["recommendation"], record["quadrant"]["said"]):
        print(textwrap.fill(said, 80))
    print(f"report: {record['report']}")


def advise(
    images: Images = DATA,
    backbone: Annotated[
        str | None,
        typer.Option(help="Network, or several between commas. [default: those at hand]"),
    ] = None,
    weights: Weights = None,
    size: Size = None,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    max_image_mb: MaxImageMB = MAX_IMAGE_MB,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say which strategy to try first and why, before anything is trained."""
    from fx.advice import advise as give_advice
    from fx.commands.summaries import print_advice
    from fx.options import Options

    options = Options(
        backbone=backbone,
        weights=weights,
        size=size,
        precision=precision,
        device=device,
        engine=engine,
        max_image_mb=max_image_mb,
    )
    with progress_bars(quiet=json_) as begin:
        record = give_advice(images, options, begin=begin)
    show(record, json_, lambda: print_advice(record))
