"""The size from which on fine-tuning beats heads, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fx.comparison.verdict import Tables, kind_of
from heads.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2_000


def crossover(tables: Tables, seed: int = 0) -> dict[str, Any] | None:
    """Find from which size on the best fine-tuning beats the best head, and how sure that is.

    Between two measured sizes the size is interpolated in its logarithm. Seeds and images are
    resampled together; bounds are those of 95 % of the resamples.

    Returns
    -------
    ``n_train``; ``low`` and ``high``, null where the interval goes on beyond the largest size;
    ``share``, of the resamples in which it happens within the sizes measured. None where there is
    nothing to compare or it does not happen.
    """
    import numpy as np

    tuned = [sizes for name, sizes in tables.items() if name.startswith("finetune")]
    heads = [sizes for name, sizes in tables.items() if kind_of(name) in KINDS]
    if not tuned or not heads:
        return None
    sizes = sorted(
        {size for one in heads for size in one} & {size for one in tuned for size in one}
    )
    if not sizes:
        return None
    measured = _crossing(sizes, _advantage(tuned, heads, sizes, None))
    if math.isinf(measured):
        return None
    rng = np.random.default_rng(seed)
    found = np.array(
        [_crossing(sizes, _advantage(tuned, heads, sizes, rng)) for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    return {
        "n_train": round(measured),
        "low": round(low) if math.isfinite(low) else None,
        "high": round(high) if math.isfinite(high) else None,
        "share": float(np.isfinite(found).mean()),
    }


def _advantage(
    tuned: Sequence[Mapping[int, NDArray[np.int8]]],
    heads: Sequence[Mapping[int, NDArray[np.int8]]],
    sizes: Sequence[int],
    rng: np.random.Generator | None,
) -> list[float]:
    """Accuracy of the best fine-tuning less that of the best head, at every size."""
    import numpy as np

    images = next(iter(heads[0].values())).shape[1]
    chosen = np.arange(images) if rng is None else rng.integers(0, images, images)
    found = []
    for size in sizes:
        both = [[one[size] for one in side if size in one] for side in (tuned, heads)]
        fewest = min(len(table) for side in both for table in side)
        # the same draws for all strategies: what they share is no difference
        seeds = np.arange(fewest) if rng is None else rng.integers(0, fewest, fewest)
        best = [max(float(t[seeds][:, chosen].mean()) for t in side) for side in both]
        found.append(best[0] - best[1])
    return found


def _crossing(sizes: Sequence[int], advantage: Sequence[float]) -> float:
    """Size from which on the advantage stays positive; infinite where it ends otherwise."""
    last = max((i for i, gain in enumerate(advantage) if gain <= 0), default=-1)
    if last == len(sizes) - 1:
        return math.inf
    if last < 0:
        return float(sizes[0])
    before, after = advantage[last], advantage[last + 1]
    share = -before / (after - before)
    return math.exp(math.log(sizes[last]) * (1 - share) + math.log(sizes[last + 1]) * share)
