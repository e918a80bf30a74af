"""What the comparison states, driven with tables whose truth is known.

Every table below is made by fx's own functions from simulated predictions: how often an interval
holds the truth, a strategy is called better that is not, one that is better is chosen, a crossing
is told of equal strategies, and a forecast holds what one more run gives. Percentages have the
error of so many repetitions: .95 of 1,000 is between .936 and .963.

    python benchmarks/simulations.py --repetitions 1000 --out benchmarks/statistics.md

An image has an ease, which all share (.8 of the variance of the margin by which it is told), one
that a strategy has for it (.1), and chance of the single draw (.1): at an accuracy of .9 two draws
of one strategy differ on 6 % of images, two strategies on 9 %, as networks and heads do on
CIFAR-10. A draw moves the margin of all images, so that its accuracy has the deviation given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fx.comparison.learning_curve import AHEAD, crossover, fit_curves
from fx.comparison.recommend import choose
from fx.comparison.statistics import Scores
from fx.records import Measurement
from heads.metrics import METRICS

STRATEGIES = ("logreg", "svm", "finetune:1", "finetune:2", "finetune:all")
SIZES = (20, 80, 320, 1280, 5120)
SHARED, OWN, CHANCE = 0.8, 0.1, 0.1
CLASSES = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes
    ----------
    accuracies : of every strategy, the true ones at the largest size
    draws : of every size, the smallest first; as many sizes as there are numbers
    images : test images
    deviation : of the accuracy between draws, at the largest size
    decay : the variance between draws falls with the training images to the power of it
    members : images of a group; 1 for none. In a group all share their ease
    steps : points of accuracy that the strategies gain from one size to the next
    """

    accuracies: tuple[float, ...] = (0.9, 0.9)
    draws: tuple[int, ...] = (3, 3, 3, 3, 3)
    images: int = 2000
    deviation: float = 0.003
    decay: float = 0.0
    members: int = 1
    steps: tuple[float, ...] = (0.0,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Training images."""
        return SIZES[len(SIZES) - len(self.draws) :]

    def accuracy(self, strategy: int, place: int) -> float:
        """True accuracy of a strategy at a size."""
        step = self.steps[strategy % len(self.steps)]
        return self.accuracies[strategy] - step * (len(self.draws) - 1 - place)

    def scores(self, rng: np.random.Generator, metric: str = "accuracy") -> Scores:
        """Draw the test images, every run's predictions on them, and score those."""
        groups = None if self.members == 1 else np.arange(self.images) // self.members
        ease = rng.normal(size=self.images if groups is None else groups.max() + 1)
        shared = SHARED**0.5 * (ease if groups is None else ease[groups])
        truth = rng.choice(CLASSES, self.images, p=(0.6, 0.3, 0.1))
        cells = []
        for number in range(len(self.accuracies)):
            own = shared + OWN**0.5 * rng.normal(size=self.images)
            for place, (size, draws) in enumerate(zip(self.sizes, self.draws, strict=True)):
                middle = norm.ppf(self.accuracy(number, place))
                deviation = self.deviation * (self.sizes[-1] / size) ** (self.decay / 2)
                moved = rng.normal(size=(draws, 1)) * deviation / norm.pdf(middle)
                chance = CHANCE**0.5 * rng.normal(size=(draws, self.images))
                for seed, margin in enumerate(middle + moved + own + chance):
                    cell = Measurement(
                        STRATEGIES[number], size, seed, truth=truth.tolist(), seconds=number + 1.0
                    )
                    cells.append((cell, _probabilities(margin, truth)))
        return Scores.of(METRICS[metric], cells, groups)

    @property
    def label(self) -> Row:
        """What tells it from others, for a table."""
        return {
            "test images": self.images,
            "draws": "/".join(map(str, self.draws)),
            "deviation": self.deviation,
            "in a group": self.members,
        }


def _probabilities(margin: NDArray[np.float64], truth: NDArray[np.intp]) -> NDArray[np.float64]:
    """Probabilities of three classes: right where the margin is above 0."""
    of_true = 1 / (1 + np.exp(-3 * margin))
    found = np.repeat(0.02 * (1 - of_true)[:, None], CLASSES, axis=1)
    rows = np.arange(len(truth))
    found[rows, (truth + 1) % CLASSES] = 0.98 * (1 - of_true)
    found[rows, truth] = of_true
    return found


def truth_of(world: World, metric: str, strategy: int = 0) -> float:
    """The mean score at the largest size of ever so many draws and images."""
    many = World((world.accuracies[strategy],), (40,), 50_000, world.deviation)
    scores = many.scores(np.random.default_rng(99), metric)
    return float(scores.tables[STRATEGIES[0]][SIZES[-1]].mean())


def intervals(world: World, repetitions: int, metric: str = "accuracy") -> Row:
    """How often 95 % intervals hold a strategy's mean score, and the gain of an equal one."""
    truth = world.accuracies[0] if metric == "accuracy" else truth_of(world, metric)
    mean, gain, wide = [], [], []
    for seed in range(repetitions):
        scores = world.scores(np.random.default_rng(seed), metric)
        size = scores.sizes[-1]
        bounds = scores.mean_of(STRATEGIES[0], size).interval()
        between = scores.gain_of(STRATEGIES[1], STRATEGIES[0], size).interval()
        assert bounds, "groups enough"
        assert between, "groups enough"
        mean.append(bounds[0] <= truth <= bounds[1])
        gain.append(between[0] <= 0 <= between[1])
        wide.append(between[1] - between[0])
    return {
        **world.label,
        "metric": metric,
        "mean covered": np.mean(mean),
        "gain covered": np.mean(gain),
        "median width": np.median(wide),
    }


def choices(world: World, repetitions: int, metric: str = "accuracy") -> Row:
    """How often a dearer strategy is chosen, and the dearest; crossings are counted beside."""
    dearer, dearest, crossed = [], [], []
    seconds = {name: 10.0**place for place, name in enumerate(STRATEGIES)}
    for seed in range(repetitions):
        scores = world.scores(np.random.default_rng(seed), metric)
        chosen = choose(scores, seconds).strategy
        dearer.append(chosen != STRATEGIES[0])
        dearest.append(chosen == STRATEGIES[len(world.accuracies) - 1])
        crossed.append(crossover(scores) is not None)
    return {
        **world.label,
        "strategies": len(world.accuracies),
        "gain of the last": round(100 * (world.accuracies[-1] - world.accuracies[0]), 1),
        "metric": metric,
        "not the cheapest": np.mean(dearer),
        "the last": np.mean(dearest),
        "a crossing told": np.mean(crossed),
    }


def crossings(world: World, repetitions: int) -> Row:
    """How often the bounds of a crossing hold the true one, where it is told."""
    advantage = [world.accuracy(2, n) - world.accuracy(0, n) for n in range(len(world.sizes))]
    place = next(n for n, value in enumerate(advantage) if value > 0)
    before, after = advantage[place - 1], advantage[place]
    share = -before / (after - before)
    low, high = np.log(world.sizes[place - 1]), np.log(world.sizes[place])
    truth = np.exp(low + share * (high - low))
    held, told = [], 0
    for seed in range(repetitions):
        found = crossover(world.scores(np.random.default_rng(seed)))
        if found is not None:
            told += 1
            held.append((found.low or 0) <= truth <= found.high)
    return {**world.label, "told": told / repetitions, "bounds hold it": np.mean(held)}


def forecasts(
    law: Callable[[float], float], world: World, repetitions: int, sizes: Sequence[int]
) -> Row:
    """How often 90 % intervals hold what one more run gives on the same test images."""
    covered, declined = [], 0
    later = [times * sizes[-1] for times in AHEAD]
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        ease = rng.normal(size=world.images)
        tables = {}
        for size, draws in zip((*sizes, *later), (*world.draws, 1, 1), strict=True):
            middle = norm.ppf(law(size))
            deviation = world.deviation * (sizes[-1] / size) ** (world.decay / 2)
            moved = rng.normal(size=(draws, 1)) * deviation / norm.pdf(middle)
            chance = (1 - SHARED) ** 0.5 * rng.normal(size=(draws, world.images))
            margin = middle + moved + SHARED**0.5 * ease + chance
            tables[size] = (margin > 0).astype(np.float64)
        curves = fit_curves({size: tables[size] for size in sizes})
        if curves is None:
            declined += 1
            continue
        _, low, high = curves.at(later)
        found = np.array([tables[size].mean() for size in later])
        covered += ((low <= found) & (found <= high)).tolist()
    return {
        "test images": world.images,
        "draws": "/".join(map(str, world.draws)),
        "deviation": world.deviation,
        "declined": declined / repetitions,
        "covered": np.mean(covered) if covered else None,
    }


def power_law(exponent: float, turn: float = 0.0) -> Callable[[float], float]:
    """Accuracy of n images; `turn` is what a doubling beyond 250 images loses of it."""
    return lambda n: 1 - 0.04 - 1.2 * n**-exponent - turn * max(0.0, np.log2(n / 250))


def markdown(title: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """A table of rows that have the same names."""
    listed = list(rows)
    names = list(listed[0])
    lines = [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in listed:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/statistics.md"))
    options = parser.parse_args()
    n = options.repetitions
    three, one_last = (3, 3, 3, 3, 3), (3, 3, 3, 3, 1)
    deviations = (0.0, 0.003, 0.01, 0.02)
    worlds = [World(draws=draws, deviation=d) for draws in (three, one_last) for d in deviations]
    worlds += [
        World(draws=(count,) * sizes, deviation=0.01)
        for count, sizes in ((1, 5), (2, 5), (5, 5), (2, 1), (3, 1), (5, 1))
    ]
    worlds += [World(images=images) for images in (40, 100, 400, 4000)]
    groups = [World(images=images, members=m) for m in (5, 20) for images in (400, 2000, 4000)]
    equal = [(0.9,) * count for count in (2, 3, 5)]
    better = [(0.9, 0.92), (0.9, 0.9, 0.92), (0.9, 0.95)]
    parts = [
        markdown(
            "Intervals: nominal .95, two equal strategies",
            [intervals(world, n) for world in worlds + groups],
        ),
        markdown(
            "The same by log loss and macro F1",
            [
                intervals(world, n // 2, metric)
                for metric in ("log_loss", "macro_f1")
                for world in (World(), World(images=200), World(deviation=0.01), World(members=5))
            ],
        ),
        markdown(
            "Equal strategies: a dearer one is chosen, a crossing told (at most .05 each)",
            [
                choices(World(accuracies=a, draws=draws, deviation=d), n)
                for a in equal
                for draws in (three, one_last, (3,), (1,))
                for d in deviations
            ]
            + [
                choices(World(accuracies=equal[1], members=m), n, metric)
                for m, metric in ((5, "accuracy"), (20, "accuracy"), (1, "log_loss"))
            ],
        ),
        markdown(
            "A better strategy is chosen",
            [
                choices(World(accuracies=a, draws=draws, deviation=d, images=images), n)
                for a in better
                for images, draws, d in (
                    (2000, three, 0.003),
                    (4000, three, 0.003),
                    (2000, three, 0.01),
                    (2000, (3,), 0.01),
                    (4000, one_last, 0.003),
                )
            ]
            + [choices(World(accuracies=better[0], deviation=0.003, decay=1.0), n)],
        ),
        markdown(
            "Crossings: the fine-tuning of three strategies overtakes two heads",
            [
                crossings(
                    World((0.9, 0.9, 0.93), deviation=d, steps=(0.0, 0.0, 0.02), images=images), n
                )
                for d in (0.003, 0.01)
                for images in (1000, 4000)
            ],
        ),
        markdown(
            "Forecasts: nominal .90",
            [
                {
                    "exponent": exponent,
                    "turn": turn,
                    **forecasts(power_law(exponent, turn), world, max(1, n // 5), FORECAST_SIZES),
                }
                for exponent, turn, world in FORECASTS
            ],
        ),
    ]
    options.out.write_text(
        f"# The comparison's statements, simulated\n\nMade by `benchmarks/simulations.py`, which "
        f"says how; {n:,} repetitions a row. Where every size has one draw, the interval of a mean "
        f"allows for other test images alone, and is told as that.\n\n" + "\n".join(parts)
    )


FORECAST_SIZES = (40, 100, 250, 630, 1600)
_ALL, _ONE = (3, 3, 3, 3, 3), (3, 3, 3, 3, 1)
FORECASTS = [
    *((exponent, 0.0, World(draws=_ALL)) for exponent in (0.35, 0.5, 0.7)),
    *((0.5, 0.0, World(draws=_ONE, deviation=d)) for d in (0.0, 0.003, 0.01)),
    (0.5, 0.0, World(draws=(1,) * 5)),
    (0.5, 0.0, World(draws=_ALL, decay=1.0)),
    (0.5, 0.0, World(draws=_ALL, images=400)),
    *((0.5, turn, World(draws=_ALL)) for turn in (0.02, 0.04)),
]

if __name__ == "__main__":
    main()
