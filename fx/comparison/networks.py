"""The networks of a comparison, each with its features extracted."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from extract.backbones import Backbone
from extract.engines import training_precision
from extract.errors import FxError
from extract.extraction import ExtractResult
from extract.images import ImageSource, Snapshot
from extract.records import Record
from extract.store import FeatureStore
from finetune.settings import FinetuneSettings
from fx.comparison.context import ComparisonContext, DatasetSize
from fx.comparison.measure import run_of
from fx.comparison.plan import Cell, Plan, subset_sizes
from fx.comparison.strategies import BATCH_SIZE, strategy_of
from fx.options import Options, names_in, open_backbone, open_engine, read_snapshot
from fx.output import Begin
from fx.runs import Run
from fx.stages.extract import fill_store
from fx.stages.rows import check_labelled, folds_of, near_copies_among, used_rows


class _Extraction(Record, frozen=True):
    """What extracting the features took."""

    seconds: float


def _extraction_in(directory: Path) -> Run:
    return Run(directory / "extraction")


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
    notes : on near-copies among them
    """

    context: ComparisonContext
    plan: Plan
    backbone: Backbone
    extracted: ExtractResult
    snapshot: Snapshot
    notes: list[str]

    @property
    def sizes(self) -> list[int]:
        """Sizes of the training subsets."""
        size = self.dataset_size
        return subset_sizes(self.plan.sizes, size.training, size.classes)

    @property
    def cells(self) -> list[Cell]:
        """All cells, those first that tell most for their time."""
        seed, folds = self.context.options.seed, self.context.folds
        return list(self.plan.cells(self.sizes, self.dataset_size.training, seed, folds))

    @property
    def dataset_size(self) -> DatasetSize:
        """How many images there are."""
        of = self.snapshot
        used, classes = len(used_rows(of)), len(of.classes)
        if self.context.folds > 1:
            return of_folds(used, classes, self.context.folds)
        training, test, validation = (len(of.split(name)) for name in ("train", "test", "val"))
        return DatasetSize(used, training, test, validation, classes)

    @property
    def finished_cells(self) -> list[Cell]:
        """Cells that an earlier comparison measured."""
        fresh = self.context.options.fresh
        return [] if fresh else [c for c in self.cells if run_of(self.context, c).finished]

    @property
    def extraction_seconds(self) -> float | None:
        """What extracting took when it was done."""
        found = _extraction_in(self.context.directory).kept(_Extraction)
        return None if found is None else found.seconds


def networks_of(options: Options, plan: Plan) -> list[tuple[Options, Plan]]:
    """Take options apart that name several backbones, and weights, between commas.

    Strategies that need none are left to the first.

    Raises
    ------
    FxError
        If there are neither one nor as many weights as backbones.
    """
    if options.backbone is None or "," not in options.backbone:
        return [(options, plan)]
    names = names_in(options.backbone)
    weights: tuple[str | None, ...] = (
        (None,) if options.weights is None else names_in(options.weights)
    )
    if len(weights) == 1:
        weights *= len(names)
    if not names or len(weights) != len(names) or len(set(names)) < len(names):
        raise FxError(
            f"`backbone` names {len(names)} networks, each once, and `weights` one source for all "
            f"or one each; got `backbone={options.backbone}` `weights={options.weights}`"
        )
    others = tuple(s for s in plan.strategies if strategy_of(s).needs_backbone) or plan.strategies
    return [
        (
            dataclasses.replace(options, backbone=name, weights=source),
            plan if name == names[0] else dataclasses.replace(plan, strategies=others),
        )
        for name, source in zip(names, weights, strict=True)
    ]


def of_folds(images: int, classes: int, folds: int) -> DatasetSize:
    """Sizes of what is measured by outer folds."""
    test = -(-images // folds)
    return DatasetSize(images, images - test, test, 0, classes, folds)


def name_with_network(strategy: str, network: str, several: bool) -> str:
    """Name the network too where there are several, and where one decides the strategy."""
    needed = several and strategy_of(strategy).needs_backbone
    return f"{strategy} on {network}" if needed else strategy


def open_networks(options: Options, plan: Plan) -> list[tuple[Options, Plan, Backbone]]:
    """Load the networks that the options name, before any of them is used.

    Raises
    ------
    FxError
        If one cannot be had, or has fewer blocks than are asked for.
    """
    found = []
    for asked, planned in networks_of(options, plan):
        backbone = open_backbone(asked)
        check_strategies(planned, backbone)
        found.append((asked, planned, backbone))
    return found


def prepare(
    source: ImageSource, options: Options, plan: Plan, backbone: Backbone, *, begin: Begin
) -> Prepared:
    """Extract the features that the store lacks.

    Raises
    ------
    FxError
        If the images do not suffice.
    """
    engine = open_engine(options, backbone)
    extracted = fill_store(source, backbone, engine, options, begin=begin)
    store = FeatureStore(options.store)
    snapshot = read_snapshot(store, dataclasses.replace(options, snapshot=extracted.snapshot))
    check_labelled(snapshot)
    folds, features = folds_of(snapshot), store.open_set(extracted.spec)
    fitted = used_rows(snapshot) if folds > 1 else snapshot.split("train")
    near_copies, notes = near_copies_among(fitted, features, options.near_copies)
    directory = Run.of(
        options.out,
        f"compare-{backbone.name}",
        snapshot,
        [features],
        # whatever the strategies, of which there may be more another time
        training=[
            FinetuneSettings(
                unfreeze="all",
                from_scratch=scratch,
                epochs=plan.epochs,
                batch_size=options.batch_size or BATCH_SIZE,
                class_weight=plan.class_weight,
                precision=training_precision(options.precision, engine.device),
            ).identity()
            for scratch in (False, True)
        ],
        engine=engine.numerics,
        device=engine.device.type,
        seed=options.seed,
        folds=folds,
        near_copies=options.near_copies,
    ).directory
    context = ComparisonContext(
        settled(options, backbone),
        plan.epochs,
        plan.class_weight,
        extracted.spec,
        snapshot.name,
        directory,
        near_copies=near_copies,
        folds=folds,
    )
    if extracted.new:
        _extraction_in(directory).finish(_Extraction(extracted.seconds))
    return Prepared(context, plan, backbone, extracted, snapshot, notes)


def settled(options: Options, backbone: Backbone) -> Options:
    """Say of a network what was left open, so that another process opens the same."""
    return dataclasses.replace(
        options,
        backbone=backbone.name,
        weights=backbone.weights,
        size=backbone.preprocessing.size,
        channels=backbone.channels,
    )


def check_strategies(plan: Plan, backbone: Backbone) -> None:
    """Refuse what the network does not have, before anything is measured."""
    for strategy in plan.strategies:
        strategy_of(strategy).check(backbone)
