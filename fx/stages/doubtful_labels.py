"""Doubtful labels: a page to look at, and a table to correct and give back to an extraction."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec

from extract.files import write_whole
from extract.images import ImageRow, Snapshot, image_place
from fx.report import render
from fx.stages.records import DoubtfulLabel, DoubtfulLabels
from fx.thumbnails import thumbnail
from heads.doubts import Doubts

TABLE, PAGE = "labels.csv", "audit.html"
SHOWN = 100
THUMBNAIL = 160  # pixels


def write_doubtful_labels(
    directory: Path,
    doubts: Doubts,
    rows: Sequence[ImageRow],
    snapshot: Snapshot,
    classes: Sequence[str],
) -> DoubtfulLabels:
    """Write ``labels.csv`` and ``audit.html``.

    Parameters
    ----------
    directory : of the head
    doubts : of the labels of `rows`
    rows : those that the head was chosen by
    snapshot : all images; those that were not audited come last in the table
    classes : of the head
    """
    given = snapshot.test_was_given
    doubtful = [
        DoubtfulLabel(
            **_as_in_table(rows[position], given),
            suggested=classes[other],
            margin=round(float(margin), 4),
            contradicted=bool(convincing),
        )
        for position, margin, other, convincing in zip(
            doubts.rows, doubts.margins, doubts.suggested, doubts.contradicted, strict=True
        )
    ]
    audited = {row.path for row in rows}
    labelled = [row for row in snapshot.rows if row.label is not None and row.readable]
    rest = [_as_in_table(row, given) for row in labelled if row.path not in audited]
    file = io.StringIO()
    table = csv.DictWriter(file, DoubtfulLabel.__struct_fields__, restval="")
    table.writeheader()
    for one in [*map(msgspec.structs.asdict, doubtful), *rest]:
        table.writerow(one | {"path": str(image_place(snapshot.root, str(one["path"])))})
    # with the very bytes of the files' names
    write_whole(directory / TABLE, file.getvalue().encode(errors="surrogateescape"))
    labels = DoubtfulLabels(
        audited=len(doubtful),
        contradicted=sum(one.contradicted for one in doubtful),
        contradicted_if_none_wrong=round(doubts.expected, 1),
        first=tuple(doubtful[:SHOWN]),
        table=str(directory / TABLE),
        page=str(directory / PAGE),
    )
    page = render(
        "labels.html",
        title="fx: labels that may be wrong",
        labels=labels,
        table=TABLE,
        shown=[
            (one, thumbnail(snapshot.root, one.path, rows[position].key, THUMBNAIL))
            for one, position in zip(labels.first, doubts.rows, strict=False)
        ],
    )
    write_whole(directory / PAGE, page.encode(errors="xmlcharrefreplace"))
    return labels


def _as_in_table(row: ImageRow, test_was_given: bool) -> dict[str, str]:
    # a split that was made by hash is made again, and is better not frozen in a table
    split = row.split if test_was_given or row.split == "val" else ""
    return {
        "path": row.path,
        "label": str(row.label),
        "split": split or "",
        "group": row.group or "",
    }
