"""What a comparison will take on this machine, predicted from short trials before it is begun."""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from extract.backbones import Backbone
from extract.engines import resolve_device
from extract.errors import FxError
from extract.images import TEST_SHARE, ImageSource, find_images
from finetune.settings import FinetuneSettings
from finetune.timing import Timing, time_training
from fx.comparison.context import TIMED, ComparisonContext, DatasetSize
from fx.comparison.networks import (
    check_strategies,
    name_with_network,
    networks_of,
    of_folds,
    settled,
)
from fx.comparison.plan import Cell, Plan, subset_sizes
from fx.comparison.strategies import strategy_of
from fx.options import Options, open_backbone, open_engine
from fx.output import Begin
from fx.records import PlannedCell, Preview
from fx.stages.predict import seconds_per_image
from fx.stages.rows import FEW
from heads.fitting import MIN_PER_CLASS, OUTER_FOLDS, fit_head

# of chance, on which a kind of head is timed, until that takes so long: on thousands of rows an
# SVM's time grows as on more
TRIED_ROWS, TRIED_SECONDS = (50, 200, 800, 3200), 1.0
START_SECONDS = 1.0  # of a cell's process
_ADDED_UP = ("extraction_seconds", "shared_seconds", "seconds", "disk_mb")  # over networks
_GROWTH = (1.0, 2.0)  # least and largest power of the rows that a fit's time grows with


class CostModel:
    """Predicts seconds and disk space; every trial is made when it is first asked for.

    Training is predicted for all epochs that are allowed; where it stops early it takes less.

    Parameters
    ----------
    context : what the cells share
    source : of whose first images decoding and the network are timed
    dataset_size : how many images there are
    seconds_an_image : to decode an image and to compute its features; None to have it timed
    """

    def __init__(
        self,
        context: ComparisonContext,
        source: ImageSource,
        dataset_size: DatasetSize,
        seconds_an_image: float | None = None,
    ) -> None:
        self.context = context
        self.source = dataclasses.replace(source, entries=source.entries[:TIMED])
        self.dataset_size = dataset_size
        if seconds_an_image is not None:
            self.seconds_an_image = seconds_an_image
        self._heads: dict[str, tuple[int, float, float]] = {}
        self._networks: dict[str, Timing] = {}

    @cached_property
    def seconds_an_image(self) -> float:
        """Seconds to decode an image and to compute its features."""
        engine = open_engine(self.context.options, self._backbone)
        return seconds_per_image(engine, self.source, 1)[0]

    @cached_property
    def _backbone(self) -> Backbone:
        return open_backbone(self.context.options)

    def extraction(self) -> float:
        """Seconds of extracting all images."""
        return self.dataset_size.images * self.seconds_an_image

    def shared(self, strategy: str) -> float:
        """Seconds of what is prepared once for all cells of a strategy."""
        return strategy_of(strategy).seconds_of_preparing(self)

    def cell(self, cell: Cell) -> float:
        """Seconds of one cell."""
        strategy = strategy_of(cell.strategy)
        # the pretrained network is timed once
        timed = 0 if strategy.on_features or strategy.fine_tunes else 2 * TIMED
        fits = self.dataset_size.folds * strategy.seconds(self, cell.n_train)
        return START_SECONDS + timed * self.seconds_an_image + fits

    def disk(self, strategies: Sequence[str], dim: int) -> int:
        """Bytes of the features, of what several cells share, and of the largest models."""
        kept = [strategy_of(strategy).disk(self) for strategy in strategies]
        shared = {one.shared_as: one.cached for one in kept}
        models = sum(one.model for one in kept)
        return 4 * dim * self.dataset_size.images + sum(shared.values()) + models

    def head_seconds(self, kind: str, rows: int) -> float:
        """Seconds of fitting a head on so many rows."""
        if kind not in self._heads:
            timed: list[tuple[int, float]] = []
            most = max(self.dataset_size.training, TRIED_ROWS[1])
            for tried in (one for one in TRIED_ROWS if one <= most):
                timed.append((tried, self._time_head(kind, tried)))
                if len(timed) > 1 and timed[-1][1] > TRIED_SECONDS:
                    break
            (small, few), (large, many) = timed[-2:]
            power = math.log(many / few) / math.log(large / small)
            self._heads[kind] = large, many, min(max(power, _GROWTH[0]), _GROWTH[1])
        large, seconds, power = self._heads[kind]
        return float(seconds * max(rows / large, 0.1) ** power)

    def timing(
        self, name: str, open_network: Callable[[], Backbone], settings: FinetuneSettings
    ) -> Timing:
        """What one image costs a training; it is tried once for each name."""
        if name not in self._networks:
            device = resolve_device(self.context.options.device)
            self._networks[name] = time_training(
                open_network(), self.dataset_size.classes, settings, device
            )
        return self._networks[name]

    def _time_head(self, kind: str, rows: int) -> float:
        rng = np.random.default_rng(0)
        classes = min(self.dataset_size.classes, rows // 20)
        labels = np.arange(rows) % classes
        dim = self._backbone.dim
        # classes that overlap a little, as those of images do: searching them takes its time
        means = rng.normal(size=(classes, dim))
        features = (means[labels] + 4 * rng.normal(size=(rows, dim))).astype(np.float32)
        begun = time.perf_counter()
        fit_head(features, labels.astype(str), kind=kind)
        return time.perf_counter() - begun


def within_budget(
    cells: Sequence[Cell], cost_model: CostModel, budget: float, done: Sequence[Cell]
) -> list[Cell]:
    """Choose the cells that fit, of those that tell most for their time first.

    Parameters
    ----------
    cells : as ``Plan.cells`` lists them
    cost_model : predicts their seconds
    budget : seconds for all of them
    done : cells that cost nothing any more
    """
    chosen, left = list(done), budget
    shared: set[str] = set()
    for cell in cells:
        if cell in done:
            continue
        seconds = cost_model.cell(cell)
        if cell.strategy not in shared:
            seconds += cost_model.shared(cell.strategy)
        if seconds <= left:
            left -= seconds
            shared.add(cell.strategy)
            chosen.append(cell)
    return [cell for cell in cells if cell in chosen]


def preview(
    images: Path, options: Options, plan: Plan, *, budget: float | None = None, begin: Begin
) -> Preview:
    """List the cells of a comparison with their predicted time, as if nothing were there yet.

    Numbers of training images are predicted too: which side an image falls on depends on its
    bytes, which are not read.

    Parameters are those of ``fx.compare``.

    Raises
    ------
    FxError
        If there are no labelled images, or a network cannot be had.
    """
    source = find_images(images, options.reading).without_small_classes()
    dataset_size = dataset_size_of(source)
    networks = networks_of(options, plan)
    found: list[Preview] = []
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
    return Preview(
        images=str(images),
        n_train=dataset_size.training,
        n_test=dataset_size.test if dataset_size.folds == 1 else dataset_size.images,
        cells=[cell for one in found for cell in one.cells],
        skipped=[cell for one in found for cell in one.skipped],
        **{name: sum(getattr(one, name) for one in found) for name in _ADDED_UP},
    )


def _preview_network(
    options: Options,
    plan: Plan,
    source: ImageSource,
    dataset_size: DatasetSize,
    *,
    left: float | None,
    sharers: int,
    several: bool,
) -> Preview:
    """Say what measuring with one network would take; it may take a share of what is left."""
    backbone = open_backbone(options)
    check_strategies(plan, backbone)
    context = ComparisonContext(
        settled(options, backbone), plan.epochs, plan.class_weight, "", "", Path()
    )
    cost_model = CostModel(context, source, dataset_size)
    sizes = subset_sizes(plan.sizes, dataset_size.training, dataset_size.classes)
    cells = list(plan.cells(sizes, dataset_size.training, options.seed, dataset_size.folds))
    chosen = cells
    if left is not None:
        chosen = within_budget(cells, cost_model, (left - cost_model.extraction()) / sharers, [])
    planned = {
        cell: PlannedCell(
            name_with_network(cell.strategy, backbone.name, several),
            cell.n_train,
            cell.seed,
            cost_model.cell(cell),
        )
        for cell in cells
    }
    used = sorted({cell.strategy for cell in chosen})
    extraction = cost_model.extraction()
    shared = sum((cost_model.shared(strategy) for strategy in used), 0.0)
    return Preview(
        images=str(source.root),
        n_train=dataset_size.training,
        n_test=dataset_size.test,
        cells=[planned[cell] for cell in cells if cell in chosen],
        skipped=[planned[cell] for cell in cells if cell not in chosen],
        extraction_seconds=extraction,
        shared_seconds=shared,
        seconds=extraction + shared + sum(planned[cell].seconds for cell in chosen),
        disk_mb=cost_model.disk(used, backbone.dim) / 1e6,
    )


def dataset_size_of(source: ImageSource) -> DatasetSize:
    """Predict how many images there will be of each use."""
    labelled = [entry for entry in source.entries if entry.label is not None]
    if len(source.labels) < 2:
        raise FxError(
            f"a comparison takes at least two classes; got {len(source.labels)} in {source.root}; "
            "lay images out as one folder a class"
        )
    of_split = dict.fromkeys(("train", "val", "test"), 0)
    for entry in labelled:
        of_split[entry.split or "train"] += 1
    rarest = min(Counter(entry.label for entry in labelled).values())
    given = of_split["test"] + of_split["val"]
    if not given and len(labelled) < FEW and rarest >= MIN_PER_CLASS:
        return of_folds(len(labelled), len(source.labels), OUTER_FOLDS)
    if not of_split["test"]:
        of_split["test"] = round(TEST_SHARE * of_split["train"])
        of_split["train"] -= of_split["test"]
    training, test, validation = (of_split[name] for name in ("train", "test", "val"))
    return DatasetSize(len(labelled), training, test, validation, len(source.labels))
