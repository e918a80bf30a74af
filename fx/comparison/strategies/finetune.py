"""The last K blocks of the network trained, or all: finetune:K, finetune:all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from extract.errors import CannotWrite, FxError
from extract.files import place
from fx.comparison.strategies._training import TrainingStrategy, resources
from fx.options import open_backbone
from fx.output import Begin
from fx.records import FlipDecision
from fx.runs import Run

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from fx.comparison.context import ComparisonContext, OpenContext
    from fx.comparison.strategies._strategy import Costs

_STYLES = {"1": 2, "all": 3, "2": 5}
DECIDING_ROWS = 4_000  # training rows of the head that decides


@dataclass(frozen=True)
class _Finetune(TrainingStrategy):
    fine_tunes = True
    prepares = True

    def with_argument(self, argument: str) -> Self:
        if argument != "all" and not argument.isdecimal():
            raise FxError(f"finetune:K takes a number of blocks, or all; got {argument!r}")
        count = argument if argument == "all" else str(int(argument))  # 1, not 01
        return dataclasses.replace(self, argument=count)

    @property
    def unfreeze(self) -> int | Literal["all"]:
        return "all" if self.argument == "all" else int(self.argument)

    @property
    def headline(self) -> str:
        if self.unfreeze in ("all", 0):
            whole = self.unfreeze == "all"
            return "Fine-tune the whole network" if whole else "Train the classifier alone"
        return f"Fine-tune the last {_blocks(self.argument)}"

    @property
    def description(self) -> str:
        if self.unfreeze == "all":
            return "Whole network trained, starting from its pretrained weights"
        if self.unfreeze == 0:
            return "Only the classifier trained, by gradient descent"
        return (
            f"Last {_blocks(self.argument)} and classifier trained, starting from the logistic "
            "regression"
        )

    @property
    def style(self) -> int | None:
        return _STYLES.get(self.argument)

    def check(self, backbone: Backbone) -> None:
        from finetune.blocks import find_blocks

        if isinstance(self.unfreeze, str) or not self.unfreeze:
            return
        count = len(find_blocks(backbone.module, backbone.trained_size, backbone.cut_points))
        if self.unfreeze > count:
            raise FxError(
                f"{backbone.name} has {count} blocks; got {self.spelled}; "
                f"see them with: fx backbones {backbone.name}"
            )

    def decide(self, context: ComparisonContext, run: Callable[..., Any]) -> ComparisonContext:
        """Decide once for all fine-tunings whether images are flipped."""
        from fx.comparison.context import AUTO

        if context.augment != AUTO:
            return context
        try:
            known = None if context.options.fresh else read_flips(context)
            decided = known or run(decide_flips, context)
        except CannotWrite:
            raise
        except FxError:
            # too few images to fine-tune: each cell says so itself
            return dataclasses.replace(context, augment="none")
        return dataclasses.replace(context, augment=decided.augment)

    def prepare(self, opened: OpenContext) -> None:
        """Run the frozen blocks over all images."""
        from finetune.finetuning import fill_activations
        from fx.stages.rows import used_rows

        fill_activations(
            self.network(opened.context, 0),
            used_rows(opened.snapshot),
            opened.trainable_rows,
            place(opened.snapshot.root),
            settings=self.settings(opened.context, 0),
            resources=resources(opened),
        )

    def seconds(self, costs: Costs, n_train: int) -> float:
        return super().seconds(costs, n_train) + costs.head_seconds("logreg", n_train)

    def seconds_of_preparing(self, costs: Costs) -> float:
        # no less than decoding the images, and no more than extraction: what is frozen is a part
        return costs.extraction()


def _blocks(count: str) -> str:
    return "block" if count == "1" else f"{count} blocks"


def read_flips(context: ComparisonContext) -> FlipDecision | None:
    """Read what was decided on flips, if it was."""
    return _flips_in(context).kept(FlipDecision)


def decide_flips(context: ComparisonContext, *, begin: Begin) -> FlipDecision:
    """Decide for all fine-tunings whether images are flipped, and keep the decision.

    On some of the training rows, set aside as a fine-tuning does where there are no validation
    rows.
    """
    from finetune.data import set_validation_aside
    from finetune.flips import try_flips
    from finetune.starting_head import starting_head
    from fx.comparison.context import nested_subset, open_context

    begun = time.perf_counter()
    opened = open_context(context, begin)
    seed, rows = context.options.seed, opened.training_rows
    rows = nested_subset(rows, min(len(rows), DECIDING_ROWS), seed)
    validation = opened.snapshot.split("val")
    if not validation:
        rows, validation = set_validation_aside(rows, seed)
    features = opened.features.features
    begin("deciding on flips")
    trial = try_flips(
        starting_head(features, rows, class_weight=context.class_weight, seed=seed),
        open_backbone(context.options),
        features,
        rows,
        validation,
        place(opened.snapshot.root),
        resources(opened),
    )
    decision = FlipDecision(
        **dataclasses.asdict(trial),
        augment=trial.augment,
        said=trial.summary,
        seconds=time.perf_counter() - begun,
    )
    _flips_in(context).finish(decision)
    return decision


def _flips_in(context: ComparisonContext) -> Run:
    return Run(context.directory / "flips")


STRATEGY = _Finetune("finetune")
