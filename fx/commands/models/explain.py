"""``fx explain``: heat maps, and the nearest training images."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands import arguments
from fx.commands.arguments import options_in
from fx.commands.printing import WIDTH, print_some, print_wrapped, show
from fx.output import printable, progress_bars

if TYPE_CHECKING:
    from fx.explain import Explanation, Explanations

INDENT = 7 * " "  # below the label


def explain(
    model: Annotated[Path, typer.Argument(help="Folder written by fit-head or finetune.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="Images, folders or tables.")
    ],
    class_: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="To explain. [default: the one predicted]"),
    ] = None,
    nearest: Annotated[
        int, typer.Option(metavar="K", min=0, help="Training images to show beside each.")
    ] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the page and the PNGs.")] = Path(
        "explained"
    ),
    store: arguments.Store = arguments.FEATURES,
    precision: arguments.StoredPrecision = "auto",
    device: arguments.Device = "auto",
    engine: arguments.EngineName = "auto",
    batch_size: arguments.BatchSize = None,
    max_image_mb: arguments.MaxImageMB = arguments.MAX_IMAGE_MB,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Show heat maps and the nearest training images."""
    options = options_in(locals())
    from fx.explain import explain_images

    with progress_bars(quiet=json_) as begin:
        result = explain_images(model, images, options, label=class_, nearest=nearest, begin=begin)
    return show(result, json_, lambda: _print(result))


def _print(result: Explanations) -> None:
    for one in result.explanations:
        print(printable(f"{one.probability:.3f}  {one.label}  {one.path}"))
        for line in _details(one):
            print(
                textwrap.fill(
                    printable(line), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT
                )
            )
    for note in result.notes:
        print_wrapped(printable(f"note: {note}"))
    print_some("unreadable", [f"{one.path}: {one.reason}" for one in result.failed])
    print(printable(f"page: {result.page}"))


def _details(one: Explanation) -> list[str]:
    lines = []
    if one.explained != one.label:
        lines.append(f"explained: {one.explained} ({one.explained_probability:.3f})")
    if one.heat is False:
        lines.append(f"nothing in it speaks for {one.explained}")
    if one.nearest:
        near = ", ".join(f"{each.label} {each.distance:.2f}" for each in one.nearest)
        lines.append(f"nearest training images: {near}")
    return lines
