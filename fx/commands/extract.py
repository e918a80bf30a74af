"""The command of stage one."""

from __future__ import annotations

from typing import Annotated

import typer

from fx.commands.arguments import (
    DATA,
    FEATURES,
    MAX_IMAGE_MB,
    Backbone,
    BatchSize,
    Channels,
    Debug,
    Device,
    EngineName,
    Images,
    Json,
    MaxImageMB,
    Precision,
    Size,
    SplitSeed,
    Store,
    Weights,
    choice,
    names_in,
    show,
)
from fx.output import progress_bars


def extract(
    images: Images = DATA,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    layer: Annotated[
        str,
        typer.Option(
            help="Where features are taken, several in one pass: pool (what the classifier gets), "
            "any inner layer averaged over its area, NAME:flatten for its whole map."
        ),
    ] = "pool",
    crops: Annotated[
        int, typer.Option(help="1: the centre; 5: and the corners; 10: and mirrored; averaged.")
    ] = 1,
    channels: Channels = None,
    store: Store = FEATURES,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, or float16: half the room. [default: the store's, or float32]"),
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    batch_size: BatchSize = None,
    max_image_mb: MaxImageMB = MAX_IMAGE_MB,
    split_seed: SplitSeed = 0,
    snapshot: Annotated[
        str | None, typer.Option(help="Name for this state of the images. [default: made up]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if an image is bad.")] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read unchanged files too.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Stage one: compute the features of images and keep them in a store."""
    from fx.options import Options
    from fx.stages.extract_stage import extract_images

    options = Options(
        store=store,
        backbone=backbone,
        weights=weights,
        size=size,
        layers=names_in(layer),
        crops=choice("--crops", crops, (1, 5, 10)),
        channels=channels,
        snapshot=snapshot,
        precision=precision,
        device=device,
        engine=engine,
        batch_size=batch_size,
        split_seed=split_seed,
        max_image_mb=max_image_mb,
    )
    with progress_bars(quiet=json_) as begin:
        result = extract_images(
            images,
            options,
            strict=strict,
            rehash=rehash,
            dtype=choice("--dtype", dtype, (None, "float32", "float16")),
            begin=begin,
        )
    from fx.commands.summaries import print_extraction

    show(result, json_, lambda: print_extraction(result))
