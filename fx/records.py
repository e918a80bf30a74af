"""Typed records that pass between functions: JSON becomes a record when it is read, and only then.

The names of the fields are those of the JSON. A field that is None by default is left out of it.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from extract.records import Record, as_html

Interval = tuple[float, float]
LEARNING_CURVE = "learning_curve.png"  # beside a comparison's report


class Measurement(Record, frozen=True, omit_defaults=True):
    """One strategy, fitted on one training subset and measured on the test images.

    In JSON the scores stand beside the other fields.

    Attributes
    ----------
    strategy : as it is spelled, with its network where there are several
    n_train, seed : images that it was fitted on; which of the subsets of that size they are
    scores : by the metric's name
    accuracy_ci : 95 % interval of the accuracy, over other test images alone
    majority, n_test, n_groups, measured_by, per_class, confusion : see ``heads.evaluation``
    reliability, reliability_uncalibrated : mean confidence, accuracy and images of each bin
    classes : in the order of the probabilities' columns
    predicted, confidence, truth : of each test image the class, its probability, the true class
    fold : of each test image, the outer fold that it was held out in; None without folds, else
        what is said of a fit is said of the first fold's
    n_fitted : images that the delivered weights were fitted on
    c : inverse penalty of a head, or its number of neighbours
    calibration : temperature, log loss and calibration error before and after
    trainable_parameters : how many numbers were fitted
    epochs, best_epoch, augment, history : of a training; the history has a record an epoch
    settings_tried : of which held-out images chose
    seconds, shared_seconds : of fitting and measuring; of what was prepared for all cells
    peak_memory_mb, deployed_mb : of the process; of what predictions need
    predict_ms : milliseconds that an image takes, decoding included
    """

    strategy: str
    n_train: int
    seed: int
    scores: dict[str, float | None] = {}
    accuracy_ci: Interval | None = None
    majority: float | None = None
    n_test: int | None = None
    n_groups: int | None = None
    measured_by: str | None = None
    per_class: list[dict[str, str | int | float | None]] | None = None
    confusion: list[list[int]] | None = None
    reliability: list[tuple[float, float, int]] | None = None
    reliability_uncalibrated: list[tuple[float, float, int]] | None = None
    classes: tuple[str, ...] | None = None
    predicted: list[int] | None = None
    confidence: list[float] | None = None
    truth: list[int] | None = None
    fold: list[int] | None = None
    n_fitted: int | None = None
    c: float | None = None
    calibration: dict[str, float | str | None] | None = None
    trainable_parameters: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    augment: str | None = None
    history: list[dict[str, int | float | None]] | None = None
    settings_tried: int | None = None
    seconds: float | None = None
    shared_seconds: float | None = None
    peak_memory_mb: float | None = None
    deployed_mb: float | None = None
    predict_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Turn into values that JSON can hold, the scores beside the rest."""
        plain = super().as_json()
        scores = plain.pop("scores", {})
        first = {name: plain.pop(name) for name in ("strategy", "n_train", "seed")}
        return {**first, **scores, **plain}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Measurement:
        """Make a record of JSON values; what is no field is a score."""
        known = {k: v for k, v in plain.items() if k in cls.__struct_fields__ and k != "scores"}
        return msgspec.convert(
            known | {"scores": {k: v for k, v in plain.items() if k not in known}}, cls
        )

    def without_images(self) -> Measurement:
        """Leave out what is of single images."""
        return msgspec.structs.replace(
            self, classes=None, predicted=None, confidence=None, truth=None, fold=None
        )

    def number(self, name: str) -> float | None:
        """A score, or a field that is a number, where it is there and finite."""
        value = self.scores[name] if name in self.scores else getattr(self, name, None)
        return float(value) if value is not None and math.isfinite(value) else None


class Point(Record, frozen=True):
    """The measurements of one strategy at one number of training images, one a seed.

    ``interval`` is the 95 % one of the accuracy, where it was estimated.
    """

    strategy: str
    n_train: int
    runs: tuple[Measurement, ...]
    interval: Interval | None = None

    def mean(self, name: str) -> float | None:
        """Mean of a score or number over the runs that have it; None where none does."""
        numbers = [value for run in self.runs if (value := run.number(name)) is not None]
        return math.fsum(numbers) / len(numbers) if numbers else None

    @property
    def best(self) -> Measurement:
        """The run with the highest accuracy, of equal ones the first."""
        return max(self.runs, key=lambda run: run.number("accuracy") or 0.0)


class Skipped(Record, frozen=True):
    """A cell that was not measured, and why."""

    strategy: str
    n_train: int
    seed: int
    reason: str


class Estimate(Record, frozen=True):
    """Mean score of a strategy at a size, its 95 % interval, and what that interval covers.

    ``value`` is by the comparison's metric; ``interval`` is None where none can be given.
    """

    strategy: str
    n_train: int
    seeds: int
    value: float
    interval: Interval | None
    covers: str


class Difference(Record, frozen=True):
    """How much better strategy ``a`` is than ``b`` at one size, paired by seed and image.

    ``interval`` holds for 95 % of single pairs; None where none can be given.
    """

    n_train: int
    a: str
    b: str
    seeds: int
    difference: float
    interval: Interval | None
    covers: str


class PowerLaw(Record, frozen=True):
    """Error rate of n training images: floor + scale * n ** -exponent."""

    floor: float
    scale: float
    exponent: float


class Predicted(Record, frozen=True):
    """Score to expect of one run on so many training images, with its bounds."""

    n_train: int
    value: float
    low: float
    high: float


class Needed(Record, frozen=True):
    """Training images that a score would take, with bounds; None where it is not reached."""

    value: float
    n_train: int | None
    low: int | None
    high: int | None


class Forecast(Record, frozen=True, omit_defaults=True):
    """What more images would bring to a strategy, or the reason why that cannot be said.

    ``level`` is that of the intervals in ``at``.
    """

    strategy: str
    sizes: tuple[int, ...]
    reason: str | None = None
    curve: PowerLaw | None = None
    level: float | None = None
    at: tuple[Predicted, ...] | None = None
    wanted: Needed | None = None


class Crossover(Record, frozen=True):
    """Size from which on fine-tuning beats heads, shown at the largest size.

    ``low`` is the largest size at which heads are shown to be ahead, None where they are at none;
    ``high`` the size from which on fine-tuning is shown to be ahead at every one.
    """

    n_train: int
    low: int | None
    high: int


class Recommendation(Record, frozen=True):
    """A strategy, what to do in a line, and the figures that speak for it."""

    strategy: str
    headline: str
    figures: str

    @property
    def said(self) -> str:
        """The headline and its figures."""
        return f"{self.headline}. {self.figures}"


class Quadrant(Record, frozen=True):
    """The rule of thumb for a data set, and whether a measurement agrees with it.

    Attributes
    ----------
    many, alike : images; ``alike`` is None where it cannot be told
    distance : from the images that the network was trained on; see ``extract.domain_shift``
    rule : what it names
    agrees : None where nothing was measured, or the measurement does not decide it
    said : all of it in words
    """

    many: bool
    alike: bool | None
    distance: float | None
    rule: str
    agrees: bool | None
    said: str


class FlipDecision(Record, frozen=True):
    """Whether fine-tunings flip images, and the trial by which that was decided.

    See ``finetune.flips.FlipTrial``; ``augment`` is what follows, ``said`` says why.
    """

    flips: bool
    accuracy: float
    mirrored_accuracy: float
    standard_error: float
    images: int
    held_out: str
    augment: str
    said: str
    seconds: float
    backbone: str = ""


class StrategyInfo(Record, frozen=True):
    """What a report says of a strategy.

    Attributes
    ----------
    description : what it does; empty to leave it out
    fine_tunes : whether it trains a pretrained network
    style : number of the style that it is drawn in; None for any that is free
    """

    description: str = ""
    fine_tunes: bool = False
    style: int | None = None


class Comparison(Record, frozen=True, kw_only=True):
    """The result of ``fx compare``.

    Attributes
    ----------
    images : where they lie
    backbone, weights, size : of the network, or of several between commas
    metric : name of the one that decides
    snapshot, classes, n_train, n_validation, n_test, class_counts : of the images
    failed, conflicts, leaks : images that could not be read, have two labels, are in two splits
    settings, versions, commands : to repeat it
    strategies : by name, as the results spell it
    results, skipped : cells that were measured, and that were not
    estimates, differences, crossover, forecasts : what follows from them
    recommendation, recommended : in words; the strategy's name
    quadrant, flips, notes : what else is to be said
    extraction_seconds : None where the features were there already
    report : path of the page
    """

    images: str = ""
    backbone: str = ""
    weights: str = ""
    size: int | None = None
    metric: str = "accuracy"
    snapshot: str = ""
    classes: tuple[str, ...] = ()
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    failed: list[dict[str, str]] = []
    conflicts: list[str] = []
    leaks: list[dict[str, str]] = []
    class_counts: dict[str, dict[str, int]] = {}
    settings: dict[str, str | int | float | list[str | int] | None] = {}
    versions: dict[str, str] = {}
    strategies: dict[str, StrategyInfo] = {}
    results: list[Measurement] = []
    skipped: list[Skipped] = []
    estimates: list[Estimate] = []
    differences: list[Difference] = []
    recommendation: str = ""
    recommended: str = ""
    quadrant: Quadrant | None = None
    crossover: Crossover | None = None
    forecasts: list[Forecast] = []
    flips: list[FlipDecision] = []
    notes: list[str] = []
    extraction_seconds: float | None = None
    commands: list[str] = []
    report: str = ""

    def as_json(self) -> dict[str, Any]:
        """Turn into values that JSON can hold."""
        return super().as_json() | {"results": [one.as_json() for one in self.results]}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Comparison:
        """Make a record of JSON values."""
        results = [Measurement.from_json(one) for one in msgspec.convert(plain, _Flat).results]
        return msgspec.convert({**plain, "results": results}, cls)

    def curves(self) -> dict[str, list[Point]]:
        """Group the results: strategy → its points, smallest training set first."""
        runs: dict[str, dict[int, list[Measurement]]] = {}
        for run in self.results:
            runs.setdefault(run.strategy, {}).setdefault(run.n_train, []).append(run)
        intervals = {(one.strategy, one.n_train): one.interval for one in self.estimates}
        return {
            strategy: [
                Point(
                    strategy,
                    size,
                    tuple(sorted(by_size[size], key=lambda run: run.seed)),
                    intervals.get((strategy, size)),
                )
                for size in sorted(by_size)
            ]
            for strategy, by_size in runs.items()
        }

    def __repr__(self) -> str:
        return f"Comparison({self.recommended!r} recommended, report={self.report!r})"

    def _repr_html_(self) -> str:
        sizes = self.sizes
        rows = []
        for strategy, points in self.curves().items():
            means = {point.n_train: point.mean(self.metric) for point in points}
            rows.append({"strategy": strategy} | {f"{size:,}": means.get(size) for size in sizes})
        what = f"{self.metric.replace('_', ' ')} by training images"
        curve = Path(self.report).with_name(LEARNING_CURVE)
        picture = ""
        if self.report and curve.exists():
            encoded = b64encode(curve.read_bytes()).decode()
            picture = f'<img alt="{what}" width="600" src="data:image/png;base64,{encoded}">'
        return f"<b>{escape(self.recommendation)}</b><p>{what}</p>{as_html(rows)}{picture}"

    @property
    def sizes(self) -> list[int]:
        """Every number of training images that any strategy has, smallest first."""
        return sorted({run.n_train for run in self.results})


class _Flat(Record, frozen=True):
    """A comparison's measurements, the scores of each beside its other fields."""

    results: list[dict[str, Any]] = []


class PlannedCell(Record, frozen=True):
    """A cell that would be measured, and the seconds that it is predicted to take."""

    strategy: str
    n_train: int
    seed: int
    seconds: float


class Preview(Record, frozen=True, kw_only=True):
    """What a comparison would measure and take.

    Attributes
    ----------
    images : where they lie
    n_train, n_test : predicted: on which side an image falls depends on its bytes
    cells, skipped : those that fit the budget, and those that would not
    extraction_seconds, shared_seconds : of extracting; of what is prepared for several cells
    seconds : of everything
    disk_mb : 10**6 bytes
    """

    images: str
    n_train: int
    n_test: int
    cells: list[PlannedCell]
    skipped: list[PlannedCell]
    extraction_seconds: float
    shared_seconds: float
    seconds: float
    disk_mb: float


class Sides(Record, frozen=True):
    """Pixels of images' shorter sides."""

    least: int
    median: int
    greatest: int


class SampledImages(Record, frozen=True):
    """What is odd about the images that were looked at.

    Attributes
    ----------
    n : images looked at
    unreadable, copies : of each its path, and the reason or the image that it copies
    near_copies, near_copies_across_splits : pairs of paths
    shorter_side : None where no size could be read
    """

    n: int
    unreadable: list[dict[str, str]]
    copies: list[dict[str, str]]
    near_copies: list[tuple[str, str]]
    near_copies_across_splits: list[tuple[str, str]]
    shorter_side: Sides | None


class NetworkAdvice(Record, frozen=True, kw_only=True):
    """What the features of one network promise.

    Attributes
    ----------
    backbone, size : network and pixels
    distance : of the images from its own; see ``extract.domain_shift``
    n : images that were looked at
    logme, h_score : see ``heads.transferability``
    knn, logreg : cross-validated accuracies of two heads
    extraction_seconds, predicted_seconds : of all images; by strategy
    notes : which of a checkpoint's networks was taken, where several would fit
    """

    backbone: str
    size: int
    distance: float | None
    n: int
    logme: float | None
    h_score: float | None
    knn: float | None
    logreg: float | None
    extraction_seconds: float
    predicted_seconds: dict[str, float]
    notes: tuple[str, ...]


class Advice(Record, frozen=True, kw_only=True):
    """The result of ``fx advise``.

    Attributes
    ----------
    images : where they lie
    n_train, n_test : predicted
    classes : label → images
    imbalance : images of the largest class over those of the smallest
    sample, networks : what was seen with the first network, and with each
    quadrant : the rule of thumb
    strategy : what to try first, as commands
    passed_over : how many files, folders and table rows are no labelled images, by kind
    """

    images: str
    n_train: int
    n_test: int
    classes: dict[str, int]
    imbalance: float
    sample: SampledImages
    networks: list[NetworkAdvice]
    quadrant: Quadrant
    strategy: str
    passed_over: dict[str, int]
