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
    if name is None:
        record = describe_backbones()
        columns = ["backbone", "features", "parameters", "weights"]
        rows = [[b["name"], b["dim"], b["parameters"], b["weights"]] for b in record["backbones"]]
    else:
        record = describe_backbone(name)
        columns = ["block", "name", "parameters", "compute", "output"]
        rows = [
            [
                b["number"],
                b["name"].replace("features.", ""),
                b["parameters"],
                f"{b['flops_share']:.0%}",
                b["output"],
            ]
            for b in record["blocks"]
        ]

    def table() -> None:
        print_table(columns, rows)
        print(record["note"])

    show(record, json_, table)


def describe_backbones() -> dict[str, Any]:
    """List the backbones: ``backbones`` (name, dim, parameters, weights) and a ``note``."""
    from extract.backbones import list_backbones

    return {
        "backbones": [
            {**dataclasses.asdict(backbone), "weights": _weights(backbone)}
            for backbone in list_backbones()
        ],
        "note": "and timm/NAME for any of timm's; blocks of one: fx backbones NAME",
    }


def _weights(backbone: BackboneInfo) -> str:
    if not backbone.pretrained:
        return "none"
    return "at hand" if backbone.at_hand else "to download"


def describe_backbone(name: str) -> dict[str, Any]:
    """List the numbered blocks of a backbone, input side first; no weights are needed."""
    from extract.backbones import backbone_info
    from finetune.blocks import find_blocks

    backbone, module = backbone_info(name)
    blocks = find_blocks(module, backbone.size)
    return {
        "backbone": name,
        "dim": backbone.dim,
        "size": backbone.size,
        "blocks": [
            {
                **dataclasses.asdict(block),
                "output": "×".join(str(length) for length in block.output_shape),
            }
            for block in blocks
        ],
        "note": (
            f"{backbone.dim} features from images of {backbone.size} pixels a side\n"
            f"fx finetune --unfreeze K trains the last K of these {len(blocks)} blocks"
        ),
    }
