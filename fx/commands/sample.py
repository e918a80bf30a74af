"""``fx sample``: write a sample data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fx.commands.arguments import DATA, Debug, Json
from fx.commands.printing import show
from fx.output import progress_bars


def sample(
    name: Annotated[
        str, typer.Argument(help="digits, which needs no network; or cifar10, pets, ….")
    ],
    directory: Annotated[Path, typer.Argument(help="Folder to write to.")] = DATA,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write a sample data set as class folders."""
    from fx.stages.samples import write_sample

    with progress_bars(quiet=json_) as begin:
        written = write_sample(name, directory, begin=begin)
    classes = len(written.classes)
    show(
        written,
        json_,
        lambda: print(f"{written.images} images of {classes} classes in {written.path}"),
    )
