"""What a comparison would measure, and what it would take; only short trials are run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.cells import Bench
from fx.networks import check_depths, name_with_network, networks_of, settled
from fx.options import Options, open_backbone
from fx.plan import Plan, subset_sizes
from fx.trials import Amounts, Trials, within_budget

if TYPE_CHECKING:
    from extract import ImageSource

Begin = Callable[[str], Callable[[int, int], None]]


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
    from extract import find_images

    source = find_images(images)
    available, amounts = amounts_of(source)
    record: dict[str, Any] = {"images": str(images), "n_train": available, "n_test": amounts.test}
    cells: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    extraction = shared = disk = 0.0
    networks = networks_of(options, plan)
    left = budget
    for number, (asked, planned) in enumerate(networks):
        tick = begin("trying")
        backbone = open_backbone(asked)
        check_depths(planned, backbone)
        bench = Bench(settled(asked, backbone), plan.epochs, "", "", options.out)
        trials = Trials(bench, source, amounts)
        sizes = subset_sizes(planned.sizes, available, amounts.classes)
        all_cells = list(planned.cells(sizes, available, options.seed))
        chosen = all_cells
        if left is not None:
            left -= trials.extraction()
            chosen = within_budget(all_cells, trials, left / (len(networks) - number), [])
        before = len(cells)
        for cell in all_cells:
            name = name_with_network(cell.strategy, backbone.name, len(networks) > 1)
            found = cell._asdict() | {"strategy": name, "seconds": trials.cell(cell)}
            (cells if cell in chosen else skipped).append(found)
        used = {cell.strategy for cell in chosen}
        extraction += trials.extraction()
        of_network = sum(trials.shared(strategy) for strategy in used)
        shared += of_network
        disk += trials.disk(sorted(used), backbone.dim)
        if left is not None:
            left -= of_network + sum(cell["seconds"] for cell in cells[before:])
        tick(1, 1)
    total = extraction + shared + sum(cell["seconds"] for cell in cells)
    return record | {
        "cells": cells,
        "skipped": skipped,
        "extraction_seconds": extraction,
        "shared_seconds": shared,
        "seconds": total,
        "disk_mb": disk / 1e6,
    }


def amounts_of(source: ImageSource) -> tuple[int, Amounts]:
    """Predict how many images train, and the other numbers."""
    from extract import TEST_SHARE, FxError

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
    amounts = Amounts(len(labelled), of_split["test"], of_split["val"], len(source.labels))
    return of_split["train"], amounts
