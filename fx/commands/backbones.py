"""``fx backbones``: what networks there are, and the blocks of one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

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
    record, columns, rows = _all() if name is None else _blocks_of(name)

    def print_all() -> None:
        print_table(columns, rows)
        print(record["note"])

    show(record, json_, print_all)


def _all() -> tuple[dict[str, Any], list[str], list[list[object]]]:
    """What is listed: all backbones as JSON, and as columns and rows of a table."""
    from extract.backbones import list_backbones

    found = [(one, _weights(one)) for one in list_backbones()]
    record = {
        "backbones": [dataclasses.asdict(one) | {"weights": weights} for one, weights in found],
        "note": "and timm/NAME for any of timm's; blocks of one: fx backbones NAME",
    }
    rows: list[list[object]] = [[one.name, one.dim, one.parameters, of] for one, of in found]
    return record, ["backbone", "features", "parameters", "weights"], rows


def _weights(backbone: BackboneInfo) -> str:
    if not backbone.pretrained:
        return "none"
    return "at hand" if backbone.at_hand else "to download"


def _blocks_of(name: str) -> tuple[dict[str, Any], list[str], list[list[object]]]:
    """The same of the numbered blocks of one, input side first; no weights are needed."""
    from extract.backbones import backbone_info, cut_points
    from finetune.blocks import find_blocks

    backbone, module = backbone_info(name)
    found = [
        (one, "×".join(map(str, one.output_shape)))
        for one in find_blocks(module, backbone.size, cut_points(name))
    ]
    record = {
        "backbone": name,
        "dim": backbone.dim,
        "size": backbone.size,
        "blocks": [dataclasses.asdict(one) | {"output": output} for one, output in found],
        "note": f"{backbone.dim:,} features from images of {backbone.size} pixels a side\n"
        f"fx finetune --unfreeze K trains the last K of these {len(found)} blocks",
    }
    rows: list[list[object]] = []
    for one, output in found:
        short = one.name.replace("features.", "")
        rows.append([one.number, short, one.parameters, f"{100 * one.flops_share:>3.0f} %", output])
    return record, ["block", "name", "parameters", "compute", "output"], rows
