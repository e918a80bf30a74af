"""What a comparison says: intervals, paired tests, what it recommends, and the rule of thumb.

The rule is the one that everybody is taught. Few or many images, like those that the network was
trained on or not: four quadrants, each with a strategy (as in A. Karpathy, "Transfer learning",
notes to CS231n, Stanford). Neither border is in the rule; those that are used here are said
wherever a quadrant is named.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from fx.comparison.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    CrossedEffects,
    Tables,
    holm,
    of_images,
    simultaneous,
)
from fx.comparison.strategies import strategy_of
from fx.records import Difference, Estimate, Measurement, PairedTest, Quadrant, Recommendation

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.images import ImageSource, Snapshot

BOTH = "other training images, seeds and test images"
IMAGES = "other test images; not other training images"

MANY = 2_000  # training images
ALIKE = 0.5  # of ``extract.domain_shift``
SAMPLED_IMAGES = 64  # training images whose distance is measured
_RULES = {
    (False, True): ("head", "a linear classifier on frozen features"),
    (False, False): ("head", "a classifier on frozen features, best of an earlier layer"),
    (True, True): ("network", "fine-tuning"),
    (True, False): ("network", "fine-tuning all of it, or training from scratch"),
}


def estimates(tables: Tables) -> list[Estimate]:
    """Give every strategy's accuracy at every size, with an interval and what the interval covers.

    With three seeds or more it is over seeds and images together, else of the first seed's model
    on other images.
    """
    found = []
    for strategy, sizes in tables.items():
        for size, table in sizes.items():
            estimate, covers = _estimate(table)
            low, high = estimate.proportion_interval()
            interval = float(low), float(high)
            mean = float(table.mean())
            found.append(Estimate(strategy, size, len(table), mean, interval, covers))
    return found


def differences(tables: Tables) -> list[Difference]:
    """Compare strategies pair by pair at every size, paired by seed and image.

    Intervals hold at once over all pairs of a size (Bonferroni): the best is chosen by looking at
    all of them. p-values are corrected for the number of pairs and sizes (Holm).
    """
    found = []
    for a, b in combinations(tables, 2):
        for size in sorted(tables[a].keys() & tables[b].keys()):
            of_a, of_b = tables[a][size], tables[b][size]
            if len(of_a) != len(of_b):  # a cell was left out
                continue
            estimate, covers = _estimate(of_a.astype(float) - of_b)
            pairs = math.comb(sum(size in sizes for sizes in tables.values()), 2)
            low, high = estimate.interval(simultaneous(LEVEL, pairs))
            found.append(
                Difference(
                    size,
                    a,
                    b,
                    seeds=len(of_a),
                    difference=float(estimate.mean),
                    interval=(float(low), float(high)),
                    p_value=float(estimate.p_value()),
                    covers=covers,
                )
            )
    corrected = holm([one.p_value for one in found])
    return [msgspec.structs.replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def _estimate(table: NDArray[np.generic]) -> tuple[CrossedEffects, str]:
    if len(table) >= FEWEST_SEEDS:
        return CrossedEffects.of(table), BOTH
    return of_images(table[0]), IMAGES


def paired_tests(tables: Tables) -> list[PairedTest]:
    """Compare the fitted models at the largest size, pair by pair, on the same test images.

    Exact McNemar tests (a binomial test of the images that one of the two alone gets right),
    corrected for their number by Holm's method. They speak of the first seed's models, not of the
    strategies at large.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    largest = max(size for sizes in tables.values() for size in sizes)
    right = {s: sizes[largest][0] == 1 for s, sizes in tables.items() if largest in sizes}
    found = []
    for a, b in combinations(right, 2):
        only_a, only_b = int((right[a] & ~right[b]).sum()), int((~right[a] & right[b]).sum())
        test = mcnemar([[0, only_a], [only_b, 0]], exact=True)
        found.append(
            PairedTest(
                largest,
                a,
                b,
                difference=float(right[a].mean() - right[b].mean()),
                only_a_right=only_a,
                only_b_right=only_b,
                p_value=float(test.pvalue),
                test="exact McNemar",
            )
        )
    corrected = holm([one.p_value for one in found])
    return [msgspec.structs.replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def recommend(
    results: Sequence[Measurement],
    tables: Tables,
    compared: Sequence[Difference],
    prefer: str = "cheap",
) -> Recommendation:
    """Recommend a strategy at the largest size.

    The cheapest within one standard error of the best, or, with ``prefer`` "accuracy", the best.

    Parameters
    ----------
    results : of which the seconds count
    tables : of the same measurements
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
    figures = (
        f"{chosen}: accuracy {accuracy[chosen]:.3f} ({low:.3f} to {high:.3f}{alone}) after "
        f"{largest:,} training images, in {_duration(seconds[chosen])}"
    )
    figures += "." if chosen == best else f", within a standard error of the best, {best}."
    cheaper = [s for s in found if seconds[s] < seconds[chosen]]
    dearer = [s for s in found if s != chosen and s not in cheaper]
    if cheaper:
        other = max(cheaper, key=lambda strategy: seconds[strategy])
        relation = "the next cheaper"
    elif dearer:
        other = best if best != chosen else max(dearer, key=lambda strategy: accuracy[strategy])
        relation = "which takes longer"
    else:
        return Recommendation(chosen, _headline(chosen), figures)
    gain = _gain(chosen, other, relation, seconds, compared, largest)
    return Recommendation(chosen, _headline(chosen), f"{figures} {gain}")


def _headline(strategy: str) -> str:
    network = strategy.partition(" on ")[2]
    return strategy_of(strategy).headline + (f" of {network}" if network else "")


def _gain(
    chosen: str,
    other: str,
    relation: str,
    seconds: Mapping[str, float],
    compared: Sequence[Difference],
    size: int,
) -> str:
    """Say what is gained over another strategy, for how much time, and how sure that is."""
    pair = next((p for p in compared if p.n_train == size and {p.a, p.b} == {chosen, other}), None)
    more = seconds[chosen] - seconds[other]
    time = f"{_duration(abs(more))} {'more' if more > 0 else 'less'}"
    if pair is None:
        return f"{other}, {relation}, could not be compared with it at that size."
    sign = 1 if pair.a == chosen else -1
    low, high = sorted(100 * sign * bound for bound in pair.interval)
    # to the decimal that is shown, and no zero with a sign
    points = round(100 * sign * pair.difference, 1) + 0.0
    sure = "beyond chance" if low > 0 or high < 0 else "a difference that chance could make"
    return (
        f"Over {other}, {relation}, it gains {points:+.1f} points ({low:+.1f} to {high:+.1f}: "
        f"{sure}) for {time}."
    )


def _seconds(results: Sequence[Measurement], size: int) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for one in results:
        if one.n_train == size:
            found[one.strategy].append(one.number("seconds") or 0.0)
    return {strategy: sum(values) / len(values) for strategy, values in found.items()}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def quadrant_of(
    backbone: Backbone, snapshot: Snapshot, recommended: str, max_image_mb: int
) -> Quadrant:
    """Name the quadrant, what the rule says there, and whether the measurement agrees.

    Parameters
    ----------
    backbone : with its trained weights
    snapshot : of the images
    recommended : strategy that the measurement recommends
    max_image_mb : 2**20 bytes that an image may take as 8-bit RGB
    """
    from extract.images import ImageEntry, ImageSource

    train = snapshot.split("train")
    # keys are hashes: the first of them are a sample, and the same one every time
    some = sorted(train, key=lambda row: row.key)[:SAMPLED_IMAGES]
    entries = tuple(ImageEntry(row.path, None, None, None) for row in some)
    source = ImageSource(Path(snapshot.root), "unlabelled", entries, (), max_image_mb)
    return describe_quadrant(len(train), distance_of_source(backbone, source), recommended)


def distance_of_source(backbone: Backbone, source: ImageSource) -> float | None:
    """Distance of images from those that the network was trained on; see ``extract.domain_shift``.

    They are seen at the size at which the network's statistics were taken.
    """
    from extract.domain_shift import domain_distance
    from extract.images import batched, load_images

    loaded = load_images(source, backbone.preprocessing.at_size(backbone.trained_size))
    pixels = (one.pixels for one in loaded if one.pixels is not None)
    return domain_distance(backbone, batched(pixels, 32))


def describe_quadrant(n_train: int, distance: float | None, recommended: str | None) -> Quadrant:
    """Name the quadrant of a data set; see ``quadrant_of``."""
    many = n_train >= MANY
    alike = None if distance is None else distance <= ALIKE
    # unlike ones do not change which family the rule names
    family, rule = _RULES[many, alike is not False]
    size = f"{'many' if many else 'few'} images ({n_train:,}; many from {MANY:,})"
    if distance is None:
        like = "how like they are to the network's own cannot be told (it has no batch norm)"
    else:
        like = (
            f"{'like' if alike else 'unlike'} those that the network was trained on "
            f"(distance {distance:.2f}; unlike above {ALIKE})"
        )
    said = f"By the rule of thumb: {size}, {like}: {rule}."
    agrees = None
    if recommended is not None:
        strategy = strategy_of(recommended)
        agrees = strategy.on_features == (family == "head")
        said += (
            " The measurement agrees."
            if agrees
            else (f" The measurement contradicts it: {strategy.spelled}.")
        )
    return Quadrant(many, alike, distance, rule, agrees, said)
