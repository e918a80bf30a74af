"""``fx fit-head``: stage two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fx.commands import arguments
from fx.commands.arguments import choice, options_in
from fx.commands.command import Command
from fx.commands.printing import SHOWN, print_measured, show
from fx.options import names_in
from fx.output import printable, progress_bars

if TYPE_CHECKING:
    from extract.registry import Registry
    from fx.stages.records import DoubtfulLabels, HeadResult


class FitHead(Command):
    """Its help lists the heads."""

    def choices(self) -> Mapping[str, Registry[Any]]:
        from heads.kinds import HEADS

        return {"Heads": HEADS}


def fit_head(
    kind: Annotated[str, typer.Argument(help="Head, one of those below.", metavar="KIND")],
    store: arguments.StoreArgument = arguments.FEATURES,
    backbone: arguments.Backbone = None,
    weights: arguments.Weights = None,
    size: arguments.Size = None,
    layer: Annotated[
        str, typer.Option(help="Layer of the network. [default: the last extracted]")
    ] = "",
    crops: Annotated[
        int | None, typer.Option(help="Crops of an image. [default: those last extracted]")
    ] = None,
    channels: arguments.Channels = None,
    precision: arguments.StoredPrecision = "auto",
    features: Annotated[
        str,
        typer.Option(metavar="A,B", help="Stored features to join, as fx store ls names them."),
    ] = "",
    kernel: Annotated[
        str,
        typer.Option(
            help="Of the SVM: rbf, linear or auto; for many images nystroem or linearsvc."
        ),
    ] = "rbf",
    normalize: Annotated[
        str, typer.Option(help="standard, l2, none, or auto: by cross-validation.")
    ] = "standard",
    class_weight: arguments.ClassWeight = None,
    c: Annotated[
        float | None,
        typer.Option(
            "--c",
            help="Inverse of the penalty, or number of neighbours. [default: by cross-validation]",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    audit: Annotated[
        bool, typer.Option("--audit", help="List the images whose labels may be wrong.")
    ] = False,
    snapshot: arguments.SnapshotName = None,
    near_copies: arguments.NearCopies = "group",
    seed: arguments.Seed = 0,
    out: arguments.Out = arguments.RUNS,
    fresh: arguments.Fresh = False,
    per_class: arguments.PerClass = False,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> Any:
    """Stage two: fit and measure a classifier on stored features."""
    options = options_in(locals(), layers=names_in(layer), features=names_in(features))
    choice("--crops", crops, (1, 5, 10))
    choice("--precision", precision, ("auto", "fp32", "bf16", "fp16", "int8"))
    choice("--normalize", normalize, ("standard", "l2", "none", "auto"))
    if c is not None and c <= 0:
        raise typer.BadParameter(f"--c must be above 0; got {c}")
    from heads.kinds import HEADS

    kernels = HEADS[choice("KIND", kind, HEADS.names())].kernels
    choice("--kernel", kernel, (*kernels, "auto") if kernels else (kernel,))
    from fx.stages.fit_head import fit_head_on_store

    with progress_bars(quiet=json_) as begin:
        result = fit_head_on_store(
            kind,
            options,
            kernel=kernel,
            normalize=normalize,
            class_weight=class_weight,
            c=c,
            folds=folds,
            audit=audit,
            begin=begin,
        )
    return show(result, json_, lambda: _print(result, per_class))


def _print(result: HeadResult, per_class: bool) -> None:
    what = f"{result.kind} on {result.backbone}"
    print_measured(result, what, [result.chosen], per_class)
    if result.audit:
        _print_doubtful(result.audit)
    print(f"saved in {result.path}")


def _print_doubtful(labels: DoubtfulLabels) -> None:
    found = f"labels contradicted: {labels.contradicted:,} of {labels.audited:,}"
    print(f"{found} ({labels.anyway} would be if none were wrong)")
    for one in labels.first[:SHOWN]:
        path, label, other = map(printable, (one.path, one.label, one.suggested))
        print(f"  {path}: {label}, more like {other}")
    print(f"all, to look at: {labels.page}")
    print(f"to correct, and to give to fx extract: {labels.table}")
