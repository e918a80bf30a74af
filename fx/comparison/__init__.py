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
    from fx.comparison.strategies import STRATEGIES, Fitted, Strategy

_MODULES = {
    "comparison": ("compare",),
    "context": ("ComparisonContext", "DatasetSize", "nested_subset"),
    "cost": ("CostModel", "dataset_size_of", "preview"),
    "networks": ("networks_of", "settled"),
    "plan": ("Cell", "Plan"),
    "recommend": ("SAMPLED_IMAGES", "describe_quadrant", "distance_of_source"),
    "strategies": ("STRATEGIES", "Fitted", "Strategy"),
}

__all__ = [
    "SAMPLED_IMAGES",
    "STRATEGIES",
    "Cell",
    "ComparisonContext",
    "CostModel",
    "DatasetSize",
    "Fitted",
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
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
