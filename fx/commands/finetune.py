"""``fx finetune``: stage three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands import arguments
from fx.commands.arguments import choice, options_in, with_unit
from fx.commands.printing import print_measured, show
from fx.output import number_of, progress_bars

if TYPE_CHECKING:
    from fx.stages.records import FinetunedModel

BYTES = {"B": 1, "": 1}
for power, prefix in enumerate("KMGT", 1):
    BYTES |= {prefix: 1000**power, f"{prefix}B": 1000**power}


def finetune(
    images: arguments.Images = arguments.DATA,
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
            help="Settings to begin with. keras-guide: Adam at 1e-5 for ten epochs; two-phase: the "
            "classifier alone, then the blocks at 1e-5. Other options override it."
        ),
    ] = "default",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs at most. [default: the recipe's; else 7, and up to 24 with few images]",
        ),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE|auto",
            help="Peak learning rate; auto: by a range test on training images. "
            "[default: the recipe's; else 3e-4, or 1e-3 from scratch]",
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Factor of the learning rate from each block to the one before. [default: 0.7]"
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Label smoothing. [default: the recipe's; else 0.1]"),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Dropout before the classifier. [default: 0.2]"),
    ] = None,
    batch_norm: Annotated[
        str,
        typer.Option(
            "--bn",
            help="Statistics of batch norm. inference: the pretrained ones; train: those of each "
            "batch, as always from scratch.",
        ),
    ] = "inference",
    augment: Annotated[
        str | None,
        typer.Option(
            help="none, flip, course (rotate, shift, shear, zoom, flip), trivial, or auto: flip if "
            "the head recognises mirrored images as well. [default: the recipe's; else auto]"
        ),
    ] = None,
    mix: Annotated[str | None, typer.Option(help="mixup or cutmix. [default: neither]")] = None,
    views: Annotated[
        int, typer.Option(min=1, help="Augmented versions of each image for frozen blocks.")
    ] = 8,
    class_weight: arguments.ClassWeight = None,
    cache_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Most disk space for outputs of frozen blocks.")
    ] = "20GB",
    batch_size: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Images in one step. [default: 32]")
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images in memory at once; gradients add up. [default: all]"),
    ] = None,
    backbone: arguments.Backbone = None,
    weights: arguments.Weights = None,
    size: arguments.Size = None,
    channels: arguments.Channels = None,
    store: arguments.Store = arguments.FEATURES,
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
    log_to: arguments.LogTo = None,
    split_seed: arguments.SplitSeed = 0,
    near_copies: arguments.NearCopies = "group",
    seed: arguments.Seed = 0,
    out: arguments.Out = arguments.RUNS,
    fresh: arguments.Fresh = False,
    per_class: arguments.PerClass = False,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Stage three: train the last blocks of a network."""
    # of its batch size, that of training, the settings know
    options = options_in(locals(), batch_size=None)
    settings: dict[str, Any] = {
        "unfreeze": _depth(unfreeze, from_scratch),
        "from_scratch": from_scratch,
        "epochs": epochs,
        "learning_rate": _number_or_auto("--learning-rate", learning_rate, float),
        "layer_decay": layer_decay,
        "label_smoothing": label_smoothing,
        "dropout": dropout,
        "batch_norm": choice("--bn", batch_norm, ("inference", "train")),
        "augment": choice("--augment", augment, ("auto", "none", "flip", "course", "trivial")),
        "mix": choice("--mix", mix, ("mixup", "cutmix")),
        "views": views,
        "class_weight": class_weight,
        "batch_size": _number_or_auto("--batch-size", batch_size, int),
        "micro_batch": micro_batch,
    }
    choice("--recipe", recipe, ("default", "keras-guide", "two-phase"))
    limit = with_unit("--cache-limit", cache_limit, BYTES, "a size such as 20GB or 500MB")
    from fx.stages.finetune import finetune_images

    with progress_bars(quiet=json_) as begin:
        result = finetune_images(
            images,
            options,
            recipe=recipe,
            cache_limit=int(limit),
            log_to=log_to,
            begin=begin,
            **settings,
        )
    return show(result, json_, lambda: _print(result, per_class))


def _print(result: FinetunedModel, per_class: bool) -> None:
    what = "trained from scratch" if result.from_scratch else f"unfreeze {result.unfreeze}"
    chosen = result.best_epoch
    kept = f"epoch {chosen} kept" if chosen else "the head it began as is kept"
    details = [
        f"{result.trainable_parameters:,} parameters trained for "
        f"{number_of(result.epochs, 'epoch')}: {kept}",
        f"what is kept was fitted on {number_of(result.n_fitted, 'image')}",
    ]
    print_measured(result, f"{result.backbone}, {what}", details, per_class)
    print(f"saved in {result.path}")


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
