"""What a comparison would measure, and what it would take; only short cost_model are run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.comparison.cells import ComparisonContext
from fx.comparison.cost import CostModel, DatasetSize, within_budget
from fx.comparison.networks import check_depths, name_with_network, networks_of, settled
from fx.comparison.plan import Plan, subset_sizes
from fx.options import Options, open_backbone
from fx.output import Begin

if TYPE_CHECKING:
    from extract.images import ImageSource


@dataclass(frozen=True)
class _OfNetwork:
    """What measuring with one network would take.

    Attributes
    ----------
    cells, skipped : records of the cells that fit the budget, and of those that would not
    extraction, shared : seconds
    disk : bytes
    """

    cells: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    extraction: float
    shared: float
    disk: int

    @property
    def seconds(self) -> float:
        """Of everything."""
        of_cells: float = sum(cell["seconds"] for cell in self.cells)
        return self.extraction + self.shared + of_cells


def preview(
    images: Path, options: Options, plan: Plan, *, budget: float | None = None, begin: Begin
) -> dict[str, Any]:
    """List the cells of a comparison with their predicted time, as if nothing were there yet.

    Numbers of training images are predicted too: which side an image falls on depends on its
    bytes, which are not read.

    Parameters are those of ``fx.compare``.

    Returns
    -------
    dict that JSON can hold: ``cells`` (``strategy``, ``n_train``, ``seed``, ``seconds``), in
    ``skipped`` those that would not fit the budget; ``extraction_seconds``, ``shared_seconds`` (of
    running frozen blocks over all images), ``seconds`` (of everything), ``disk_mb``

    Raises
    ------
    FxError
        If there are no labelled images, or a network cannot be had.
    """
    from extract.images import find_images

    source = find_images(images, max_image_mb=options.max_image_mb)
    dataset_size = amounts_of(source)
    networks = networks_of(options, plan)
    found: list[_OfNetwork] = []
    left = budget
    for number, (asked, planned) in enumerate(networks):
        tick = begin("trying")
        one = _preview_network(
            asked,
            planned,
            source,
            dataset_size,
            left=left,
            sharers=len(networks) - number,
            several=len(networks) > 1,
        )
        found.append(one)
        if left is not None:
            left -= one.seconds
        tick(1, 1)
    return {
        "images": str(images),
        "n_train": dataset_size.training,
        "n_test": dataset_size.test,
        "cells": [cell for one in found for cell in one.cells],
        "skipped": [cell for one in found for cell in one.skipped],
        "extraction_seconds": sum(one.extraction for one in found),
        "shared_seconds": sum(one.shared for one in found),
        "seconds": sum(one.seconds for one in found),
        "disk_mb": sum(one.disk for one in found) / 1e6,
    }


def _preview_network(
    options: Options,
    plan: Plan,
    source: ImageSource,
    dataset_size: DatasetSize,
    *,
    left: float | None,
    sharers: int,
    several: bool,
) -> _OfNetwork:
    """Say what measuring with one network would take; it may take a share of what is left."""
    backbone = open_backbone(options)
    check_depths(plan, backbone)
    context = ComparisonContext(
        settled(options, backbone), plan.epochs, plan.class_weight, "", "", options.out
    )
    cost_model = CostModel(context, source, dataset_size)
    sizes = subset_sizes(plan.sizes, dataset_size.training, dataset_size.classes)
    cells = list(plan.cells(sizes, dataset_size.training, options.seed))
    chosen = cells
    if left is not None:
        chosen = within_budget(cells, cost_model, (left - cost_model.extraction()) / sharers, [])
    records = {
        cell: cell._asdict()
        | {
            "strategy": name_with_network(cell.strategy, backbone.name, several),
            "seconds": cost_model.cell(cell),
        }
        for cell in cells
    }
    used = sorted({cell.strategy for cell in chosen})
    return _OfNetwork(
        [records[cell] for cell in cells if cell in chosen],
        [records[cell] for cell in cells if cell not in chosen],
        cost_model.extraction(),
        sum((cost_model.shared(strategy) for strategy in used), 0.0),
        cost_model.disk(used, backbone.dim),
    )


def amounts_of(source: ImageSource) -> DatasetSize:
    """Predict how many images there will be of each use."""
    from extract.errors import FxError
    from extract.images import TEST_SHARE

    labelled = [entry for entry in source.entries if entry.label is not None]
    if len(source.labels) < 2:
        raise FxError(
            f"a comparison takes at least two classes; got {len(source.labels)} in {source.root}; "
            "lay images out as one folder a class"
        )
    of_split = dict.fromkeys(("train", "val", "test"), 0)
    for entry in labelled:
        of_split[entry.split or "train"] += 1
    if not of_split["test"]:
        of_split["test"] = round(TEST_SHARE * of_split["train"])
        of_split["train"] -= of_split["test"]
    training, test, validation = (of_split[name] for name in ("train", "test", "val"))
    return DatasetSize(len(labelled), training, test, validation, len(source.labels))
