"""What a comparison will take on this machine, told from short cost_model before it is begun."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fx.comparison.cells import TIMED, ComparisonContext, network_of, settings_of
from fx.comparison.plan import FROM_SCRATCH, Cell
from fx.options import open_backbone, open_engine
from fx.stages.prediction import seconds_per_image
from heads.kinds import KINDS

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.images import ImageSource
    from finetune.timing import Timing

TRIED_ROWS = (200, 800, 3200)  # of chance, on two of which a kind of head is timed
START_SECONDS = 1.0  # of a cell's process
_GROWTH = (1.0, 2.0)  # least and largest power of the rows that a fit's time grows with


@dataclass(frozen=True)
class DatasetSize:
    """How many images there are.

    Attributes
    ----------
    images : in all
    training, test, validation : of them; validation 0 where it is taken from the training rows
    classes : of their labels
    """

    images: int
    training: int
    test: int
    validation: int
    classes: int


class CostModel:
    """Predicts seconds and disk space; every trial is made when it is first asked for.

    Training is predicted for all epochs that are allowed; where it stops early it takes less.

    Parameters
    ----------
    context : what the cells share
    source : of whose first images decoding and the network are timed
    dataset_size : how many images there are
    """

    def __init__(
        self, context: ComparisonContext, source: ImageSource, dataset_size: DatasetSize
    ) -> None:
        self.context = context
        self.source = dataclasses.replace(source, entries=source.entries[:TIMED])
        self.dataset_size = dataset_size
        self._heads: dict[str, tuple[float, float]] = {}
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
        """Seconds of running the frozen blocks over all images, once for all cells at a depth."""
        if strategy in (*KINDS, *FROM_SCRATCH):
            return 0.0
        # no less than decoding them, and no more than extraction: what is frozen is a part
        return self.extraction()

    def cell(self, cell: Cell) -> float:
        """Seconds of one cell."""
        from finetune.data import VALIDATION_SHARE

        fixed = START_SECONDS + 2 * TIMED * self.seconds_an_image
        if cell.strategy in KINDS:
            return fixed + self._head(cell.strategy, cell.n_train)
        timing, settings = self._network(cell.strategy), settings_of(self.context, cell.strategy, 0)
        validation = self.dataset_size.validation or round(VALIDATION_SHARE * cell.n_train)
        trained = cell.n_train if self.dataset_size.validation else cell.n_train - validation
        epochs = settings.epochs_for(trained)
        final = 0 if self.dataset_size.validation else settings.final_epochs(epochs)
        predicted = (epochs - final + 1) * validation + self.dataset_size.test
        passes = epochs * trained + final * (cell.n_train - trained)
        seconds = passes * timing.training + predicted * timing.predicting
        start = 0.0 if settings.from_scratch else self._head("logreg", cell.n_train)
        return fixed + start + seconds

    def disk(self, strategies: Sequence[str], dim: int) -> int:
        """Bytes of the features, of what is kept of frozen blocks, and of the largest models."""
        caches, models = {}, 0
        for strategy in strategies:
            if strategy not in KINDS:
                timing = self._network(strategy)
                depth = strategy if strategy not in FROM_SCRATCH else "finetune:all"
                caches[depth] = timing.cached * self.dataset_size.images
                models += 4 * timing.trainable_parameters
        return 4 * dim * self.dataset_size.images + sum(caches.values()) + models

    def _head(self, kind: str, rows: int) -> float:
        # how an SVM's time grows shows on thousands of rows only
        small, large = (
            TRIED_ROWS[:2] if self.dataset_size.training < TRIED_ROWS[2] else TRIED_ROWS[1:]
        )
        if kind not in self._heads:
            few, many = self._time_head(kind, small), self._time_head(kind, large)
            power = math.log(many / few) / math.log(large / small)
            self._heads[kind] = many, min(max(power, _GROWTH[0]), _GROWTH[1])
        seconds, power = self._heads[kind]
        return float(seconds * max(rows / large, 0.1) ** power)

    def _time_head(self, kind: str, rows: int) -> float:
        import numpy as np

        from heads.fitting import fit_head

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

    def _network(self, strategy: str) -> Timing:
        from extract.engines import resolve_device
        from finetune.timing import time_training

        if strategy not in self._networks:
            self._networks[strategy] = time_training(
                network_of(self.context, strategy, 0),
                self.dataset_size.classes,
                settings_of(self.context, strategy, 0),
                resolve_device(self.context.options.device),
            )
        return self._networks[strategy]


def within_budget(
    cells: Sequence[Cell], cost_model: CostModel, budget: float, done: Sequence[Cell]
) -> list[Cell]:
    """Choose the cells that fit, of those that tell most for their time first.

    Parameters
    ----------
    cells : as ``Plan.cells`` lists them
    cost_model : predict their seconds
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
