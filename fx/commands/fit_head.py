"""The command of stage two."""

from __future__ import annotations

from typing import Annotated

import typer

from fx.commands.arguments import (
    FEATURES,
    RUNS,
    Backbone,
    Channels,
    ClassWeight,
    Crops,
    Debug,
    Fresh,
    Json,
    Layer,
    Out,
    Precision,
    Seed,
    Size,
    SnapshotName,
    StoreArgument,
    Weights,
    choice,
    names_in,
    positive,
    show,
)
from fx.output import progress_bars


def fit_head(
    kind: Annotated[str, typer.Argument(help="logreg, svm, knn or centroid.", metavar="KIND")],
    store: StoreArgument = FEATURES,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    layer: Layer = "",
    crops: Crops = None,
    channels: Channels = None,
    precision: Precision = "auto",
    features: Annotated[
        str,
        typer.Option(metavar="A,B", help="Stored features to join, as fx store ls names them."),
    ] = "",
    kernel: Annotated[
        str, typer.Option(help="Of the SVM: rbf, linear, nystroem (for many images) or auto.")
    ] = "rbf",
    normalize: Annotated[
        str, typer.Option(help="standard, l2, none, or auto: by cross-validation.")
    ] = "standard",
    class_weight: ClassWeight = None,
    c: Annotated[
        float | None,
        typer.Option("--c", help="1 / penalty, or neighbours. [default: by cross-validation]"),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    protocol: Annotated[
        str | None,
        typer.Option(help="kornblith: 45 penalties, raw features, chosen on validation images."),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="List the images whose labels may be wrong.")
    ] = False,
    snapshot: SnapshotName = None,
    seed: Seed = 0,
    out: Out = RUNS,
    fresh: Fresh = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Stage two: fit a classifier on stored features; measure it on images that chose nothing."""
    from fx.commands.summaries import print_measured
    from fx.options import Options
    from fx.stages.head_stage import fit_head_on_store

    options = Options(
        store=store,
        out=out,
        backbone=backbone,
        weights=weights,
        size=size,
        layers=names_in(layer),
        crops=crops,
        channels=channels,
        features=names_in(features),
        snapshot=snapshot,
        precision=precision,
        seed=seed,
        fresh=fresh,
    )
    with progress_bars(quiet=json_) as begin:
        record = fit_head_on_store(
            choice("kind", kind, ("logreg", "svm", "knn", "centroid")),
            options,
            kernel=choice("--kernel", kernel, ("rbf", "linear", "nystroem", "auto")),
            normalize=choice("--normalize", normalize, ("standard", "l2", "none", "auto")),
            class_weight=choice("--class-weight", class_weight, (None, "balanced")),
            c=positive("--c", c),
            folds=folds,
            protocol=choice("--protocol", protocol, (None, "kornblith")),
            audit=audit,
            begin=begin,
        )
    show(record, json_, lambda: print_measured(record, f"{kind} on {record['backbone']}"))
