"""What the strategies that train a network have in common."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from fx.comparison.strategies._strategy import Costs, Disk, Fitted, Strategy
from fx.options import open_backbone

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from finetune.settings import FinetuneSettings
    from finetune.split import Resources
    from finetune.timing import Timing
    from fx.comparison.context import ComparisonContext, OpenContext, Subset

BATCH_SIZE = 32  # images a step
_FILES = ("model.safetensors", "model.json")
_PIXELS = "pixels"  # what is kept where nothing is frozen


@dataclass(frozen=True)
class TrainingStrategy(Strategy):
    """A strategy that trains a network or a part of it."""

    @property
    @abstractmethod
    def unfreeze(self) -> int | Literal["all"]:
        """Blocks that are trained, from the end, or "all"."""

    def network(self, context: ComparisonContext, seed: int) -> Backbone:
        """Load the network that is trained."""
        return open_backbone(context.options, seed=seed)

    def settings(self, context: ComparisonContext, seed: int) -> FinetuneSettings:
        """Decide how the network is trained."""
        from extract.engines import resolve_device, training_precision
        from finetune.settings import FinetuneSettings

        device = resolve_device(context.options.device)
        return FinetuneSettings(
            unfreeze=self.unfreeze,
            from_scratch=self.from_scratch,
            epochs=context.epochs,
            batch_size=context.options.batch_size or BATCH_SIZE,
            class_weight=context.class_weight,
            augment="none" if self.from_scratch else context.augment,
            precision=training_precision(context.options.precision, device),
            seed=seed,
        )

    def fit(self, opened: OpenContext, subset: Subset) -> Fitted:
        from finetune.finetuning import finetune
        from fx.stages.rows import training_data

        result = finetune(
            self.network(opened.context, subset.seed),
            training_data(opened.snapshot, subset.rows),
            None if self.from_scratch else opened.features.features,
            settings=self.settings(opened.context, subset.seed),
            directory=subset.directory,
            resources=resources(opened),
            with_extras=False,
        )
        return Fitted(
            result.probabilities,
            tuple(result.classes),
            evaluation=result.metrics,
            # one recipe, of which an epoch is chosen
            settings_tried=1 + result.epochs,
            files=_FILES,
            # its classifier takes nothing beside the network
            milliseconds=0.0 if self.fine_tunes else None,
            details={
                "trainable_parameters": result.trainable_parameters,
                "epochs": result.epochs,
                "best_epoch": result.best_epoch,
                "n_fitted": result.n_fitted,
                "augment": result.augment,
                "calibration": dataclasses.asdict(result.calibration),
                "history": msgspec.to_builtins(result.history),
            },
        )

    def seconds(self, costs: Costs, n_train: int) -> float:
        from finetune.data import VALIDATION_SHARE

        timing, settings = self._timing(costs), self.settings(costs.context, 0)
        given, test = costs.dataset_size.validation, costs.dataset_size.test
        validation = given or round(VALIDATION_SHARE * n_train)
        trained = n_train if given else n_train - validation
        epochs = settings.epochs_for(trained)
        final = 0 if given else settings.final_epochs(epochs)
        predicted = (epochs - final + 1) * validation + test
        passes = epochs * trained + final * (n_train - trained)
        return passes * timing.training + predicted * timing.predicting

    def _timing(self, costs: Costs) -> Timing:
        context = costs.context
        return costs.timing(
            self.spelled, lambda: self.network(context, 0), self.settings(context, 0)
        )

    def disk(self, costs: Costs) -> Disk:
        timing = self._timing(costs)
        shared_as = _PIXELS if self.unfreeze == "all" else self.spelled
        cached = timing.cached * costs.dataset_size.images
        return Disk(cached, shared_as, 4 * timing.trainable_parameters)


@dataclass(frozen=True)
class ScratchStrategy(TrainingStrategy):
    """A strategy that trains all of a network from random weights.

    Attributes
    ----------
    backbone : name of the network; None for the one that is compared
    """

    from_scratch = True
    unfreeze = "all"
    backbone: ClassVar[str | None] = None

    def network(self, context: ComparisonContext, seed: int) -> Backbone:
        name = self.backbone or context.options.backbone
        options = dataclasses.replace(context.options, backbone=name, weights="random")
        return open_backbone(options, seed=seed)


def resources(opened: OpenContext) -> Resources:
    """Where trainings run, and what they share."""
    from extract.engines import resolve_device
    from finetune.split import Resources
    from fx.stages.rows import used_rows

    options = opened.context.options
    return Resources(
        device=resolve_device(options.device),
        cache=opened.context.cache,
        activation_rows=used_rows(opened.snapshot),
        augmented_rows=opened.trainable_rows,
        engine=options.engine,
        precision=options.precision,
        batch_size=options.batch_size,
        max_image_mb=options.max_image_mb,
        progress=opened.begin,
    )
