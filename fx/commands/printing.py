"""What the commands print for people: a few lines, and tables that fit 80 columns."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from fx.commands.command import with_options
from fx.interruption import result_follows, result_is_out
from fx.output import all_of_it, is_function, number_of, print_table, printable, to_json

if TYPE_CHECKING:
    from fx.stages.records import MeasuredModel
    from heads.evaluation import Evaluation

Shown = TypeVar("Shown")

# Records listed one by one; of more, only how many there are is said.
SHOWN = 5
WIDTH = 80  # columns
MOST_CLASSES = 10  # whose confusion is a table; of more, the worst pairs are listed


def show(record: Shown, as_json: bool, otherwise: Callable[[], object]) -> Shown:
    """Print a record as JSON, or let `otherwise` print it for people; give it back.

    Of several processes that ``accelerate launch`` has started, the first alone speaks. To Python
    that has called the command as a function, the record speaks for itself.
    """
    if is_function() or os.environ.get("RANK", "0") != "0":
        return record
    with all_of_it():
        if as_json:
            text = to_json(record)
            result_follows()
            print(text)
        else:
            otherwise()
    if as_json:
        result_is_out()
    return record


def print_wrapped(text: str) -> None:
    """Print a sentence in lines of at most 80 columns, which part no option at its hyphens."""
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False))


def print_some(what: str, lines: Sequence[str]) -> None:
    """Print how many there are of something, and the first of them."""
    if lines:
        print(f"{what}: {len(lines):,}")
        for line in lines[:SHOWN]:
            print(f"  {printable(line)}")
        if len(lines) > SHOWN:
            print(f"  and {len(lines) - SHOWN:,} more (--json lists all)")


def print_measured(
    result: MeasuredModel, what: str, details: Sequence[str], per_class: bool = False
) -> None:
    """Print how a head or a network did on rows that chose nothing.

    Parameters
    ----------
    result : of a stage
    what : was fitted
    details : lines of this stage alone
    per_class : whether precision and recall of each class are printed
    """
    measured = result.evaluation
    _print_accuracy(measured, what)
    tested = number_of(measured.n_test, "test image")
    rows = f"on {tested}; {number_of(result.n_train, 'training image')}"
    if measured.measured_by != "test rows":
        rows = f"in {measured.measured_by} of the {result.n_train:,} images that it is fitted on"
    print(f"{rows}; {result.seconds:.1f} s")
    print(f"(always naming the commonest class would be right for {measured.majority:.3f} of them)")
    also = [f"balanced accuracy {measured['balanced_accuracy']:.3f}"]
    also += [] if math.isnan(measured["top5"]) else [f"top 5 {measured['top5']:.3f}"]
    print(", ".join([*also, f"macro F1 {measured['macro_f1']:.3f}"]))
    print(f"log loss {measured['log_loss']:.3f}, calibration error {measured['ece']:.3f}")
    for line in details:
        print(line)
    for note in result.notes:
        print_wrapped(with_options(f"note: {note}"))
    if per_class:
        classes = [[one.name, one.precision, one.recall, one.n_test] for one in measured.per_class]
        print_table(["class", "precision", "recall", "images"], classes)
    predicted = sum(map(sum, measured.confusion))
    if predicted > measured.n_test:
        print(f"{predicted:,} predictions, {predicted // measured.n_test} of each image:")
    print_confusion(measured.confusion, result.classes)


def _print_accuracy(measured: Evaluation, what: str) -> None:
    accuracy = f"{what}: accuracy {measured['accuracy']:.3f}"
    if measured.accuracy_ci is None:
        from heads.evaluation import FEWEST_GROUPS

        print(accuracy)
        print(f"no interval: {measured.n_groups} groups; {FEWEST_GROUPS} are needed")
        return
    low, high = measured.accuracy_ci
    print(f"{accuracy} ({low:.3f} to {high:.3f}, 95 %)")


def print_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Print all of a confusion matrix; of many classes its largest mistakes, and what is left."""
    if len(classes) <= MOST_CLASSES:
        _print_matrix(confusion, classes)
        return
    wrong = sorted(
        (
            (-count, truth, said)
            for truth, row in enumerate(confusion)
            for said, count in enumerate(row)
            if truth != said and count
        ),
    )
    faultless = sum(0 < row[truth] == sum(row) for truth, row in enumerate(confusion))
    untested = sum(not any(row) for row in confusion)
    are = "is" if faultless == 1 else "are"
    found = [f"{faultless:,} of {len(classes):,} classes {are} without a mistake"]
    found += [f"{untested:,} without a test image"] * bool(untested)
    rows = [[classes[truth], classes[said], -count] for count, truth, said in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        found.append(f"the {SHOWN} largest of {len(wrong):,} confusions (--json has all):")
    print_wrapped("; ".join(found))
    if rows:
        print_table(["true", "said", "images"], rows)


def _print_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Print true classes down, predicted ones across: by number where their names are too long."""
    names = headings = list(classes)
    # three columns between two of the table
    if max(map(len, names)) + sum(len(name) + 3 for name in names) > WIDTH - 2:
        headings = [str(number) for number in range(1, len(names) + 1)]
        names = [
            f"{number:>{len(headings[-1])}} {name}"
            for number, name in zip(headings, names, strict=True)
        ]
    rows = [
        [name, *(count or None for count in row)]
        for name, row in zip(names, confusion, strict=True)
    ]
    print_table(["true \\ said", *headings], rows)
