"""The strategies that a comparison measures: one a module, and every head.

A strategy is spelled ``name`` or ``name:argument``, and where several networks are compared
``name:argument on network``.
"""

from extract.registry import Registry
from fx.comparison.strategies._heads import HeadStrategy
from fx.comparison.strategies._strategy import Costs, Disk, Fitted, Strategy
from fx.comparison.strategies._training import BATCH_SIZE
from fx.comparison.strategies.finetune import read_flips
from heads.kinds import HEADS


class _Strategies(Registry[Strategy]):
    """The package's modules, and a strategy for each head."""

    def names(self) -> tuple[str, ...]:
        return (*HEADS.names(), *super().names())

    def help(self, name: str) -> str:
        return HEADS.help(name) if name in HEADS else super().help(name)

    def __getitem__(self, name: str) -> Strategy:
        return (
            HeadStrategy(name, help_=HEADS.help(name))
            if name in HEADS
            else super().__getitem__(name)
        )


STRATEGIES: Registry[Strategy] = _Strategies(__name__, "STRATEGY", "strategy")


def strategy_of(spelled: str) -> Strategy:
    """Find a strategy.

    Raises
    ------
    FxError
        If there is none of that name, or it takes no such argument.
    """
    name, _, argument = spelled.split(" on ")[0].partition(":")
    return STRATEGIES[name].with_argument(argument)
