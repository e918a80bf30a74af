"""The command: every function here parses, makes one library call, and prints."""

from __future__ import annotations

import gc
import io
import sys
import textwrap
import warnings
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from fx.arguments import (
    DATA,
    FEATURES,
    RUNS,
    Backbone,
    BatchSize,
    Channels,
    Crops,
    Debug,
    Device,
    EngineName,
    Fresh,
    Images,
    Json,
    Layer,
    Out,
    Precision,
    Seed,
    Size,
    SnapshotName,
    SplitSeed,
    Store,
    StoreArgument,
    Weights,
    choice,
    names_in,
    positive,
    seconds_in,
    show,
)
from fx.finetune_cli import finetune
from fx.output import print_comparison, print_table, printable, progress_bars, to_json
from fx.store_cli import store_app

app = typer.Typer(
    name="fx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Features of pretrained CNNs, classical heads on them, fine-tuning where it pays, and a "
        "measurement that says which of the three to use.\n\nBegin with: fx demo"
    ),
)
app.add_typer(store_app, name="store")


def main() -> None:
    """Run the command; expected failures end in one line and exit status 1."""
    arguments = sys.argv[1:]
    thresholds = gc.get_threshold()
    # half a second of an import of PyTorch went into collecting what all stays
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):
        # a file may be named by any bytes, and none of them shall end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: print(
        f"fx: warning: {printable(str(message))}", file=sys.stderr
    )
    try:
        app()
    except Exception as error:
        if "--debug" in arguments:
            raise
        # not before: importing it brings PyTorch along, and fx --help shall answer at once
        from extract.errors import FxError

        message = str(error) if isinstance(error, FxError) else _explain(error)
        print(f"fx: error: {printable(message)}", file=sys.stderr)
        if "--json" in arguments:
            print(to_json({"error": message}))
        sys.exit(1)
    finally:
        gc.set_threshold(*thresholds)


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}; --debug shows where"


@app.command(epilog="Example: fx demo")
def demo(
    directory: Annotated[Path, typer.Argument(help="Where everything is left to look at.")] = (
        RUNS / "demo"
    ),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline on scikit-learn's digits, with no network."""
    from fx.demo import run_demo

    # with --json, what the single commands print is no part of the one object on stdout
    with redirect_stdout(sys.stderr) if json_ else nullcontext():
        record = run_demo(directory, run=lambda words: app(words, standalone_mode=False))
    show(record, json_, lambda: None)


@app.command(epilog="Example: fx sample digits data")
def sample(
    name: Annotated[str, typer.Argument(help="digits needs no network; cifar10, pets, … do.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write to.")] = DATA,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write a sample data set as class folders."""
    from fx.samples import write_sample

    with progress_bars(quiet=json_) as begin:
        record = write_sample(name, directory, begin=begin)
    line = f"{record['images']} images of {len(record['classes'])} classes in {record['path']}"
    show(record, json_, lambda: print(line))


@app.command(epilog="Examples: fx backbones; fx backbones resnet50")
def backbones(
    name: Annotated[str | None, typer.Argument(help="One of them, to see its blocks.")] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the backbones, or the numbered blocks of one."""
    from fx.listing import describe_backbone, describe_backbones

    if name is None:
        record = describe_backbones()
        columns = ["backbone", "features", "parameters", "weights"]
        rows = [[b["name"], b["dim"], b["parameters"], b["weights"]] for b in record["backbones"]]
    else:
        record = describe_backbone(name)
        columns = ["block", "name", "parameters", "compute", "output"]
        rows = [
            [
                b["number"],
                b["name"].replace("features.", ""),
                b["parameters"],
                f"{b['flops_share']:.0%}",
                b["output"],
            ]
            for b in record["blocks"]
        ]

    def told() -> None:
        print_table(columns, rows)
        print(record["note"])

    show(record, json_, told)


@app.command(epilog="Examples: fx extract data --backbone resnet50; fx extract --layer pool,layer3")
def extract(
    images: Images = DATA,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    layer: Annotated[
        str,
        typer.Option(
            help="Where features are taken, several in one pass: pool (what the classifier gets), "
            "any inner layer averaged over its area, NAME:flatten for its whole map."
        ),
    ] = "pool",
    crops: Annotated[
        int, typer.Option(help="1: the centre; 5: and the corners; 10: and mirrored; averaged.")
    ] = 1,
    channels: Channels = None,
    store: Store = FEATURES,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, or float16: half the room. [default: the store's, or float32]"),
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    batch_size: BatchSize = None,
    split_seed: SplitSeed = 0,
    snapshot: Annotated[
        str | None, typer.Option(help="Name for this state of the images. [default: made up]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if an image is bad.")] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read unchanged files too.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Stage one: compute the features of images and keep them in a store."""
    from fx.options import Options
    from fx.stages import extract_images

    options = Options(
        store=store,
        backbone=backbone,
        weights=weights,
        size=size,
        layers=names_in(layer),
        crops=choice("--crops", crops, (1, 5, 10)),
        channels=channels,
        snapshot=snapshot,
        precision=precision,
        device=device,
        engine=engine,
        batch_size=batch_size,
        split_seed=split_seed,
    )
    with progress_bars(quiet=json_) as begin:
        result = extract_images(
            images,
            options,
            strict=strict,
            rehash=rehash,
            dtype=choice("--dtype", dtype, (None, "float32", "float16")),
            begin=begin,
        )
    from fx.summaries import print_extraction

    show(result, json_, lambda: print_extraction(result))


@app.command("fit-head", epilog="Examples: fx fit-head svm; fx fit-head logreg --normalize auto")
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
    class_weight: Annotated[
        str | None, typer.Option(help="balanced: rare classes weigh as much as common ones.")
    ] = None,
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
    from fx.head_stage import fit_head_on_store
    from fx.options import Options
    from fx.summaries import print_measured

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


app.command(epilog="Examples: fx finetune --unfreeze 2; fx finetune --from-scratch --epochs 30")(
    finetune
)


@app.command(epilog="Example: fx compare --sizes 60,240,900 --strategies logreg,svm,finetune:1")
def compare(
    images: Images = DATA,
    sizes: Annotated[
        str, typer.Option(help="Training images in all. [default: five sizes up to all]")
    ] = "",
    strategies: Annotated[
        str,
        typer.Option(
            help="Of logreg, svm, knn, centroid, finetune:K, finetune:all, scratch, small_cnn."
        ),
    ] = "logreg,svm,finetune:1",
    seeds: Annotated[
        int, typer.Option(min=1, help="Training subsets of each size; fewer of large ones.")
    ] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of a fine-tuning, at most.")] = 8,
    prefer: Annotated[
        str, typer.Option(help="cheap: the cheapest about as good as the best; or accuracy.")
    ] = "cheap",
    wanted: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="An accuracy: predict how many images it would take."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="A time such as 30m: measure what fits, by trials on this machine."),
    ] = None,
    log_to: Annotated[
        str | None, typer.Option(help="tensorboard or mlflow, where installed: every cell.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be measured, and its time.")
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(help="Network, or several between commas. [default: the last extracted]"),
    ] = None,
    weights: Weights = None,
    size: Size = None,
    channels: Channels = None,
    store: Store = FEATURES,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    batch_size: BatchSize = None,
    split_seed: SplitSeed = 0,
    seed: Seed = 0,
    out: Out = RUNS,
    fresh: Fresh = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure all strategies on the same splits over growing training sets; write a report."""
    from fx.comparison import compare as run_comparison
    from fx.options import Options
    from fx.plan import Plan
    from fx.preview import preview
    from fx.summaries import print_preview, print_skipped

    try:
        of_sizes = tuple(int(word) for word in sizes.split(",") if word.strip())
        plan = Plan(names_in(strategies), of_sizes, seeds, epochs)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    options = Options(
        store=store,
        out=out,
        backbone=backbone,
        weights=weights,
        size=size,
        channels=channels,
        precision=precision,
        device=device,
        engine=engine,
        batch_size=batch_size,
        split_seed=split_seed,
        seed=seed,
        fresh=fresh,
    )
    choice("--prefer", prefer, ("cheap", "accuracy"))
    limit = None if budget is None else seconds_in("--budget", budget)
    if dry_run:
        with progress_bars(quiet=json_) as begin:
            planned = preview(images, options, plan, budget=limit, begin=begin)
        show(planned, json_, lambda: print_preview(planned))
        return
    with progress_bars(quiet=json_) as begin:
        record = run_comparison(
            images,
            options,
            plan,
            prefer=prefer,
            wanted=wanted,
            budget=limit,
            log_to=choice("--log-to", log_to, (None, "tensorboard", "mlflow")),
            begin=begin,
        )

    def told() -> None:
        print_comparison(record)
        print_skipped(record["skipped"])
        for said in (record["recommendation"], record["quadrant"]["said"]):
            print(textwrap.fill(said, 80))
        print(f"report: {record['report']}")

    show(record, json_, told)


@app.command(epilog="Example: fx advise data")
def advise(
    images: Images = DATA,
    backbone: Annotated[
        str | None,
        typer.Option(help="Network, or several between commas. [default: those at hand]"),
    ] = None,
    weights: Weights = None,
    size: Size = None,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say which strategy to try first and why, before anything is trained."""
    from fx.advice import advise as give_advice
    from fx.options import Options
    from fx.summaries import print_advice

    options = Options(
        backbone=backbone,
        weights=weights,
        size=size,
        precision=precision,
        device=device,
        engine=engine,
    )
    with progress_bars(quiet=json_) as begin:
        record = give_advice(images, options, begin=begin)
    show(record, json_, lambda: print_advice(record))


@app.command(epilog="Example: fx predict runs/svm-resnet50-1a2b3c4d new-pictures")
def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by fit-head or finetune.")],
    images: Images,
    reject: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Answer none of these where pictures are unlike the training ones; this share "
            "of pictures like them is lost.",
        ),
    ] = None,
    conformal: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Give sets of labels that hold the true one so often."),
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    engine: EngineName = "auto",
    batch_size: BatchSize = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Label new images with a fitted head or a fine-tuned network."""
    from fx.options import Options
    from fx.prediction import predict_images
    from fx.summaries import print_predictions

    options = Options(precision=precision, device=device, engine=engine, batch_size=batch_size)
    with progress_bars(quiet=json_) as begin:
        record = predict_images(
            model, images, options, reject=reject, conformal=conformal, begin=begin
        )
    show(record, json_, lambda: print_predictions(record))
