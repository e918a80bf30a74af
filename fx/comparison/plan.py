"""What a comparison measures: strategies, sizes of the training set, and seeds of each size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from extract.errors import FxError
from fx.comparison.strategies import strategy_of

DEFAULT_STRATEGIES = ("logreg", "svm", "finetune:1")
SIZES = 5  # the fewest that a learning curve is fitted to
REPEATED = 5_000  # training images up to which every size has all seeds
FEWEST_PER_CLASS = 5  # images of the smallest default size


class Cell(NamedTuple):
    """One strategy, fitted on one training subset; the seed says which of that size."""

    strategy: str
    n_train: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """What a comparison measures.

    Attributes
    ----------
    strategies : as ``fx.comparison.strategies`` spells them, each once
    sizes : training images in all; empty: evenly in the logarithm up to all rows
    seeds : draws of each size at least; see ``seeds_of``
    epochs : most epochs of a fine-tuning; None for 7, and more where there are few images
    class_weight : ``balanced`` for classes that weigh the same however many images they have
    """

    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    sizes: tuple[int, ...] = ()
    seeds: int = 3
    epochs: int | None = None
    class_weight: str | None = None

    def __post_init__(self) -> None:
        if not self.strategies:
            raise ValueError("no strategies; choose one at least, such as logreg")
        if named := [one for one in self.strategies if " on " in one]:
            raise ValueError(f"a strategy names no network; got {named[0]!r}")
        try:
            spelled = [strategy_of(strategy).spelled for strategy in self.strategies]
        except FxError as error:
            raise ValueError(str(error)) from error
        # each once, and in one spelling, since none is compared with itself
        object.__setattr__(self, "strategies", tuple(dict.fromkeys(spelled)))
        if any(size < 2 for size in self.sizes):
            raise ValueError(f"a training set needs at least 2 images; got {min(self.sizes)}")
        if self.seeds < 1 or (self.epochs is not None and self.epochs < 1):
            raise ValueError("seeds and epochs must be at least 1")

    def cells(
        self, sizes: Sequence[int], available: int, seed: int, folds: int = 1
    ) -> Iterator[Cell]:
        """List the cells, those first that tell most for their time.

        Parameters
        ----------
        sizes : as ``subset_sizes`` gave them
        available : training rows
        seed : the first one
        folds : outer folds, each of which is a draw of its own
        """
        for draw in range(-(-self.seeds // folds)):
            for size in sizes:
                if draw < self.seeds_of(size, available):
                    for strategy in self.strategies:
                        yield Cell(strategy, size, seed + draw)

    def seeds_of(self, size: int, available: int) -> int:
        """Decide how many draws there are of a size: fewer as they grow.

        Each has its own seed and, where not all images are used, its own training subset. Of many
        images as many subsets as there would be room for side by side: trainings on them take
        long, and their draws differ little.
        """
        return self.seeds if size <= REPEATED else min(self.seeds, max(1, available // size))


def subset_sizes(wanted: Sequence[int], available: int, classes: int) -> list[int]:
    """Decide the sizes of a comparison.

    Parameters
    ----------
    wanted : asked for, two a class at least and all at most; empty for five, spaced by a constant
        factor from five images a class up to all
    available : training rows
    classes : of them
    """
    if wanted:
        return sorted({min(max(size, 2 * classes), available) for size in wanted})
    smallest = min(FEWEST_PER_CLASS * classes, available)
    ratio = (available / smallest) ** (1 / (SIZES - 1))
    return sorted({round(smallest * ratio**step) for step in range(SIZES)})
