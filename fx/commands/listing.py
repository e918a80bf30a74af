"""What there is: backbones, a backbone's blocks, a store's contents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.backbones import BackboneInfo
    from extract.store import FeatureSet


def describe_backbones() -> dict[str, Any]:
    """List the backbones: ``backbones`` (name, dim, parameters, weights) and a ``note``."""
    import dataclasses

    from extract.backbones import list_backbones

    return {
        "backbones": [
            {
                **dataclasses.asdict(backbone),
                "weights": _weights(backbone),
            }
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
    import dataclasses

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


def describe_store(path: Path) -> dict[str, Any]:
    """List a store's feature sets and snapshots.

    Raises
    ------
    FxError
        If there is no store.
    """
    from extract.errors import FxError
    from extract.images import Snapshot
    from extract.store import FeatureStore

    store = FeatureStore(path)
    snapshots, damaged = [], store.broken_sets()
    if reason := store.root_damage():
        damaged[str(path)] = reason

    def rows_of(feature_set: FeatureSet) -> int:
        try:
            return len(feature_set.rows)
        except FxError as error:
            damaged[feature_set.name] = str(error)
            return 0

    for name in store.snapshots():
        try:
            snapshots.append(Snapshot.from_parquet(*store.read_snapshot(name)))
        except FxError as error:
            damaged[name] = str(error)
    return {
        "store": str(path),
        "sets": [
            {
                "name": feature_set.name,
                "spec": feature_set.spec,
                "weights_source": feature_set.weights_source,
                "rows": rows_of(feature_set),
                "dim": feature_set.dim,
                "dtype": str(feature_set.dtype),
                "megabytes": sum(f.lstat().st_size for f in feature_set.path.rglob("*")) / 1e6,
                "engines": sorted({str(run["engine"]) for run in feature_set.runs}),
            }
            for feature_set in store.sets()
        ],
        "snapshots": [
            {
                "name": snapshot.name,
                "root": snapshot.root,
                "images": len(snapshot.rows),
                "classes": len(snapshot.classes),
                "train": len(snapshot.split("train")),
                "val": len(snapshot.split("val")),
                "test": len(snapshot.split("test")),
                "failed": len(snapshot.failed()),
            }
            for snapshot in snapshots
        ],
        "damaged": damaged,
    }
