"""``fx extract``: stage one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands import arguments
from fx.commands.arguments import choice, options_in
from fx.commands.printing import print_some, print_wrapped, show
from fx.options import names_in
from fx.output import counted, number_of, printable, progress_bars, rate

if TYPE_CHECKING:
    from extract.extraction import ExtractResult


def extract(
    images: arguments.Images = arguments.DATA,
    backbone: arguments.Backbone = None,
    weights: arguments.Weights = None,
    size: arguments.Size = None,
    layer: Annotated[
        str,
        typer.Option(
            help="Layers of the network, between commas. pool: the classifier's input; NAME: an "
            "inner layer, averaged over its area; NAME:flatten: its whole map."
        ),
    ] = "pool",
    crops: Annotated[
        int,
        typer.Option(
            help="Crops of an image whose features are averaged. 1: the centre; 5: the corners "
            "too; 10: these mirrored too."
        ),
    ] = 1,
    channels: arguments.Channels = None,
    store: arguments.Store = arguments.FEATURES,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the stored features: float32, or float16, which takes half the space. "
            "[default: the store's, or float32]"
        ),
    ] = None,
    precision: arguments.StoredPrecision = "auto",
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
    snapshot: Annotated[
        str | None,
        typer.Option(help="Name for this state of the images. [default: made of the folder's]"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if an image cannot be read.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read files that look unchanged, too.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ray|ADDRESS",
            help="Compute on a Ray cluster: ray://HOST:PORT, or ray for that of RAY_ADDRESS or, "
            "without it, one on this machine. The images and the store lie where all machines see "
            "them.",
        ),
    ] = None,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Stage one: compute features of images into a store."""
    options = options_in(
        locals(), layers=names_in(layer), crops=choice("--crops", crops, (1, 5, 10))
    )
    choice("--dtype", dtype, ("float32", "float16"))
    from fx.stages.extract import extract_images

    with progress_bars(quiet=json_) as begin:
        result = extract_images(
            images,
            options,
            strict=strict,
            rehash=rehash,
            dtype=dtype,
            cluster=cluster,
            begin=begin,
        )
    return show(result, json_, lambda: _print(result))


def _print(result: ExtractResult) -> None:
    """Print what an extraction did, and every oddity that the user should know of."""
    print(
        f"{number_of(result.images, 'image')}: {result.new:,} computed, "
        f"{result.reused:,} already there, {len(result.failed):,} unreadable"
    )
    widths = " + ".join(
        f"{one.dim:,}" if one.layer == "pool" else f"{one.dim:,} ({one.layer})"
        for one in result.layers
    )
    how = result.precision + (f", {result.crops} crops" if result.crops > 1 else "")
    print(
        f"{result.backbone}, {widths} features each, {how}, {result.engine}: "
        f"{result.seconds:.1f} s, {rate(result.images_per_second, 0, ' images')}"
    )
    splits = [f"{sum(counts.values()):,} {name}" for name, counts in result.splits.items()]
    if splits:
        classes = len(next(iter(result.splits.values())))
        print(f"{number_of(classes, 'class')}; {', '.join(splits)}")
    else:
        unnamed = result.columns and "label" not in result.columns
        hint = ": no column of the table is called label; name it by --label-column"
        print(f"no labels{hint if unnamed else ''}")
    if result.left_out:
        print_wrapped(f"classes left out: {counted(result.left_out)}")
    if result.too_few:
        print_wrapped(
            "too few training images, which heads and fine-tuning refuse: "
            f"{counted(result.too_few)}; add images, take such classes away, or leave "
            "out those of fewer than N images in all by --min-images N"
        )
    if result.columns:
        used = [f"{what} {name!r}" for what, name in result.columns.items()]
        print_wrapped(printable(f"columns of the table: {', '.join(used)}"))
    if result.passed_over:
        print_wrapped(f"passed over: {counted(result.passed_over)}")
    print_some("unreadable", [f"{one.path}: {one.reason}" for one in result.failed])
    print_some(
        "very small or narrow, so that the network sees little",
        [f"{one.path}: {one.width:,} by {one.height:,} pixels" for one in result.odd],
    )
    print_some("copies, counted once", [f"{one.path} = {one.copy_of}" for one in result.duplicates])
    print_some("same bytes under two labels, in no split", result.conflicts)
    print_some(
        "leaks between splits",
        [
            f"{one.path} ({one.split}) ~ "
            f"{one.copy or one.near_copy or f'group {one.group!r}'} ({one.other})"
            + (f", {one.kind}" if one.kind else "")
            for one in result.leaks
        ],
    )
    if result.leaks_not_sought:
        print(result.leaks_not_sought)
    for note in result.notes:
        print_wrapped(printable(f"note: {note}"))
    print(f"store {result.store}, snapshot {result.snapshot}")
