"""The metrics: one a module, each a function of true classes and predicted probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extract.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """One number that says how good predictions are.

    Attributes
    ----------
    name : str, in JSON
    label : str, in tables and plots
    function : called with labels, int array of shape (n,), n > 0, and probabilities, float64 array
        of shape (n, k) with rows that sum to one; gives the value, NaN where it is not defined
    higher_is_better : bool
    needs_probabilities : bool, False where the most probable class is all that counts
    per_image : called like `function`; gives float64 scores of shape (n,), whose mean is the value
        and whose spread is its error. Without it, nothing can be decided by the metric
    is_share : bool, whether these scores are 0 or 1
    """

    name: str
    label: str
    function: Callable[[NDArray[np.intp], NDArray[np.float64]], float]
    higher_is_better: bool = True
    needs_probabilities: bool = False
    per_image: Callable[[NDArray[np.intp], NDArray[np.float64]], NDArray[np.float64]] | None = None
    is_share: bool = False

    @property
    def heading(self) -> str:
        """The label as a line or a column begins with it."""
        return self.label[:1].upper() + self.label[1:]


METRICS: Registry[Metric] = Registry(__name__, "METRIC", "metric")
