"""The command of stage three, which has settings of its own."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from fx.commands.arguments import (
    DATA,
    FEATURES,
    MAX_IMAGE_MB,
    RUNS,
    Backbone,
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
    show,
)
from fx.output import progress_bars

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def finetune(
    images: Images = DATA,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            metavar="K|all", help="Last blocks to train; 0: the classifier alone. [default: 1]"
        ),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin with random weights.")
    ] = False,
    recipe: Annotated[
        str,
        typer.Option(
            help="default; keras-guide: Adam, 1e-5, ten epochs; two-phase: the classifier alone, "
            "then the blocks at 1e-5. What is asked for beside it takes its place."
        ),
    ] = "default",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="At most. [default: the recipe's, or 7, up to 24 of few images]"),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE|auto",
            help="At its peak; auto: by a range test on training images. "
            "[default: the recipe's, or 3e-4; 1e-3 from scratch]",
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(help="The rate's factor from each block to the one before. [default: 0.7]"),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="[default: the recipe's, or 0.1]")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Before the classifier. [default: 0.2]")
    ] = None,
    bn: Annotated[
        str,
        typer.Option(
            help="inference: batch norm keeps the pretrained statistics, for those of small "
            "batches are noise; train: it takes the batches' own. From scratch it trains."
        ),
    ] = "inference",
    augment: Annotated[
        str | None,
        typer.Option(
            help="auto (flip, if the head tells mirrored images as well), none, flip, course "
            "(rotate, shift, shear, zoom, flip) or trivial. [default: the recipe's, or auto]"
        ),
    ] = None,
    mix: Annotated[str | None, typer.Option(help="mixup or cutmix. [default: neither]")] = None,
    views: Annotated[
        int, typer.Option(min=1, help="Augmented images of an image kept for frozen blocks.")
    ] = 8,
    class_weight: ClassWeight = None,
    cache_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Most disk space for frozen blocks' outputs.")
    ] = "20GB",
    batch_size: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Images a step. [default: 32]")
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images in memory at once; gradients add up. [default: all]"),
    ] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    channels: Channels = None,
    store: Store = FEATURES,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    max_image_mb: MaxImageMB = MAX_IMAGE_MB,
    log_to: Annotated[
        str | None, typer.Option(help="tensorboard or mlflow, where installed.")
    ] = None,
    split_seed: SplitSeed = 0,
    seed: Seed = 0,
    out: Out = RUNS,
    fresh: Fresh = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Stage three: train the last blocks of a network, starting from the fitted head."""
    from fx.commands.summaries import print_measured
    from fx.options import Options
    from fx.stages.finetune_stage import finetune_images

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
        split_seed=split_seed,
        seed=seed,
        fresh=fresh,
        max_image_mb=max_image_mb,
    )
    chosen: dict[str, Any] = {
        "unfreeze": _depth(unfreeze, from_scratch),
        "from_scratch": from_scratch,
        "epochs": epochs,
        "learning_rate": _number_or_auto("--learning-rate", learning_rate, float),
        "layer_decay": layer_decay,
        "label_smoothing": label_smoothing,
        "dropout": dropout,
        "batch_norm": choice("--bn", bn, ("inference", "train")),
        "augment": choice(
            "--augment", augment, (None, "auto", "none", "flip", "course", "trivial")
        ),
        "mix": choice("--mix", mix, (None, "mixup", "cutmix")),
        "views": views,
        "class_weight": choice("--class-weight", class_weight, (None, "balanced")),
        "batch_size": _number_or_auto("--batch-size", batch_size, int),
        "micro_batch": micro_batch,
    }
    with progress_bars(quiet=json_) as begin:
        record = finetune_images(
            images,
            options,
            recipe=choice("--recipe", recipe, ("default", "keras-guide", "two-phase")),
            cache_limit=_bytes("--cache-limit", cache_limit),
            log_to=choice("--log-to", log_to, (None, "tensorboard", "mlflow")),
            begin=begin,
            **chosen,
        )
    what = "trained from scratch" if from_scratch else f"unfreeze {record['unfreeze']}"
    show(record, json_, lambda: print_measured(record, f"{record['backbone']}, {what}"))


def _depth(unfreeze: str | None, from_scratch: bool) -> int | str:
    depth = unfreeze or ("all" if from_scratch else "1")
    if from_scratch and depth != "all":
        raise typer.BadParameter(f"--from-scratch trains everything; got --unfreeze {depth}")
    if depth != "all" and not depth.isdecimal():
        raise typer.BadParameter(f"a number of blocks or 'all'; got {unfreeze!r}")
    return "all" if depth == "all" else int(depth)


def _number_or_auto(name: str, text: str | None, kind: type[int] | type[float]) -> Any:
    if text is None or text == "auto":
        return text
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < float("inf"):
        raise typer.BadParameter(f"{name} must be a number above 0, or auto; got {text!r}")
    return number


def _bytes(name: str, text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not found:
        raise typer.BadParameter(f"{name} must be a size such as 20GB or 500MB; got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])
