"""``fx runs``: what was fitted, fine-tuned and compared here, the newest first."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from extract.errors import FxError, one_line
from extract.files import Place, place
from extract.records import Record
from fx.commands.arguments import RUNS, Debug, Json
from fx.commands.printing import show
from fx.output import print_table, printable


class FinishedRun(Record, frozen=True):
    """A head, a network or a comparison that was finished.

    Attributes
    ----------
    path : its folder
    finished : when, in local time
    what : "head", "network" or "comparison"
    accuracy, log_loss : on rows that chose nothing; of a comparison those of what it recommends
    n_train : images that it was fitted on
    recommended : of a comparison
    """

    path: str
    finished: str
    what: str
    accuracy: float | None
    log_loss: float | None
    n_train: int | None
    recommended: str | None


def runs(
    out: Annotated[Path, typer.Argument(help="Folder that the runs are in.")] = RUNS,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List what was finished, the newest first."""
    where = place(out)
    if not where.is_dir():
        raise FxError(f"no folder {str(where)!r}; give the one that results were written to")
    found = find_runs(where)
    show({"runs": found}, json_, lambda: _print(found, where))


def find_runs(out: Place) -> list[FinishedRun]:
    """Read the results of all runs in a folder; one that cannot be read is told and passed over."""
    from extract.files import read_record
    from fx.runs import RESULT

    found = []
    paths: list[Place] = [*out.glob(f"*/{RESULT}")]
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime_ns):
        try:
            found.append(_finished(path, read_record(path, dict[str, Any])))
        except (FxError, OSError, ValueError, LookupError, TypeError) as error:
            print(printable(f"passed over: {path}: {one_line(error)}"), file=sys.stderr)
    return found


def _finished(path: Place, record: dict[str, Any]) -> FinishedRun:
    measured = record
    if "recommended" in record:
        largest = max(one["n_train"] for one in record["results"])
        measured = next(
            one
            for one in record["results"]
            if (one["strategy"], one["n_train"]) == (record["recommended"], largest)
        )
    names = {"recommended": "comparison", "head": "head", "unfreeze": "network"}
    (what,) = [kind for name, kind in names.items() if name in record]
    when = datetime.datetime.fromtimestamp(path.stat().st_mtime_ns / 1e9)
    return FinishedRun(
        path=str(path.parent),
        finished=when.isoformat(sep=" ", timespec="seconds"),
        what=what,
        accuracy=measured["accuracy"],
        log_loss=measured["log_loss"],
        n_train=measured["n_train"],
        recommended=record.get("recommended"),
    )


def _print(found: list[FinishedRun], out: Place) -> None:
    if not found:
        print(f"nothing is finished in {out}")
        return
    rows = [[one.finished[:16], Path(one.path).name, one.n_train, one.accuracy] for one in found]
    print_table(["finished", "run", "images", "accuracy"], rows)
