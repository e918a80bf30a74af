"""The comparison: what it measures, what it costs, and what it says."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fx.comparison.advice import advise as advise
    from fx.comparison.comparison import compare as compare
    from fx.comparison.context import nested_subset as nested_subset
    from fx.comparison.cost import preview as preview
    from fx.comparison.plan import Plan as Plan
    from fx.comparison.strategies import STRATEGIES as STRATEGIES

_MODULES = {
    "Plan": "plan",
    "STRATEGIES": "strategies",
    "advise": "advice",
    "compare": "comparison",
    "nested_subset": "context",
    "preview": "cost",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    # imported when asked for: a plan is checked, and strategies are listed, without SciPy
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
