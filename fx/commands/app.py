"""The command ``fx``: its sub-commands, and how it ends."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from extract.errors import FxError, NoImages, UnknownBackbone
from fx.commands.advise import advise
from fx.commands.arguments import FEATURES, RUNS
from fx.commands.backbones import backbones
from fx.commands.command import Command, function_of, with_options
from fx.commands.compare import Compare, compare
from fx.commands.demo import demo, sample
from fx.commands.extract import extract
from fx.commands.finetune import finetune
from fx.commands.fit_head import FitHead, fit_head
from fx.commands.models.explain import explain
from fx.commands.models.export import export
from fx.commands.models.predict import predict
from fx.commands.models.serve import serve
from fx.commands.runs import runs
from fx.commands.store import store_app
from fx.interruption import Interrupted, received, result_follows
from fx.output import all_of_it, printable, to_json

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
# as the help lists them
for function, kind, example in (
    (demo, Command, "Example: fx demo"),
    (sample, Command, "Example: fx sample digits data"),
    (backbones, Command, "Examples: fx backbones; fx backbones resnet50"),
    (
        extract,
        Command,
        "Examples: fx extract data --backbone resnet50; fx extract --layer pool,layer3",
    ),
    (fit_head, FitHead, "Examples: fx fit-head svm; fx fit-head logreg --normalize auto"),
    (
        finetune,
        Command,
        "Examples: fx finetune --unfreeze 2; fx finetune --from-scratch --epochs 30",
    ),
    (
        compare,
        Compare,
        "Example: fx compare --sizes 60,240,900 --strategies logreg,svm,finetune:1",
    ),
    (advise, Command, "Example: fx advise data"),
    (predict, Command, "Example: fx predict runs/svm-resnet50-1a2b3c4d new-images"),
    (explain, Command, "Example: fx explain runs/svm-resnet50-1a2b3c4d cat.jpg dog.jpg"),
    (export, Command, "Example: fx export runs/svm-resnet50-1a2b3c4d model.onnx"),
    (serve, Command, "Example: fx serve runs/svm-resnet50-1a2b3c4d"),
    (runs, Command, "Example: fx runs"),
):
    app.command(cls=kind, epilog=example)(function)
app.add_typer(store_app, name="store")


def _print_version(asked: bool) -> None:
    if asked:
        from fx import __version__

        print(f"fx {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    pass


def function_named(name: str) -> Callable[..., Any]:
    """Make a function of the command of this name, which Python calls."""
    group: Any = typer.main.get_command(app)
    return function_of(group.commands[name.replace("_", "-")])


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
    warnings.showwarning = lambda message, *_: _print_warning(message)
    try:
        app()
    except Exception as error:
        if received() is not None:
            # C++ code has made another of it
            raise Interrupted from error
        if "--debug" in arguments:
            raise
        message = _with_hint(error) if isinstance(error, FxError) else _explain(error)
        print(f"fx: error: {printable(message)}", file=sys.stderr)
        if "--json" in arguments:
            result_follows()
            # where there is no room for that either, it was said
            with suppress(FxError), all_of_it():
                print(to_json({"error": message}))
        sys.exit(1)
    finally:
        gc.set_threshold(*thresholds)


def _print_warning(message: Warning | str) -> None:
    # what a signal has ended leaves things unfinished, of which libraries warn
    if received() is None:
        print(f"fx: warning: {printable(with_options(str(message)))}", file=sys.stderr)


def _with_hint(error: FxError) -> str:
    """Name the running command's options, and the command that helps."""
    message = with_options(str(error))
    if isinstance(error, UnknownBackbone):
        return f"{message}; all of them: fx backbones"
    if isinstance(error, NoImages) and error.path == Path("data"):
        return f"{message}; 'fx sample digits data' writes an example"
    return message


def _explain(error: Exception) -> str:
    from extract.files import place, why_not_written

    name = getattr(error, "filename", None)
    named = place(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    if isinstance(named, Path) and (told := why_not_written(error, named)):
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
    if isinstance(error, MemoryError) or re.search(r"(?i)(alloc\w*|out of) memory", reason):
        todo = with_options("give a smaller `batch_size` or `size`, or fewer images")
        said = f" ({reason[:200]})" if reason else ""
        return f"too little memory{said}; {todo}"
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
