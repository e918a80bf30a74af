"""The command: every function parses, makes one library call, and prints.

Commands with many options are in modules of their own; help lists all in the order of this one.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import tempfile
import warnings
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated

import typer

from fx.commands.arguments import (
    DATA,
    FEATURES,
    MAX_IMAGE_MB,
    RUNS,
    BatchSize,
    Debug,
    Device,
    EngineName,
    Images,
    Json,
    MaxImageMB,
    Precision,
    show,
)
from fx.commands.compare import advise, compare
from fx.commands.extract import extract
from fx.commands.finetune import finetune
from fx.commands.fit_head import fit_head
from fx.commands.store import store_app
from fx.interruption import Interrupted, received, result_follows
from fx.output import all_of_it, print_table, printable, progress_bars, to_json

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
        if received() is not None:
            # C++ code has made another of it
            raise Interrupted from error
        if "--debug" in arguments:
            raise
        # not before: importing it brings PyTorch along, and fx --help shall answer at once
        from extract.errors import FxError

        message = str(error) if isinstance(error, FxError) else _explain(error)
        print(f"fx: error: {printable(message)}", file=sys.stderr)
        if "--json" in arguments:
            result_follows()
            # where there is no room for that either, it was said
            with suppress(FxError), all_of_it():
                print(to_json({"error": message}))
        sys.exit(1)
    finally:
        gc.set_threshold(*thresholds)


def _explain(error: Exception) -> str:
    from extract.files import why_not_written

    name = getattr(error, "filename", None)
    if isinstance(name, str | bytes) and (told := why_not_written(error, Path(os.fsdecode(name)))):
        return str(told)
    if isinstance(error, OSError) and error.strerror:
        if name:
            return f"{error.strerror}: {os.fsdecode(name) if isinstance(name, bytes) else name}"
        if error.errno == errno.ENOSPC:
            return f"{error.strerror}; {_fullest()}"
        if error.strerror.startswith("No usable temporary directory"):
            return f"{error.strerror}; make room in one of them, or name another in TMPDIR"
        return error.strerror
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}; --debug shows where"


def _fullest() -> str:
    """Say which of the places that a command and its libraries write to has the least room."""
    from extract.files import free_bytes, in_units

    named = [Path(word) for word in sys.argv[1:]]
    places = [*named, *(path.parent for path in named)]
    places += [Path(), RUNS, FEATURES, Path("/dev/shm"), *_homes()]
    place = min(filter(os.path.exists, places), key=free_bytes)
    return (
        f"the least is free on the disk of {place.resolve()}, {in_units(free_bytes(place))}; "
        "make room and run the same command again: it goes on from what is kept"
    )


def _homes() -> list[Path]:
    found = []
    for place in (tempfile.gettempdir, Path.home):
        with suppress(OSError, RuntimeError):
            found.append(Path(place()))
    return found


@app.command(epilog="Example: fx demo")
def demo(
    directory: Annotated[Path, typer.Argument(help="Where everything is left to look at.")] = (
        RUNS / "demo"
    ),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline on scikit-learn's digits, with no network."""
    from fx.commands.demo import run_demo

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
    from fx.commands.samples import write_sample

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
    from fx.commands.listing import describe_backbone, describe_backbones

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


app.command(epilog="Examples: fx extract data --backbone resnet50; fx extract --layer pool,layer3")(
    extract
)
app.command("fit-head", epilog="Examples: fx fit-head svm; fx fit-head logreg --normalize auto")(
    fit_head
)
app.command(epilog="Examples: fx finetune --unfreeze 2; fx finetune --from-scratch --epochs 30")(
    finetune
)
app.command(epilog="Example: fx compare --sizes 60,240,900 --strategies logreg,svm,finetune:1")(
    compare
)
app.command(epilog="Example: fx advise data")(advise)


@app.command(epilog="Example: fx predict runs/svm-resnet50-1a2b3c4d new-images")
def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by fit-head or finetune.")],
    images: Images,
    reject: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Answer none of these where images are unlike the training ones; this share "
            "of images like them is lost.",
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
    max_image_mb: MaxImageMB = MAX_IMAGE_MB,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Label new images with a fitted head or a fine-tuned network."""
    from fx.commands.summaries import print_predictions
    from fx.options import Options
    from fx.stages.prediction import predict_images

    options = Options(
        precision=precision,
        device=device,
        engine=engine,
        batch_size=batch_size,
        max_image_mb=max_image_mb,
    )
    with progress_bars(quiet=json_) as begin:
        record = predict_images(
            model, images, options, reject=reject, conformal=conformal, begin=begin
        )
    show(record, json_, lambda: print_predictions(record))
