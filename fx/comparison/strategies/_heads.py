"""Heads as strategies: every head is one, fitted on the features of the frozen network."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.comparison.strategies._strategy import Costs, Fitted, Strategy
from fx.stages.rows import keys_of, labels_of

if TYPE_CHECKING:
    from fx.comparison.context import ComparisonContext, NetworkCost, OpenContext, Subset
    from fx.output import Begin
    from fx.runs import Run

_STYLES = {"logreg": 0, "svm": 1, "knn": 6}


@dataclass(frozen=True)
class HeadStrategy(Strategy):
    """A head fitted on the stored features; ``help_`` says in a line what it is."""

    help_: str = ""

    on_features = True

    @property
    def headline(self) -> str:
        what = re.split(r"[,:;(.]", self.help_)[0]
        return f"Fit a head on frozen features: {what[:1].lower()}{what[1:]}"

    @property
    def description(self) -> str:
        return f"{self.help_.removesuffix('.')}; on features of the frozen network"

    @property
    def style(self) -> int | None:
        return _STYLES.get(self.name)

    def decide(self, context: ComparisonContext, run: Callable[..., Any]) -> ComparisonContext:
        """Measure once for all heads what the network below them takes."""
        if context.network is not None:
            return context
        from fx.comparison.context import NetworkCost

        kept = None if context.options.fresh else _cost_in(context).kept(NetworkCost)
        return dataclasses.replace(context, network=kept or run(measure_network, context))

    def fit(self, opened: OpenContext, subset: Subset) -> Fitted:
        from extract.images import group_numbers
        from heads.files import MODEL, RECORD, save_head
        from heads.fitting import fit_head
        from heads.head import Source

        rows, features, read = subset.rows, opened.features, opened.features.features
        validation, test = opened.snapshot.split("val"), opened.snapshot.split("test")
        head = fit_head(
            read(keys_of(rows)),
            labels_of(rows),
            kind=self.name,
            class_weight=opened.context.class_weight,
            groups=group_numbers(rows),
            validation=(read(keys_of(validation)), labels_of(validation)) if validation else None,
            spec=features.spec.to_dict(),
            source=Source((features.weights_source,)),
            seed=subset.seed,
        )
        save_head(head, subset.directory)
        vectors, begun = read(keys_of(test)), time.perf_counter()
        probabilities = head.predict_proba(vectors)
        return Fitted(
            probabilities,
            head.classes,
            milliseconds=1000 * (time.perf_counter() - begun) / len(test),
            settings_tried=len(head.search),
            files=(MODEL, RECORD),
            details={
                "n_fitted": head.n_train,
                "c": head.c,
                "calibration": head.calibration.as_dict(),
                "trainable_parameters": head.parameters,
            },
        )

    def seconds(self, costs: Costs, n_train: int) -> float:
        return costs.head_seconds(self.name, n_train)


def measure_network(context: ComparisonContext, *, begin: Begin) -> NetworkCost:
    """Time the network on some of the test images, and keep that."""
    from extract.files import disk_full_as_fx_error
    from extract.images import ImageEntry, ImageSource
    from fx.comparison.context import TIMED, NetworkCost, open_context
    from fx.options import open_backbone, open_engine
    from fx.stages.predict import seconds_per_image

    opened = open_context(context, begin)
    begin("timing the network")
    rows, root = opened.tested_rows[:TIMED], Path(opened.snapshot.root)
    entries = tuple(ImageEntry(str(root / row.path), None, None, None) for row in rows)
    source = ImageSource(Path("/"), "unlabelled", entries, (), context.options.max_image_mb)
    backbone = open_backbone(context.options)
    seconds, _ = seconds_per_image(open_engine(context.options, backbone), source, 1)
    tensors = backbone.module.state_dict().values()
    cost = NetworkCost(1000 * seconds, sum(t.numel() * t.element_size() for t in tensors))
    with disk_full_as_fx_error(context.directory):
        _cost_in(context).finish(cost)
    return cost


def _cost_in(context: ComparisonContext) -> Run:
    from fx.runs import Run

    return Run(context.directory / "network")
