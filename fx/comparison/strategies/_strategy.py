"""What a strategy is: it prepares, fits, says what that costs, and how it is called and drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from extract.errors import FxError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract.backbones import Backbone
    from finetune.settings import FinetuneSettings
    from finetune.timing import Timing
    from fx.comparison.context import ComparisonContext, DatasetSize, OpenContext, Subset
    from heads.evaluation import Evaluation


@dataclass(frozen=True)
class Fitted:
    """What fitting one cell gave.

    Attributes
    ----------
    probabilities : float64 array of shape (n_test, classes), of the test rows
    classes : in the order of its columns
    evaluation : of the test rows; None to have it made from the probabilities
    settings_tried : of which held-out rows chose
    files : in the cell's folder, which a model is opened from; none if there is no model
    milliseconds : that an image's label takes beside the pretrained network; None where there is
        another network
    details : other fields of ``fx.records.Measurement``, by name
    """

    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    evaluation: Evaluation | None = None
    settings_tried: int = 1
    files: tuple[str, ...] = ()
    milliseconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """Bytes that a strategy keeps.

    Attributes
    ----------
    cached : of what several cells share
    shared_as : name of it: strategies that have it in common share it
    model : of one model
    """

    cached: int = 0
    shared_as: str = ""
    model: int = 0


class Costs(Protocol):
    """What short trials on this machine tell; see ``fx.comparison.cost.CostModel``."""

    context: ComparisonContext
    dataset_size: DatasetSize

    def extraction(self) -> float:
        """Seconds of extracting all images."""

    def head_seconds(self, kind: str, rows: int) -> float:
        """Seconds of fitting a head on so many rows."""

    def timing(
        self, name: str, open_network: Callable[[], Backbone], settings: FinetuneSettings
    ) -> Timing:
        """What one image costs a training; it is tried once for each name."""


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to a classifier.

    Attributes
    ----------
    name : in the registry
    argument : what stands behind the colon, checked by ``with_argument``
    on_features, fine_tunes, from_scratch : whether it fits a head on features of the frozen
        network, or trains the pretrained one, or one from random weights
    needs_backbone : False for one that is the same whichever networks are compared
    prepares : whether ``prepare`` is to be called
    """

    name: str
    argument: str = ""

    on_features: ClassVar[bool] = False
    fine_tunes: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False
    needs_backbone: ClassVar[bool] = True
    prepares: ClassVar[bool] = False

    def with_argument(self, argument: str) -> Self:
        """Take what stands behind the colon; raises FxError where that cannot be."""
        if argument:
            raise FxError(f"{self.name} takes no argument; got {self.name}:{argument}")
        return replace(self, argument=argument)

    @property
    def spelled(self) -> str:
        """Name and argument."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def headline(self) -> str:
        """What to do, in a line without a full stop."""
        return f"Use {self.spelled}"

    @property
    def description(self) -> str:
        """What it does, for the report; empty to leave it out."""
        return ""

    @property
    def style(self) -> int | None:
        """Number of the style that it is drawn in; None for any that is free."""
        return None

    def check(self, backbone: Backbone) -> None:
        """Raise FxError where a network does not have what the strategy needs."""
        return

    def decide(self, context: ComparisonContext, run: Callable[..., Any]) -> ComparisonContext:
        """Decide what holds for all cells, before the first of them.

        ``run(function, *arguments)`` calls a function in a process of its own.
        """
        return context

    def prepare(self, opened: OpenContext) -> None:
        """Compute what all cells share, before the first that is not finished."""
        return

    @abstractmethod
    def fit(self, opened: OpenContext, subset: Subset) -> Fitted:
        """Fit one cell; raises FxError where its rows do not suffice."""

    def seconds(self, costs: Costs, n_train: int) -> float:
        """Predict the seconds that a cell's fit takes."""
        return 0.0

    def seconds_of_preparing(self, costs: Costs) -> float:
        """Predict the seconds of ``prepare``."""
        return 0.0

    def disk(self, costs: Costs) -> Disk:
        """Predict what is kept."""
        return Disk()
