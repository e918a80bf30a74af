"""The comparison: every strategy on the same nested training subsets and the same test rows."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.comparison.cost import CostModel, within_budget
from fx.comparison.crossover import crossover
from fx.comparison.networks import Prepared, measure, name_with_network, networks_of, prepare
from fx.comparison.plan import Plan
from fx.comparison.quadrant import quadrant_of
from fx.comparison.tables import log_results, write_results
from fx.comparison.verdict import (
    differences,
    estimates,
    forecasts,
    paired_tests,
    recommend,
    tables_of,
)
from fx.options import Options
from fx.output import Begin
from fx.runs import finish, run_directory

if TYPE_CHECKING:
    from extract.images import ImageSource

# of single images, and how to read it; kept in the cells' own records
_RAW = ("classes", "predicted", "confidence", "truth")


def compare(
    images: Path,
    options: Options,
    plan: Plan,
    *,
    prefer: str = "cheap",
    wanted: float | None = None,
    budget: float | None = None,
    log_to: str | None = None,
    begin: Begin,
) -> dict[str, Any]:
    """Measure strategies over growing training sets and write the report.

    Every finished cell (strategy, size, seed) is kept, so that an interrupted comparison, or one
    that is asked for more, computes only what is new.

    Parameters
    ----------
    images : folder or table of labelled images
    options : backbone, store and the like; of backbones and weights several, between commas
    plan : what is measured
    prefer : "cheap" recommends the cheapest strategy about as good as the best, "accuracy" the best
    wanted : accuracy; how many images it would take is predicted
    budget : seconds; only cells that are predicted to fit are measured
    log_to : ``tensorboard`` or ``mlflow``, which gets every cell's numbers
    begin : given what is being done, returns a progress callback

    Returns
    -------
    the JSON object of ``fx compare``

    Raises
    ------
    FxError
        If the images do not suffice, or nothing fits the budget.
    """
    from extract.errors import FxError
    from extract.images import find_images
    from extract.store import FeatureStore
    from finetune.training import check_tracker
    from fx.comparison.evidence import gather_evidence
    from fx.report.writing import learning_curve_png, write_report
    from heads.fitting import BALANCED

    begun = time.perf_counter()
    check_tracker(log_to)
    source = find_images(images, max_image_mb=options.max_image_mb)
    prepared = [prepare(source, *one, begin=begin) for one in networks_of(options, plan)]
    cells, skipped = _measure_all(prepared, source, budget, begun, begin)
    if not cells:
        raise FxError(f"nothing was measured: {skipped[0]['strategy']}: {skipped[0]['reason']}")
    tables = tables_of(cells)
    compared = differences(tables)
    recommended = recommend(cells, tables, compared, prefer)
    first = prepared[0]
    directory = _directory(options.out, prepared)
    record = _about(images, options, prepared)
    record |= {
        "results": [{k: v for k, v in cell.items() if k not in _RAW} for cell in cells],
        "skipped": skipped,
        "estimates": estimates(tables),
        "differences": compared,
        "pairs": paired_tests(tables),
        "recommendation": recommended.said,
        "recommended": recommended.strategy,
        "quadrant": quadrant_of(
            first.backbone, first.snapshot, recommended.strategy, options.max_image_mb
        ),
        "crossover": crossover(tables),
        "forecasts": forecasts(tables, wanted),
        "flips": _flips(prepared),
        "notes": [BALANCED] if plan.class_weight else [],
        "extraction_seconds": _sum([one.extraction_seconds for one in prepared]),
        "commands": [_command(images, options, plan, first.sizes)],
        "report": str(directory / "report.html"),
    }
    record = finish(directory, record)
    title = f"fx compare: {images}"
    features = FeatureStore(options.store).open_set(first.extracted.spec)
    shown = gather_evidence(cells, first.snapshot, features)
    write_report(directory / "report.html", record, title=title, evidence=shown)
    learning_curve_png(directory / "learning_curve.png", record)
    write_results(directory, record)
    if log_to is not None:
        log_results(directory, record, log_to)
    return record


def _measure_all(
    prepared: Sequence[Prepared],
    source: ImageSource,
    budget: float | None,
    begun: float,
    begin: Begin,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure the cells of all networks that fit; return them, and those that were left out."""
    several = len(prepared) > 1
    cells: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for number, one in enumerate(prepared):
        todo, reason = one.cells, ""
        if budget is not None:
            spent = time.perf_counter() - begun
            share = (budget - spent) / (len(prepared) - number)
            cost_model = CostModel(one.context, source, one.dataset_size)
            todo = within_budget(one.cells, cost_model, share, one.finished_cells)
            reason = f"would not fit the budget of {budget:,.0f} s"
        measured, failed = measure(one, todo, begin=begin)
        failed += [{**c._asdict(), "reason": reason} for c in one.cells if c not in todo]
        cells += [_named(cell, one, several) for cell in measured]
        skipped += [_named(cell, one, several) for cell in failed]
    return cells, skipped


def _directory(out: Path, prepared: Sequence[Prepared]) -> Path:
    """Folder of the results: that of the network, or one that several share."""
    if len(prepared) == 1:
        return prepared[0].context.directory
    name = "-and-".join(one.backbone.name for one in prepared)
    identity = {"of": [one.context.directory.name for one in prepared]}
    return run_directory(out, f"compare-{name}", identity)


def _named(cell: dict[str, Any], network: Prepared, several: bool) -> dict[str, Any]:
    name = name_with_network(cell["strategy"], network.backbone.name, several)
    return {**cell, "strategy": name}


def _flips(prepared: Sequence[Prepared]) -> list[dict[str, Any]]:
    """What was decided on flips for the fine-tunings of each network."""
    found = [(one.backbone.name, one.flips) for one in prepared]
    return [{"backbone": name, **flips} for name, flips in found if flips]


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


def _about(images: Path, options: Options, prepared: Sequence[Prepared]) -> dict[str, Any]:
    """Say what was compared, on what, with what."""
    first = prepared[0]
    snapshot, extracted = first.snapshot, first.extracted
    return {
        "images": str(images),
        "backbone": ", ".join(one.backbone.name for one in prepared),
        "weights": ", ".join(dict.fromkeys(one.backbone.weights for one in prepared)),
        "size": first.backbone.preprocessing.size,
        "snapshot": snapshot.name,
        "classes": snapshot.classes,
        "n_train": len(snapshot.split("train")),
        "n_validation": len(snapshot.split("val")),
        "n_test": len(snapshot.split("test")),
        "failed": extracted.failed,
        "conflicts": extracted.conflicts,
        "leaks": extracted.leaks,
        "class_counts": snapshot.counts(),
        "settings": {
            **{k: str(v) for k, v in dataclasses.asdict(options).items()},
            **{k: str(v) for k, v in dataclasses.asdict(first.plan).items()},
        },
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = ("fx-images", "torch", "torchvision", "timm", "scikit-learn", "numpy", "zarr")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _command(images: Path, options: Options, plan: Plan, sizes: Sequence[int]) -> str:
    """Spell the command that measures this again, defaults left out."""
    chosen = dataclasses.asdict(options) | dataclasses.asdict(plan)
    usual = dataclasses.asdict(Options()) | dataclasses.asdict(Plan())
    chosen |= {"sizes": sizes, "fresh": usual["fresh"]}
    words = ["fx", "compare", str(images)]
    for name, value in chosen.items():
        if value != usual[name]:
            several = isinstance(value, list | tuple)
            text = ",".join(map(str, value)) if several else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)
