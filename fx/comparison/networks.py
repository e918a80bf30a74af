"""The networks of a comparison: each with its features extracted, and its cells measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fx.comparison.cells import (
    BATCH_SIZE,
    FLIPS,
    ComparisonContext,
    decide_flips,
    drop_shared,
    fill_shared,
    measure_cell,
)
from fx.comparison.cost import DatasetSize
from fx.comparison.own_process import in_own_process
from fx.comparison.plan import FROM_SCRATCH, Cell, Plan, subset_sizes
from fx.options import Options, open_backbone, open_engine, read_snapshot
from fx.output import Begin
from fx.runs import finish, finished, run_directory
from fx.stages.extract_stage import fill_store
from fx.stages.rows import check_labelled, keys_of, used_rows
from heads.kinds import KINDS

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.extraction import ExtractResult
    from extract.images import ImageSource, Snapshot


@dataclass(frozen=True)
class Prepared:
    """One network, its features, and what is to be measured with it.

    Attributes
    ----------
    context : what its cells share
    plan : strategies, sizes and seeds
    backbone : the network
    extracted : what the extraction found
    snapshot : of the images
    """

    context: ComparisonContext
    plan: Plan
    backbone: Backbone
    extracted: ExtractResult
    snapshot: Snapshot

    @property
    def sizes(self) -> list[int]:
        """Sizes of the training subsets."""
        rows = self.snapshot.split("train")
        return subset_sizes(self.plan.sizes, len(rows), len(self.snapshot.classes))

    @property
    def cells(self) -> list[Cell]:
        """All cells, those first that tell most for their time."""
        rows = self.snapshot.split("train")
        return list(self.plan.cells(self.sizes, len(rows), self.context.options.seed))

    @property
    def dataset_size(self) -> DatasetSize:
        """How many images there are."""
        of = self.snapshot
        used = sum(1 for row in of.rows if row.split)
        training, test, validation = (len(of.split(name)) for name in ("train", "test", "val"))
        return DatasetSize(used, training, test, validation, len(of.classes))

    @property
    def finished_cells(self) -> list[Cell]:
        """Cells that an earlier comparison measured."""
        directory, fresh = self.context.cell_directory, self.context.options.fresh
        return [] if fresh else [c for c in self.cells if finished(directory(c)) is not None]

    @property
    def flips(self) -> dict[str, Any] | None:
        """What was decided on flips, for all fine-tunings."""
        return finished(self.context.directory / FLIPS)

    @property
    def extraction_seconds(self) -> float | None:
        """What extracting took when it was done."""
        done = finished(self.context.directory / "extraction")
        return None if done is None else float(done["seconds"])


def networks_of(options: Options, plan: Plan) -> list[tuple[Options, Plan]]:
    """Take options apart that name several backbones, and weights, between commas.

    What no backbone decides (``small_cnn``) is left to the first.

    Raises
    ------
    FxError
        If there are neither one nor as many weights as backbones.
    """
    from extract.errors import FxError

    if options.backbone is None or "," not in options.backbone:
        return [(options, plan)]
    names = _between_commas(options.backbone)
    weights = [None] if options.weights is None else _between_commas(options.weights)
    if len(weights) == 1:
        weights *= len(names)
    if len(weights) != len(names) or len(set(names)) < len(names):
        raise FxError(
            f"--backbone names {len(names)} networks, each once, and --weights one source for all "
            f"or one each; got --backbone {options.backbone} --weights {options.weights}"
        )
    others = tuple(s for s in plan.strategies if s != "small_cnn") or plan.strategies
    return [
        (
            dataclasses.replace(options, backbone=name, weights=source),
            plan if name == names[0] else dataclasses.replace(plan, strategies=others),
        )
        for name, source in zip(names, weights, strict=True)
    ]


def name_with_network(strategy: str, network: str, several: bool) -> str:
    """Name the network too where there are several, and where one decides the strategy."""
    return strategy if not several or strategy == "small_cnn" else f"{strategy} on {network}"


def _between_commas(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def prepare(source: ImageSource, options: Options, plan: Plan, *, begin: Begin) -> Prepared:
    """Open a network and extract the features that the store lacks.

    Raises
    ------
    FxError
        If the network cannot be had, has fewer blocks than are asked for, or the images do not
        suffice.
    """
    from extract.store import FeatureStore
    from finetune.settings import FinetuneSettings

    backbone = open_backbone(options)
    engine = open_engine(options, backbone)
    check_depths(plan, backbone)
    extracted = fill_store(source, backbone, engine, options, begin=begin)
    store = FeatureStore(options.store)
    snapshot = read_snapshot(store, dataclasses.replace(options, snapshot=extracted.snapshot))
    check_labelled(snapshot)
    identity = {
        "features": store.open_set(extracted.spec).digest(keys_of(used_rows(snapshot))),
        "snapshot": snapshot.fingerprint,
        # whatever the strategies, of which there may be more another time
        "training": [
            FinetuneSettings(
                unfreeze="all",
                from_scratch=scratch,
                epochs=plan.epochs,
                batch_size=options.batch_size or BATCH_SIZE,
                class_weight=plan.class_weight,
            ).identity()
            for scratch in (False, True)
        ],
        "seed": options.seed,
        "device": engine.device.type,
    }
    directory = run_directory(options.out, f"compare-{backbone.name}", identity)
    context = ComparisonContext(
        settled(options, backbone),
        plan.epochs,
        plan.class_weight,
        extracted.spec,
        snapshot.name,
        directory,
    )
    if extracted.new:
        finish(directory / "extraction", {"seconds": extracted.seconds})
    return Prepared(context, plan, backbone, extracted, snapshot)


def settled(options: Options, backbone: Backbone) -> Options:
    """Say of a network what was left open, so that another process opens the same."""
    return dataclasses.replace(
        options,
        backbone=backbone.name,
        weights=backbone.weights,
        size=backbone.preprocessing.size,
        channels=backbone.channels,
    )


def check_depths(plan: Plan, backbone: Backbone) -> None:
    """Refuse a depth that the network has not, before anything is measured."""
    from extract.errors import FxError
    from finetune.blocks import find_blocks

    depths = [strategy.partition(":")[2] for strategy in plan.strategies]
    deepest = max((int(depth) for depth in depths if depth.isdecimal()), default=0)
    if deepest and deepest > (count := len(find_blocks(backbone.module, backbone.trained_size))):
        raise FxError(
            f"{backbone.name} has {count} blocks; got finetune:{deepest}; "
            f"see them with: fx backbones {backbone.name}"
        )


def measure(
    network: Prepared, cells: Sequence[Cell], *, begin: Begin
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure the cells that are not finished; return all, and those that could not be.

    Raises
    ------
    CannotWrite
        If a disk is full, or cannot be written to: that would befall the other cells, too.
    """
    from extract.errors import CannotWrite, FxError
    from extract.files import check_room

    context = network.context
    check_room(context.directory, 0)
    if any(cell.strategy not in (*KINDS, *FROM_SCRATCH) for cell in cells):
        decided = finished(context.directory / FLIPS, fresh=context.options.fresh)
        try:
            decided = decided or in_own_process(decide_flips, context, begin=begin)
            context = dataclasses.replace(context, augment=decided["augment"])
        except CannotWrite:
            raise
        except FxError:
            # too few images to fine-tune: each cell says so itself
            context = dataclasses.replace(context, augment="none")
    measured: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    filled: set[str] = set()
    for cell in cells:
        found = finished(context.cell_directory(cell), fresh=context.options.fresh)
        try:
            if found is None:
                shared = 0.0
                if cell.strategy not in (*KINDS, *FROM_SCRATCH, *filled):
                    shared = in_own_process(fill_shared, context, cell.strategy, begin=begin)
                    filled.add(cell.strategy)
                found = in_own_process(measure_cell, context, cell, shared, begin=begin)
            measured.append(found)
        except CannotWrite:
            raise
        except FxError as error:
            # what one strategy cannot do at one size shall not cost the others
            skipped.append({**cell._asdict(), "reason": str(error)})
    drop_shared(context)
    return measured, skipped
