"""``fx predict``: labels for new images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from fx.commands import arguments
from fx.commands.arguments import options_in
from fx.commands.command import with_options
from fx.commands.printing import SHOWN, print_some, print_wrapped, show
from fx.output import printable, progress_bars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fx.options import Options
    from fx.stages.records import Prediction, Predictions

EMPTY = "(empty set)"
EXPORTED = ".onnx"


def predict(
    model: Annotated[
        Path, typer.Argument(help="Folder written by fit-head or finetune, or file of export.")
    ],
    images: Annotated[
        Path, typer.Argument(help="Folder, table or image; - for paths on standard input.")
    ],
    reject: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Give no label to images unlike the training images; this share of images like "
            "them goes without one, too.",
        ),
    ] = None,
    conformal: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Give sets of labels; of each class this share of them holds the true one.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(metavar="K", min=0, help="Tell the K likeliest classes.")] = 0,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Tell those of all classes, in what is saved.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save a table: .csv, .jsonl or .parquet."),
    ] = None,
    sort_into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Copy images into a folder for each label; nothing is overwritten."
        ),
    ] = None,
    links: Annotated[
        bool, typer.Option("--links", help="With --sort-into: link images instead.")
    ] = False,
    precision: arguments.StoredPrecision = "auto",
    device: arguments.Device = "auto",
    engine: arguments.EngineName = "auto",
    batch_size: arguments.BatchSize = None,
    path_column: arguments.PathColumn = None,
    root: arguments.Root = None,
    max_image_mb: arguments.MaxImageMB = arguments.MAX_IMAGE_MB,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Label new images with a head or a fine-tuned network."""
    options = options_in(locals())
    from extract.files import place
    from fx.stages.predictions import Wanted, check_table, save_predictions, sort_images

    if save:
        check_table(save)
    if links and sort_into is None:
        raise typer.BadParameter("--links goes with --sort-into")
    wanted = Wanted(top, probabilities)
    with progress_bars(quiet=json_) as begin:
        if model.suffix.lower() == EXPORTED:
            # without torch and scikit-learn
            from fx.export.runtime import predict_file

            _refuse_what_files_lack(options, reject, conformal)
            found = predict_file(model, images, options, wanted=wanted, begin=begin)
        else:
            from fx.stages.predict import predict_images

            found = predict_images(
                model,
                images,
                options,
                reject=reject,
                conformal=conformal,
                wanted=wanted,
                begin=begin,
            )
    if save:
        save_predictions(save, found)
        found = replace(found, saved=str(save))
    if sort_into is not None:
        done = sort_images(sort_into, place(found.root), found.predictions, links=links)
        found = replace(found, sorted=done)
    return show(found, json_, lambda: _print(found))


def _refuse_what_files_lack(
    options: Options, reject: float | None, conformal: float | None
) -> None:
    """Refuse options of a model's folder, whose limits and networks an exported file has not."""
    asked = {name: getattr(options, name) for name in ("precision", "device", "engine")}
    given = [name for name, value in asked.items() if value != "auto"]
    more = {"reject": reject, "conformal": conformal, "batch-size": options.batch_size}
    given += [name for name, value in more.items() if value is not None]
    if given:
        raise typer.BadParameter(
            f"--{given[0]} is not for exported files; predict with the model's folder"
        )


def _print(found: Predictions) -> None:
    from fx.stages.records import Sorted

    if found.saved is UNSET and found.sorted is UNSET:
        _print_each(found.predictions)
    if isinstance(found.saved, str):
        print(printable(f"saved {len(found.predictions):,} predictions in {found.saved}"))
    if isinstance(found.sorted, Sorted):
        done = found.sorted
        print(
            printable(
                f"sorted into {done.path}: {done.written:,}, already there: {done.already_there:,}"
            )
        )
    if isinstance(found.rejected, int):
        print(f"none of these: {found.rejected:,} of {len(found.predictions):,} images")
    if isinstance(found.mean_set_size, float):
        empty = sum(not one.labels for one in found.predictions)
        print(f"mean size of the sets of labels: {found.mean_set_size:.2f}; empty: {empty:,}")
    for note in found.notes:
        print_wrapped(with_options(f"note: {note}"))
    print_some("unreadable", [f"{one.path}: {one.reason}" for one in found.failed])


def _print_each(predictions: Sequence[Prediction]) -> None:
    from rich.cells import cell_len

    labels = [printable(_answer(one)) for one in predictions]
    width = max(map(cell_len, labels), default=0)
    for label, one in zip(labels, predictions, strict=True):
        # letters of some scripts are two columns wide
        padding = " " * (width - cell_len(label))
        sure = "     " if one.probability is None else f"{one.probability:.3f}"
        print(f"{sure}  {label}{padding}  {printable(one.path)}")


def _answer(prediction: Prediction) -> str:
    if prediction.label is None:
        return "none of these"
    if isinstance(prediction.top, tuple):
        first, *others = prediction.top
        return ", ".join([first.label, *(f"{one.label} {one.probability:.3f}" for one in others)])
    if isinstance(prediction.labels, UnsetType):
        return prediction.label
    labels = prediction.labels
    more = [f"{len(labels) - SHOWN:,} more"] if len(labels) > SHOWN else []
    return " | ".join([*labels[:SHOWN], *more]) or EMPTY
