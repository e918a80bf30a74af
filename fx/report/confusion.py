"""Section of the report with what is taken for what: a table, a plot, or the worst mistakes.

Which of them, the number of classes decides.
"""

from typing import Any

from fx.report import figures as draw
from fx.report.cells import cells_of
from fx.report.page import Section, paragraph, place, scrolling, table, text

_MAX_CLASSES_IN_TABLE = 20
_MAX_CLASSES_IN_PLOT = 200


def confusion(comparison: dict[str, Any]) -> Section | None:
    """Confusion matrices, of every strategy at its largest training set."""
    classes = [str(name) for name in comparison.get("classes") or []]
    parts = []
    plots = {}
    for index, row in enumerate(cells_of(comparison).values()):
        run = row[-1].best
        matrix = run.get("confusion")
        if not matrix or len(matrix) != len(classes):
            continue
        heading = f"{run['strategy']}, {run['n_train']:,} training images"
        part = f"<h3>{text(heading)}</h3>\n"
        if len(classes) <= _MAX_CLASSES_IN_TABLE:
            part += scrolling(_matrix(matrix, classes), f"Confusion matrix of {heading}")
        else:
            if len(classes) <= _MAX_CLASSES_IN_PLOT:
                plot_id = f"confusion-{index}"
                plots[plot_id] = [draw.confusion(matrix, classes, heading)]
                part += place(plot_id, plots[plot_id][0])
            part += _worst(matrix, classes, heading)
        parts.append(f"<div>\n{part}</div>\n")
    if not parts:
        return None
    body = paragraph(
        "Rows are the true classes, columns the predicted ones; numbers are test images. "
        "Of several seeds, the one with the highest accuracy is shown."
    )
    return Section(
        "confusion",
        "What is taken for what",
        f'{body}<div class="beside">\n{"".join(parts)}</div>\n',
        plots,
    )


def _matrix(matrix: list[list[int]], classes: list[str]) -> str:
    upright = ' class="upright"' if max(map(len, classes)) > 3 else ""
    head = "".join(
        f'<th scope="col"><span{upright} title="{text(name)}">{text(name)}</span></th>'
        for name in classes
    )
    rows = []
    for true, counts in enumerate(matrix):
        total = sum(counts) or 1
        cells = []
        for predicted, count in enumerate(counts):
            kind = "right" if predicted == true else "wrong"
            # the root, so that a few mistakes among many images are still seen
            share = 0.7 * (count / total) ** 0.5
            cells.append(f'<td class="{kind}" style="--share:{share:.2f}">{count}</td>')
        name = text(classes[true])
        rows.append(
            f'<tr><th scope="row"><span title="{name}">{name}</span></th>{"".join(cells)}</tr>\n'
        )
    return (
        f'<table class="confusion"><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody></table>"
    )


def _worst(matrix: list[list[int]], classes: list[str], heading: str) -> str:
    mistakes = [
        (count, classes[true], classes[predicted])
        for true, counts in enumerate(matrix)
        for predicted, count in enumerate(counts)
        if count and predicted != true
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    rows = [(true, predicted, f"{count:,}") for count, true, predicted in mistakes[:10]]
    columns = ("True class", "Predicted", "Test images")
    return table(f"The most frequent mistakes of {heading}", columns, rows, numeric=columns[2:])
