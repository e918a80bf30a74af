"""``fx sample`` writes a data set; ``fx demo`` runs all stages on one, as commands to type."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from extract.files import on_this_machine
from fx.commands.arguments import DATA, RUNS, Debug, Json
from fx.commands.printing import show
from fx.output import progress_bars

# Digits of 8×8 pixels gain nothing from 224 of the network's, and take five times as long.
SIZE = 96


def sample(
    name: Annotated[
        str, typer.Argument(help="digits, which needs no network; or cifar10, pets, ….")
    ],
    directory: Annotated[Path, typer.Argument(help="Folder to write to.")] = DATA,
    json_: Json = False,
    debug: Debug = False,
) -> Any:
    """Write a sample data set as class folders."""
    from fx.stages.samples import write_sample

    with progress_bars(quiet=json_) as begin:
        written = write_sample(name, directory, begin=begin)
    classes = len(written.classes)
    return show(
        written,
        json_,
        lambda: print(f"{written.images} images of {classes} classes in {written.path}"),
    )


def demo(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Folder for the images and all results.")] = (
        RUNS / "demo"
    ),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Run all stages on a sample data set, offline."""
    app = context.find_root().command

    def run(words: Sequence[str]) -> Any:
        return app.main(list(words), prog_name="fx", standalone_mode=False)

    # with --json, what the single commands print is no part of the one object on stdout
    with redirect_stdout(sys.stderr) if json_ else nullcontext():
        comparison = run_demo(directory, run=run)
    show(comparison, json_, lambda: None)


def demo_commands(directory: Path) -> list[list[str]]:
    """List the commands of the demonstration, without ``fx``."""
    data, store, out = str(directory / "data"), str(directory / "features.zarr"), str(directory)
    where = ["--store", store, "--out", out]
    return [
        ["sample", "digits", data],
        ["extract", data, "--store", store, "--size", str(SIZE)],
        ["fit-head", "logreg", store, "--out", out],
        ["fit-head", "svm", store, "--out", out],
        ["finetune", data, "--unfreeze", "1", *where],
        ["compare", data, *where],
    ]


def run_demo(directory: Path, *, run: Callable[[Sequence[str]], Any]) -> Any:
    """Run the demonstration's commands in a row, printing each on stderr.

    Parameters
    ----------
    directory : gets the images, the store, the heads, the network and the report
    run : runs one command of ``fx`` and returns what it returned

    Returns
    -------
    what the last command, the comparison, returned

    Raises
    ------
    SystemExit
        If a command ended with a status other than 0.
    """
    on_this_machine(directory).mkdir(parents=True, exist_ok=True)
    answer: Any = None
    for words in demo_commands(directory):
        print(f"\n$ fx {shlex.join(words)}", file=sys.stderr, flush=True)
        answer = run(words)
        # typer returns the status of a command that was interrupted
        if isinstance(answer, int) and answer:
            raise SystemExit(answer)
    return answer
