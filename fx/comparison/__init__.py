"""The comparison: what it measures, what it costs, and what it says."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fx.comparison.advice import advise as advise
    from fx.comparison.comparison import compare as compare
    from fx.comparison.context import ComparisonContext as ComparisonContext
    from fx.comparison.context import DatasetSize as DatasetSize
    from fx.comparison.context import nested_subset as nested_subset
    from fx.comparison.cost import CostModel as CostModel
    from fx.comparison.cost import dataset_size_of as dataset_size_of
    from fx.comparison.cost import preview as preview
    from fx.comparison.networks import networks_of as networks_of
    from fx.comparison.networks import settled as settled
    from fx.comparison.plan import Cell as Cell
    from fx.comparison.plan import Plan as Plan
    from fx.comparison.recommend import SAMPLED_IMAGES as SAMPLED_IMAGES
    from fx.comparison.recommend import describe_quadrant as describe_quadrant
    from fx.comparison.recommend import distance_of_source as distance_of_source
    from fx.comparison.strategies import STRATEGIES as STRATEGIES
    from fx.comparison.strategies import Fitted as Fitted
    from fx.comparison.strategies import Strategy as Strategy

_MODULES = {
    "advice": ("advise",),
    "comparison": ("compare",),
    "context": ("ComparisonContext", "DatasetSize", "nested_subset"),
    "cost": ("CostModel", "dataset_size_of", "preview"),
    "networks": ("networks_of", "settled"),
    "plan": ("Cell", "Plan"),
    "recommend": ("SAMPLED_IMAGES", "describe_quadrant", "distance_of_source"),
    "strategies": ("STRATEGIES", "Fitted", "Strategy"),
}

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    # imported when asked for: a plan is checked, and strategies are listed, without SciPy
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
