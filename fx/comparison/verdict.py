"""What a comparison says: intervals, paired tests, forecasts, and two sentences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from fx.comparison.forecast import forecast
from fx.comparison.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    CrossedEffects,
    holm,
    of_images,
    right_table,
    simultaneous,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Record = Mapping[str, Any]
# strategy → size → int8 array of shape (seeds, images)
Tables = Mapping[str, Mapping[int, "NDArray[np.int8]"]]

BOTH = "other training images, seeds and test images"
IMAGES = "other test images; not other training images"


class Recommendation(NamedTuple):
    """A strategy, and why in two sentences."""

    strategy: str
    said: str


def kind_of(strategy: str) -> str:
    """Name a strategy without its network, which is named where there are several."""
    return strategy.split(" on ")[0]


def tables_of(cells: Iterable[Record]) -> dict[str, dict[int, NDArray[np.int8]]]:
    """Say of every strategy and size which images each seed got right.

    Parameters
    ----------
    cells : records with ``strategy``, ``n_train``, ``seed``, ``predicted`` and ``truth``
    """
    found: dict[str, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        found[cell["strategy"]][cell["n_train"]].append(cell)
    return {
        strategy: {size: right_table(of_size) for size, of_size in sorted(sizes.items())}
        for strategy, sizes in found.items()
    }


def estimates(tables: Tables) -> list[dict[str, Any]]:
    """Give every strategy's accuracy at every size, with an interval and what the interval covers.

    With three seeds or more it is over seeds and images together, else of the first seed's model
    on other images.
    """
    records: list[dict[str, Any]] = []
    for strategy, sizes in tables.items():
        for size, table in sizes.items():
            estimate, covers = _estimate(table)
            low, high = estimate.proportion_interval()
            records.append(
                {
                    "strategy": strategy,
                    "n_train": size,
                    "seeds": len(table),
                    "accuracy": float(table.mean()),
                    "interval": [float(low), float(high)],
                    "covers": covers,
                }
            )
    return records


def differences(tables: Tables) -> list[dict[str, Any]]:
    """Compare strategies pair by pair at every size, paired by seed and image.

    Intervals hold at once over all pairs of a size (Bonferroni): the best is chosen by looking at
    all of them. p-values are corrected for the number of pairs and sizes (Holm).
    """
    records: list[dict[str, Any]] = []
    for a, b in combinations(tables, 2):
        for size in sorted(tables[a].keys() & tables[b].keys()):
            of_a, of_b = tables[a][size], tables[b][size]
            if len(of_a) != len(of_b):  # a cell was left out
                continue
            estimate, covers = _estimate(of_a.astype(float) - of_b)
            pairs = math.comb(sum(size in sizes for sizes in tables.values()), 2)
            low, high = estimate.interval(simultaneous(LEVEL, pairs))
            records.append(
                {
                    "n_train": size,
                    "a": a,
                    "b": b,
                    "seeds": len(of_a),
                    "difference": float(estimate.mean),
                    "interval": [float(low), float(high)],
                    "p_value": float(estimate.p_value()),
                    "covers": covers,
                }
            )
    for record, p in zip(records, holm([r["p_value"] for r in records]), strict=True):
        record["p_holm"] = p
    return records


def _estimate(table: NDArray[Any]) -> tuple[CrossedEffects, str]:
    if len(table) >= FEWEST_SEEDS:
        return CrossedEffects.of(table), BOTH
    return of_images(table[0]), IMAGES


def paired_tests(tables: Tables) -> list[dict[str, Any]]:
    """Compare the fitted models at the largest size, pair by pair, on the same test images.

    Exact McNemar tests (a binomial test of the images that one of the two alone gets right),
    corrected for their number by Holm's method. They speak of the first seed's models, not of the
    strategies at large.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    largest = max(size for sizes in tables.values() for size in sizes)
    right = {s: sizes[largest][0] == 1 for s, sizes in tables.items() if largest in sizes}
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(right, 2):
        only_a, only_b = int((right[a] & ~right[b]).sum()), int((~right[a] & right[b]).sum())
        test = mcnemar([[0, only_a], [only_b, 0]], exact=True)
        pairs.append(
            {
                "n_train": largest,
                "a": a,
                "b": b,
                "difference": float(right[a].mean() - right[b].mean()),
                "only_a_right": only_a,
                "only_b_right": only_b,
                "p_value": float(test.pvalue),
                "test": "exact McNemar",
            }
        )
    for pair, p in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = p
    return pairs


def forecasts(tables: Tables, wanted: float | None = None) -> list[dict[str, Any]]:
    """Say of every strategy what more images would bring; see ``fx.comparison.forecast``."""
    return [forecast(strategy, sizes, wanted) for strategy, sizes in tables.items()]


def recommend(
    results: Sequence[Record], tables: Tables, compared: Sequence[Record], prefer: str = "cheap"
) -> Recommendation:
    """Recommend a strategy at the largest size, in two sentences.

    The cheapest within one standard error of the best, or, with ``prefer`` "accuracy", the best.

    Parameters
    ----------
    results : records with ``strategy``, ``n_train`` and ``seconds``
    tables : of the same cells
    compared : what ``differences`` gave
    prefer : "cheap" or "accuracy"
    """
    largest = max(size for sizes in tables.values() for size in sizes)
    at_largest = {s: sizes[largest] for s, sizes in tables.items() if largest in sizes}
    found = {strategy: _estimate(table) for strategy, table in at_largest.items()}
    accuracy = {strategy: float(table.mean()) for strategy, table in at_largest.items()}
    seconds = _seconds(results, largest)
    best = max(accuracy, key=lambda strategy: (accuracy[strategy], -seconds[strategy]))
    error = 0.0 if prefer == "accuracy" else float(found[best][0].error)
    near = [s for s in accuracy if accuracy[s] >= accuracy[best] - error]
    chosen = min(near, key=lambda strategy: seconds[strategy])
    estimate, covers = found[chosen]
    low, high = estimate.proportion_interval(simultaneous(LEVEL, len(found)))
    alone = "" if covers == BOTH else ", test images alone"
    first = (
        f"Use {chosen}: accuracy {accuracy[chosen]:.3f} ({low:.3f} to {high:.3f}{alone}) after "
        f"{largest:,} training images, in {_duration(seconds[chosen])}"
    )
    first += "." if chosen == best else f", within a standard error of the best, {best}."
    cheaper = [s for s in found if seconds[s] < seconds[chosen]]
    dearer = [s for s in found if s != chosen and s not in cheaper]
    if cheaper:
        other = max(cheaper, key=lambda strategy: seconds[strategy])
        relation = "the next cheaper"
    elif dearer:
        other = best if best != chosen else max(dearer, key=lambda strategy: accuracy[strategy])
        relation = "which takes longer"
    else:
        return Recommendation(chosen, first)
    gain = _gain(chosen, other, relation, seconds, compared, largest)
    return Recommendation(chosen, f"{first} {gain}")


def _gain(
    chosen: str,
    other: str,
    relation: str,
    seconds: Mapping[str, float],
    compared: Sequence[Record],
    size: int,
) -> str:
    """Say what is gained over another strategy, for how much time, and how sure that is."""
    pair = next(
        (p for p in compared if p["n_train"] == size and {p["a"], p["b"]} == {chosen, other}), None
    )
    more = seconds[chosen] - seconds[other]
    time = f"{_duration(abs(more))} {'more' if more > 0 else 'less'}"
    if pair is None:
        return f"{other}, {relation}, could not be compared with it at that size."
    sign = 1 if pair["a"] == chosen else -1
    low, high = sorted(100 * sign * bound for bound in pair["interval"])
    # to the decimal that is shown, and no zero with a sign
    points = round(100 * sign * pair["difference"], 1) + 0.0
    sure = "beyond chance" if low > 0 or high < 0 else "a difference that chance could make"
    return (
        f"Over {other}, {relation}, it gains {points:+.1f} points ({low:+.1f} to {high:+.1f}: "
        f"{sure}) for {time}."
    )


def _seconds(results: Sequence[Record], size: int) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for record in results:
        if record["n_train"] == size:
            found[record["strategy"]].append(float(record["seconds"]))
    return {strategy: sum(values) / len(values) for strategy, values in found.items()}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
