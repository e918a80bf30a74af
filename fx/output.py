"""What a command shows: results on stdout, everything else on stderr."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

if TYPE_CHECKING:
    from fx.records import Comparison

Progress = Callable[[int, int], None]  # called with how many are done, and how many there are
Begin = Callable[[str], Progress]  # given what is being done, begins a bar for it

# whether Python has called a command as a function
_function = ContextVar("function", default=False)

_SECONDS_BETWEEN_LINES = 10.0
_MAX_SIZES = 6
_MOST_COUNTS = 20
_NOTHING = "\N{EN DASH}"
# metrics that are shown at every size
_BY_SIZE = ("accuracy", "log_loss", "ece")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Print a table as wide as its content, at most as the terminal (80 columns if it is none).

    Parameters
    ----------
    columns : headings
    rows : as many values each as there are columns: text as it stands, whole numbers with
        thousands marked, other numbers with three decimals, None as a dash
    title : a line above the table
    file : where to; default: stdout
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    values = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in values)
        table.add_column(
            Text(printable(column)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in values:
        table.add_row(*(Text(_in_a_cell(value)) for value in row))
    out = file or sys.stdout
    console = Console(file=out, width=None if out.isatty() else 80, highlight=False)
    if title:
        # not the table's own title, which is folded to the table's width
        console.print(Text(printable(title)))
    console.print(table)


def print_comparison(comparison: "Comparison", *, file: TextIO | None = None) -> None:
    """Print a comparison in at most 80 columns: strategies down, training images across.

    A table each of the metric that decides, accuracies, log losses and calibration errors, means
    over the seeds; then the other metrics at the largest size. Of more than six sizes, six are
    shown that are spread evenly, the largest among them; the seconds are those at the largest.

    Parameters
    ----------
    comparison : what was measured
    file : where to; default: stdout
    """
    from heads.metrics import METRICS

    curves, sizes = comparison.curves(), comparison.sizes
    if len(sizes) > _MAX_SIZES:
        step = (len(sizes) - 1) / (_MAX_SIZES - 1)
        shown = [sizes[round(index * step)] for index in range(_MAX_SIZES)]
    else:
        shown = sizes
    of = "by training images"
    if shown != sizes:
        of += f" ({len(shown)} of {len(sizes)} sizes)"
    at = {name: {point.n_train: point for point in row} for name, row in curves.items()}
    by_size = dict.fromkeys((comparison.metric, *_BY_SIZE))
    for name in by_size:
        first = name == comparison.metric
        columns = ["strategy", *(f"{n:,}" for n in shown), *["seconds"] * first]
        rows: list[list[object]] = []
        for strategy, points in at.items():
            rows.append([strategy, *(points[n].mean(name) if n in points else None for n in shown)])
            if first:
                seconds = points[shown[-1]].mean("seconds") if shown[-1] in points else None
                rows[-1].append(None if seconds is None else f"{seconds:,.1f}")
        title = METRICS[name].label + " on the test images" * first
        print_table(columns, rows, title=f"{title}, {of}", file=file)
    last = [(name, points[sizes[-1]]) for name, points in at.items() if sizes[-1] in points]
    others = [METRICS[name] for name in METRICS if name not in by_size]
    others = [one for one in others if any(p.mean(one.name) is not None for _, p in last)]
    if others:
        columns = ["strategy", *(one.label for one in others)]
        rows = [[name, *(point.mean(one.name) for one in others)] for name, point in last]
        title = f"other metrics with {sizes[-1]:,} training images"
        print_table(columns, rows, title=title, file=file)


def to_json(value: object) -> str:
    """Return `value` as the text of one JSON object.

    Records, dataclasses and mappings become objects, NumPy's arrays and scalars lists and numbers,
    paths text, sets sorted lists, and numbers that are not finite null. Only ASCII is written, so
    that any terminal and any file name can be printed.

    Raises
    ------
    TypeError
        If `value` is no record, dataclass or mapping, or something in it has no JSON form.
    """
    # numbers that are not finite are written as words, which are read as null
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda word: None)
    if not isinstance(plain, dict):
        raise TypeError(f"a command prints one JSON object, got {type(value).__name__}")
    return json.dumps(plain, indent=2)


@contextmanager
def as_function() -> Iterator[None]:
    """Let commands return what they print, and show progress as a notebook does."""
    token = _function.set(True)
    try:
        yield
    finally:
        _function.reset(token)


def is_function() -> bool:
    """Whether Python has called the running command as a function."""
    return _function.get()


@contextmanager
def all_of_it() -> Iterator[None]:
    """Print to stdout, and tell where there is no room for all of it: it may be a file.

    Raises
    ------
    NoRoom
        If the disk of that file is full.
    """
    stdout = sys.stdout
    try:
        yield
        if stdout:
            stdout.flush()
    except OSError as error:
        from extract.files import why_not_written

        # a file that has a name is another
        of_stdout = stdout is sys.__stdout__ and not error.filename
        if not of_stdout or not error.errno:
            raise
        number = stdout.fileno()
        told = why_not_written(error, Path(f"/proc/self/fd/{number}").resolve())
        if told is None:
            raise
        # the rest of it is not to be tried again when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        raise told from error


@contextmanager
def progress_bar(description: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Show on stderr how far a long work is: a bar on a terminal, else a line now and then.

    Parameters
    ----------
    description : what is being done
    quiet : show nothing

    Yields
    ------
    progress : to be called with how many are done and how many there are in all
    """
    if quiet:
        yield lambda done, total: None
    elif is_function():
        with _notebook_bar(description) as progress:
            yield progress
    elif sys.stderr.isatty():
        with _bar(description) as progress:
            yield progress
    else:
        lines = _Lines(description, sys.stderr)
        yield lines.progress
        lines.finish()


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Begin]:
    """Show work in several steps, one bar after the other.

    Yields
    ------
    begin : given what is being done, ends the bar before and returns the next one's callback
    """
    with ExitStack() as current:

        def begin(description: str) -> Progress:
            current.close()
            return current.enter_context(progress_bar(description, quiet=quiet))

        yield begin


@contextmanager
def _bar(description: str) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.markup import escape
    from rich.text import Text

    class RateColumn(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(rate(speed) if speed else "")

    columns = (
        rich_progress.TextColumn(escape(printable(description))),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.MofNCompleteColumn(),
        RateColumn(),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _notebook_bar(description: str) -> Iterator[Progress]:
    from tqdm.auto import tqdm

    with tqdm(desc=printable(description), unit="") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


class _Lines:
    """Progress as plain lines, at most one in ten seconds."""

    def __init__(self, description: str, file: TextIO) -> None:
        self._description = printable(description)
        self._file = file
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._done = self._total = 0

    def progress(self, done: int, total: int) -> None:
        if self._first is None:
            # what was done before this run says nothing about its rate
            self._first = done
        self._done, self._total = done, total
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES and done < total:
            self._last = now
            speed = (done - self._first) / (now - self._start)
            line = f"{done:,} of {total:,}"
            if speed > 0:
                line += f", {rate(speed)}, {rough_duration((total - done) / speed)} left"
            self._print(line)

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        if seconds > _SECONDS_BETWEEN_LINES and self._first is not None:
            self._print(f"{self._done:,} of {self._total:,} in {rough_duration(seconds)}")

    def _print(self, line: str) -> None:
        print(f"{self._description}: {line}", file=self._file, flush=True)


def rate(speed: float, decimals: int = 1, what: str = "") -> str:
    """Write out how many a second, or, of less than one, how many seconds each."""
    return f"{speed:,.{decimals}f}{what}/s" if speed >= 1 else f"{1 / speed:,.1f} s each"


def rough_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _in_a_cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if isinstance(value, float) else printable(str(value))


def printable(value: str) -> str:
    """Return a text in one line: a file's name may hold line breaks, and move a cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def number_of(count: int, noun: str) -> str:
    """Write out how many there are: 1 image, 2,000 images, 2 classes."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def counted(counts: Mapping[str, int]) -> str:
    """Write out in one line how many there are of each of some things, of the first of many."""
    first = [f"{what} ({count:,})" for what, count in list(counts.items())[:_MOST_COUNTS]]
    more = [f"{len(counts) - len(first):,} more"] if len(counts) > len(first) else []
    return printable(", ".join([*first, *more]))


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if hasattr(value, "as_json"):
        return value.as_json()
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "tolist"):
        # NumPy's arrays and scalars, known by what they do: this module need not import NumPy
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")
