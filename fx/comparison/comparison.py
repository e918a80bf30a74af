"""The comparison: every strategy on the same nested training subsets and the same test rows."""

import csv
import io
import platform
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import to_builtins
from msgspec.structs import replace
from numpy.typing import NDArray

from extract.engines import resolve_device
from extract.errors import FxError
from extract.files import Place, disk_full_as_fx_error, kept_at, upload, write_whole
from extract.images import ImageRow, ImageSource, Snapshot, find_images, group_numbers
from extract.store import FeatureStore
from finetune.settings import FinetuneSettings
from finetune.training import check_tracker, make_accelerator
from fx.comparison.context import tested_rows
from fx.comparison.cost import CostModel, within_budget
from fx.comparison.learning_curve import crossover, forecast
from fx.comparison.measure import PROBABILITIES, measure
from fx.comparison.networks import Prepared, name_with_network, open_networks, prepare
from fx.comparison.plan import Plan
from fx.comparison.recommend import differences, estimates, quadrant_of, recommend
from fx.comparison.statistics import Scores
from fx.comparison.strategies import read_flips, strategy_of
from fx.explain import small_heat_maps
from fx.options import Options
from fx.output import Begin, to_json
from fx.records import LEARNING_CURVE, Comparison, Measurement, Skipped, StrategyInfo
from fx.report import HeatMaps, gather_evidence, learning_curve_png, write_report
from fx.runs import Run
from fx.stages.extract import notes_on_images
from fx.stages.rows import needs_folds, notes_on_untested
from heads.fitting import BALANCED
from heads.metrics import METRICS

_IN_RESULTS = ("results", "skipped", "estimates", "differences", "crossover", "forecasts")


def compare(
    images: Path,
    options: Options,
    plan: Plan,
    *,
    metric: str = "accuracy",
    prefer: str = "cheap",
    wanted: float | None = None,
    budget: float | None = None,
    log_to: str | None = None,
    begin: Begin,
) -> Comparison:
    """Measure strategies over growing training sets and write the report.

    Every finished cell (strategy, size, seed) is kept, so that an interrupted comparison, or one
    that is asked for more, computes only what is new.

    Parameters
    ----------
    images : folder or table of labelled images
    options : backbone, store and the like; of backbones and weights several, between commas
    plan : what is measured
    metric : decides what is better: one with scores of single images
    prefer : "cheap" recommends the cheapest strategy that none is shown to beat, "best" the one
        with the best mean
    wanted : score by that metric; how many images it would take is predicted
    budget : seconds; only cells that are predicted to fit are measured
    log_to : ``tensorboard`` or ``mlflow``, which gets every cell's numbers
    begin : given what is being done, returns a progress callback

    Raises
    ------
    FxError
        If the images do not suffice, nothing fits the budget, or a choice is none of those offered.
    """
    begun = time.perf_counter()
    _check_choices(metric, prefer, wanted)
    check_tracker(log_to)
    source = find_images(images, options.reading)
    prepared = [prepare(source, *one, begin=begin) for one in open_networks(options, plan)]
    cells, skipped = _measure_all(prepared, source, budget, begun, begin)
    if not cells:
        raise FxError(f"nothing was measured: {skipped[0].strategy}: {skipped[0].reason}")
    measured, first = [cell for cell, _ in cells], prepared[0]
    tested = tested_rows(first.snapshot, first.context.folds)
    scores, *others = _scores(cells, group_numbers(tested), first.dataset_size.training, metric)
    recommended = recommend(measured, scores, others, prefer)
    directory = _directory(options.out, prepared)
    extracting = [s for one in prepared if (s := one.extraction_seconds) is not None]
    comparison = Comparison(
        **_about(images, options, prepared),
        strategies={one.strategy: _info(one.strategy) for one in measured},
        # of single images, and how to read it: kept in the cells' own records
        results=[one.without_images() for one in measured],
        skipped=skipped,
        metric=metric,
        estimates=estimates(scores),
        differences=differences(scores),
        recommendation=recommended.said,
        recommended=recommended.strategy,
        quadrant=quadrant_of(
            first.backbone, first.snapshot, recommended.strategy, scores, options.max_image_mb
        ),
        crossover=crossover(scores),
        forecasts=[
            forecast(name, sizes, wanted, higher_is_better=scores.metric.higher_is_better)
            for name, sizes in scores.tables.items()
        ],
        flips=[
            replace(flips, backbone=one.backbone.name)
            for one in prepared
            if (flips := read_flips(one.context)) is not None
        ],
        notes=_notes(source, prepared, plan),
        extraction_seconds=sum(extracting) if extracting else None,
        commands=[_command(images, options, plan, first.sizes, metric)],
        report=kept_at(directory / "report.html"),
    )
    Run(directory).finish(comparison)
    title = f"fx compare: {images}"
    features = FeatureStore(options.store).open_set(first.extracted.spec)
    shown = gather_evidence(
        measured, first.snapshot, features, tested, _heat_maps(cells, first.snapshot, options)
    )
    write_report(directory / "report.html", comparison, title=title, evidence=shown)
    learning_curve_png(directory / LEARNING_CURVE, comparison)
    _write_results(directory, comparison)
    if log_to is not None:
        _log_results(directory, comparison, log_to)
    for folder in (directory, *(one.context.directory for one in prepared)):
        upload(folder)
    return comparison


def _check_choices(metric: str, prefer: str, wanted: float | None) -> None:
    """Raise FxError, before hours of measuring, where nothing could be decided by these."""
    deciding = [name for name in METRICS if METRICS[name].per_image is not None]
    for parameter, value, allowed in (
        ("metric", metric, deciding),
        ("prefer", prefer, ["cheap", "best"]),
    ):
        if value not in allowed:
            raise FxError(f"`{parameter}` must be one of {', '.join(allowed)}; got {value!r}")
    if wanted is not None and METRICS[metric].higher_is_better and not 0 <= wanted <= 1:
        raise FxError(f"`wanted` must be between 0 and 1, such as 0.95; got {wanted:g}")


def _measure_all(
    prepared: Sequence[Prepared],
    source: ImageSource,
    budget: float | None,
    begun: float,
    begin: Begin,
) -> tuple[list[tuple[Measurement, Path]], list[Skipped]]:
    """Measure the cells of all networks that fit; return them, and those that were left out."""
    several = len(prepared) > 1
    measured: list[tuple[Measurement, Path]] = []
    skipped: list[Skipped] = []
    for number, one in enumerate(prepared):
        todo, reason = one.cells, ""
        if budget is not None:
            spent = time.perf_counter() - begun
            share = (budget - spent) / (len(prepared) - number)
            cost_model = CostModel(one.context, source, one.dataset_size)
            todo = within_budget(one.cells, cost_model, share, one.finished_cells)
            reason = f"would not fit the budget of {budget:,.0f} s"
        found, failed = measure(one.context, todo, begin=begin)
        failed += [Skipped(*cell, reason) for cell in one.cells if cell not in todo]

        def named(strategy: str, network: str = one.backbone.name) -> str:
            return name_with_network(strategy, network, several)

        measured += [
            (replace(cell, strategy=named(cell.strategy)), folder) for cell, folder in found
        ]
        skipped += [replace(cell, strategy=named(cell.strategy)) for cell in failed]
    return measured, skipped


def _scores(
    cells: Sequence[tuple[Measurement, Path]],
    groups: NDArray[np.intp] | None,
    whole: int,
    metric: str,
) -> list[Scores]:
    """Score the cells by the metric that decides, then by the others that could have."""
    metrics = [METRICS[name] for name in METRICS]
    # read as they are scored: of many classes, all at once may be more than memory holds
    kept = [(cell, np.load(folder / PROBABILITIES, mmap_mode="r")) for cell, folder in cells]
    return [
        Scores.of(one, kept, groups, whole)
        for one in sorted(metrics, key=lambda one: one.name != metric)
        if one.per_image is not None
    ]


def _heat_maps(
    cells: Sequence[tuple[Measurement, Path]], snapshot: Snapshot, options: Options
) -> HeatMaps:
    """Draw heat maps with the models that are kept: those of all training images."""
    largest = max(one.n_train for one, _ in cells)
    folders: dict[str, Path] = {}
    for one, folder in cells:
        if one.n_train == largest:
            folders.setdefault(one.strategy, folder)

    def draw(strategy: str, images: Sequence[tuple[ImageRow, str]]) -> list[str]:
        return small_heat_maps(folders[strategy], snapshot.root, images, options)

    return draw


def _notes(source: ImageSource, prepared: Sequence[Prepared], plan: Plan) -> list[str]:
    first = prepared[0]
    folds, images = first.context.folds, first.dataset_size.images
    notes = [BALANCED] if plan.class_weight else []
    found = [note for one in prepared for note in one.backbone.notes]
    found += notes_on_images(source, first.snapshot)
    found += notes_on_untested(first.snapshot.classes, tested_rows(first.snapshot, folds))
    found += first.notes
    notes += [note[:1].upper() + note[1:] for note in found]
    if folds > 1:
        notes.append(
            f"Each of {images:,} images was a test image once, in {folds} outer folds; seconds "
            "are those of one fit"
        )
    elif needs_folds(first.snapshot):
        notes.append("A class has too few images for outer folds: one split says little")
    return notes


def _directory(out: Place, prepared: Sequence[Prepared]) -> Path:
    """Folder of the results: that of the network, or one that several share."""
    if len(prepared) == 1:
        return prepared[0].context.directory
    name = "-and-".join(one.backbone.name for one in prepared)
    folders = [one.context.directory.name for one in prepared]
    return Run.of(out, f"compare-{name}", prepared[0].snapshot, [], of=folders).directory


def _info(spelled: str) -> StrategyInfo:
    strategy = strategy_of(spelled)
    return StrategyInfo(strategy.description, strategy.fine_tunes, strategy.style)


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
        "n_train": first.dataset_size.training,
        "n_validation": first.dataset_size.validation,
        "n_test": len(tested_rows(snapshot, first.context.folds)),
        "failed": to_builtins(extracted.failed),
        "conflicts": extracted.conflicts,
        "leaks": to_builtins(extracted.leaks),
        "class_counts": snapshot.counts(),
        "settings": {k: str(v) for k, v in (vars(options) | vars(first.plan)).items()},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = ("fx-images", "torch", "torchvision", "timm", "scikit-learn", "numpy", "zarr")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _command(images: Path, options: Options, plan: Plan, sizes: Sequence[int], metric: str) -> str:
    """Spell the command that measures this again, defaults left out."""
    chosen, usual = vars(options) | vars(plan), vars(Options()) | vars(Plan())
    chosen |= {"sizes": sizes, "fresh": usual["fresh"]}
    words = ["fx", "compare", str(images)]
    for name, value in chosen.items():
        if value != usual[name]:
            several = isinstance(value, list | tuple)
            text = ",".join(map(str, value)) if several else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    if metric != "accuracy":
        words += ["--metric", metric.replace("_", "-")]
    return shlex.join(words)


def _write_results(directory: Path, comparison: Comparison) -> None:
    """Write ``results.csv``, a row a cell, and ``results.json``, with what was made of them."""
    plain = comparison.as_json()
    rows = [
        {name: value for name, value in cell.items() if not isinstance(value, list | tuple | dict)}
        for cell in plain["results"]
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    table = csv.DictWriter(file, columns, restval="")
    table.writeheader()
    table.writerows(rows)
    write_whole(directory / "results.csv", file.getvalue())
    shown = {name: plain[name] for name in _IN_RESULTS}
    write_whole(directory / "results.json", to_json(shown) + "\n")


def _log_results(directory: Path, comparison: Comparison, tracker: str) -> None:
    """Log every cell's numbers, by strategy and seed, with the training images as steps.

    Raises
    ------
    CannotWrite
        If it has no room, or cannot write there.
    FxError
        If the tracker is unknown or not installed.
    """
    accelerator = make_accelerator(
        resolve_device("cpu"), FinetuneSettings(), log_to=tracker, directory=directory
    )
    with disk_full_as_fx_error(directory):
        for cell in sorted(comparison.results, key=lambda cell: cell.n_train):
            name = f"{cell.strategy}/seed {cell.seed}".replace(":", "-")
            numbers = {
                f"{name}/{key}": value
                for key in (*cell.scores, "seconds", "peak_memory_mb")
                if (value := cell.number(key)) is not None
            }
            accelerator.log(numbers, step=cell.n_train)
        accelerator.end_training()
