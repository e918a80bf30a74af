"""What a comparison says: paired tests, the crossing size, and the recommendation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from heads import KINDS

Record = Mapping[str, Any]


def paired_tests(cells: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare the fitted models at the largest size, pair by pair, on the same test images.

    Exact McNemar tests (a binomial test of the images that one of the two alone gets right),
    corrected for their number by Holm's method. They speak of these fitted models, not of the
    strategies at large.

    Parameters
    ----------
    cells : records with ``strategy``, ``n_train``, ``seed``, ``predicted`` and ``truth``
    """
    import numpy as np
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests

    largest = max(cell["n_train"] for cell in cells)
    first = min(cell["seed"] for cell in cells)
    right = {
        cell["strategy"]: np.asarray(cell["predicted"]) == np.asarray(cell["truth"])
        for cell in cells
        if cell["n_train"] == largest and cell["seed"] == first
    }
    pairs = []
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
    if pairs:
        corrected = multipletests([pair["p_value"] for pair in pairs], method="holm")[1]
        for pair, p_value in zip(pairs, corrected, strict=True):
            pair["p_holm"] = float(p_value)
    return pairs


def _means(results: Sequence[Record], field: str) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in results:
        values[record["strategy"]][record["n_train"]].append(float(record[field]))
    return {
        strategy: {size: sum(found) / len(found) for size, found in sizes.items()}
        for strategy, sizes in values.items()
    }


def crossover(results: Sequence[Record]) -> dict[str, int] | None:
    """Find the smallest measured size from which on the best fine-tuning beats the best head.

    Returns
    -------
    ``{"n_train": size}``, or None where it does not happen within the sizes measured
    """
    accuracy = _means(results, "accuracy")
    tuned = [sizes for name, sizes in accuracy.items() if name.startswith("finetune")]
    heads = [sizes for name, sizes in accuracy.items() if name in KINDS]
    if not tuned or not heads:
        return None
    found = None
    for size in sorted({size for sizes in heads for size in sizes}, reverse=True):
        if max(s.get(size, 0.0) for s in tuned) <= max(s.get(size, 0.0) for s in heads):
            break
        found = size
    return None if found is None else {"n_train": found}


def recommend(results: Sequence[Record], pairs: Sequence[Record]) -> str:
    """Recommend the cheapest strategy within one standard error of the best, at the largest size.

    Parameters
    ----------
    results : records with ``strategy``, ``n_train``, ``accuracy``, ``seconds``, ``n_test``
    pairs : what ``paired_tests`` gave
    """
    largest = max(record["n_train"] for record in results)
    n_test = max(int(record["n_test"]) for record in results)
    accuracy = {s: v[largest] for s, v in _means(results, "accuracy").items() if largest in v}
    seconds = {s: v[largest] for s, v in _means(results, "seconds").items() if largest in v}
    best = max(accuracy, key=lambda strategy: (accuracy[strategy], -seconds[strategy]))
    # of a proportion on the test images; what another training set would change is not in it
    error = math.sqrt(accuracy[best] * (1 - accuracy[best]) / n_test)
    near = [s for s in accuracy if accuracy[s] >= accuracy[best] - error]
    chosen = min(near, key=lambda strategy: seconds[strategy])
    text = (
        f"Use {chosen}: accuracy {accuracy[chosen]:.3f} on {n_test:,} test images after "
        f"{largest:,} training images, in {_duration(seconds[chosen])}."
    )
    if chosen != best:
        gain = 100 * (accuracy[best] - accuracy[chosen])
        return (
            f"{text} {best} reached {gain:.1f} points more in {_duration(seconds[best])}: "
            "within one standard error."
        )
    others = [s for s in accuracy if s != chosen]
    if not others:
        return text
    second = max(others, key=lambda strategy: accuracy[strategy])
    gain = 100 * (accuracy[chosen] - accuracy[second])
    if not gain:
        return f"{text} {second} reached the same in {_duration(seconds[second])}."
    if len({record["seed"] for record in results}) > 1:
        return f"{text} {second} reached {accuracy[second]:.3f} in {_duration(seconds[second])}."
    p = next((pair["p_holm"] for pair in pairs if {pair["a"], pair["b"]} == {chosen, second}), 1.0)
    sure = "a difference beyond chance" if p < 0.05 else "a difference that chance could make"
    return (
        f"{text} {second} reached {accuracy[second]:.3f} in {_duration(seconds[second])}, "
        f"{gain:.1f} points less: {sure} (p = {p:.2g})."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
