"""Heads as strategies: every head is one, fitted on the features of the frozen network."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fx.comparison.strategies._strategy import Costs, Fitted, Strategy

if TYPE_CHECKING:
    from fx.comparison.context import OpenContext, Subset

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

    def fit(self, opened: OpenContext, subset: Subset) -> Fitted:
        from extract.images import group_numbers
        from fx.stages.rows import keys_of, labels_of
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
                "calibration": asdict(head.calibration),
                "trainable_parameters": head.parameters,
            },
        )

    def seconds(self, costs: Costs, n_train: int) -> float:
        return costs.head_seconds(self.name, n_train)
