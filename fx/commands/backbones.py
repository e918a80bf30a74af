"""``fx backbones``: what networks there are, and the blocks of one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from fx.commands.arguments import Debug, Json
from fx.commands.printing import show
from fx.output import print_table

if TYPE_CHECKING:
    from extract.backbones import BackboneInfo


def backbones(
    name: Annotated[str | None, typer.Argument(help="Backbone whose blocks to list.")] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the backbones, or the numbered blocks of one."""
    if name is None:
        _list(json_)
    else:
        _list_blocks(name, json_)


def _list(as_json: bool) -> None:
    from extract.backbones import list_backbones

    note = "and timm/NAME for any of timm's; blocks of one: fx backbones NAME"
    found = [(one, _weights(one)) for one in list_backbones()]
    records = [dataclasses.asdict(one) | {"weights": weights} for one, weights in found]

    def print_all() -> None:
        columns = ["backbone", "features", "parameters", "weights"]
        rows = [[one.name, one.dim, one.parameters, weights] for one, weights in found]
        print_table(columns, rows)
        print(note)

    show({"backbones": records, "note": note}, as_json, print_all)


def _weights(backbone: BackboneInfo) -> str:
    if not backbone.pretrained:
        return "none"
    return "at hand" if backbone.at_hand else "to download"


def _list_blocks(name: str, as_json: bool) -> None:
    """List numbered blocks, input side first; no weights are needed."""
    from extract.backbones import backbone_info, cut_points
    from finetune.blocks import find_blocks

    backbone, module = backbone_info(name)
    found = [
        (one, "×".join(map(str, one.output_shape)))
        for one in find_blocks(module, backbone.size, cut_points(name))
    ]
    records = [dataclasses.asdict(one) | {"output": output} for one, output in found]
    note = (
        f"{backbone.dim:,} features from images of {backbone.size} pixels a side\n"
        f"fx finetune --unfreeze K trains the last K of these {len(found)} blocks"
    )

    def print_all() -> None:
        columns = ["block", "name", "parameters", "compute", "output"]
        rows = [
            [
                one.number,
                one.name.replace("features.", ""),
                one.parameters,
                f"{100 * one.flops_share:>3.0f} %",
                output,
            ]
            for one, output in found
        ]
        print_table(columns, rows)
        print(note)

    about = {"backbone": name, "dim": backbone.dim, "size": backbone.size}
    show(about | {"blocks": records, "note": note}, as_json, print_all)
