"""The comparison: what it measures, what it costs, and what it says."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fx.comparison.comparison import compare
    from fx.comparison.context import ComparisonContext, DatasetSize, nested_subset
    from fx.comparison.cost import CostModel, dataset_size_of, preview
    from fx.comparison.networks import networks_of, settled
    from fx.comparison.plan import Cell, Plan
    from fx.comparison.recommend import SAMPLED_IMAGES, describe_quadrant, distance_of_source
    from fx.comparison.strategies import STRATEGIES, Strategy

_WHERE = {
    "STRATEGIES": "strategies",
    "Strategy": "strategies",
    "Cell": "plan",
    "DatasetSize": "context",
    "Plan": "plan",
    "ComparisonContext": "context",
    "nested_subset": "context",
    "CostModel": "cost",
    "dataset_size_of": "cost",
    "preview": "cost",
    "networks_of": "networks",
    "settled": "networks",
    "SAMPLED_IMAGES": "recommend",
    "describe_quadrant": "recommend",
    "distance_of_source": "recommend",
    "compare": "comparison",
}

__all__ = [
    "SAMPLED_IMAGES",
    "STRATEGIES",
    "Cell",
    "ComparisonContext",
    "CostModel",
    "DatasetSize",
    "Plan",
    "Strategy",
    "compare",
    "dataset_size_of",
    "describe_quadrant",
    "distance_of_source",
    "nested_subset",
    "networks_of",
    "preview",
    "settled",
]


def __getattr__(name: str) -> Any:
    # imported when asked for: a plan is checked, and strategies are listed, without SciPy
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
