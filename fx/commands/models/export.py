"""``fx export``: a model in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fx.commands import arguments
from fx.commands.printing import show
from fx.output import printable

if TYPE_CHECKING:
    from fx.stages.records import ExportedModel


def export(
    model: Annotated[Path, typer.Argument(help="Folder written by fit-head or finetune.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="To write.")],
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Write a model as one ONNX file, from pixels to probabilities."""
    from fx.export.onnx_file import export_onnx

    result = export_onnx(model, file)
    show(result, json_, lambda: _print(result))


def _print(result: ExportedModel) -> None:
    print(printable(f"{result.path}: {result.megabytes:.1f} MB, {len(result.classes)} classes"))
    print("input images: uint8 (n, height, width, 3), of any n, height and width")
    print("output probabilities: float32 (n, classes); fx.classes in its metadata names them")
    print(f"tried on noise: probabilities differ by {result.largest_difference:.1e} at the most")
    print(
        printable(f"described in {result.card}")
        if result.card
        else "its result is not kept: no card"
    )
