"""Flips: whether the fine-tunings of a comparison mirror images, decided once for all of them."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from fx.comparison.context import ComparisonContext, nested_subset, open_context
from fx.comparison.strategies._training import resources
from fx.options import open_backbone
from fx.output import Begin
from fx.records import FlipDecision
from fx.runs import Run

DECIDING_ROWS = 4_000  # training rows of the head that decides


def read_flips(context: ComparisonContext) -> FlipDecision | None:
    """Read what was decided on flips, if it was."""
    run = _run(context)
    return run.result(FlipDecision) if run.finished else None


def decide_flips(context: ComparisonContext, *, begin: Begin) -> FlipDecision:
    """Decide for all fine-tunings whether images are flipped, and keep the decision.

    On some of the training rows, set aside as a fine-tuning does where there are no validation
    rows.
    """
    from finetune.data import set_validation_aside
    from finetune.flips import try_flips
    from finetune.starting_head import starting_head

    begun = time.perf_counter()
    opened = open_context(context, begin)
    seed, rows = context.options.seed, opened.training_rows
    rows = nested_subset(rows, min(len(rows), DECIDING_ROWS), seed)
    validation = opened.snapshot.split("val")
    if not validation:
        rows, validation = set_validation_aside(rows, seed)
    features = opened.features.features
    begin("deciding on flips")
    trial = try_flips(
        starting_head(features, rows, class_weight=context.class_weight, seed=seed),
        open_backbone(context.options),
        features,
        rows,
        validation,
        Path(opened.snapshot.root),
        resources(opened),
    )
    decision = FlipDecision(
        **dataclasses.asdict(trial),
        augment=trial.augment,
        said=trial.summary,
        seconds=time.perf_counter() - begun,
    )
    _run(context).finish(decision)
    return decision


def _run(context: ComparisonContext) -> Run:
    return Run(context.directory / "flips")
