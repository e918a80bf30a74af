"""Doubtful labels: a page to look at, and a table to correct and give back to ``fx extract``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.files import write_whole
from fx.report.page import Section, page, paragraph, text
from fx.thumbnails import thumbnail

if TYPE_CHECKING:
    from extract.images import ImageRow, Snapshot
    from heads.audit import Doubts

TABLE, PAGE = "labels.csv", "audit.html"
SHOWN = 100
THUMBNAIL = 160  # pixels
COLUMNS = ("path", "label", "split", "group", "suggested", "margin", "contradicted")


def write_audit(
    directory: Path,
    doubts: Doubts,
    rows: Sequence[ImageRow],
    snapshot: Snapshot,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Write ``labels.csv`` and ``audit.html``.

    Parameters
    ----------
    directory : of the head
    doubts : of the labels of `rows`
    rows : those that the head was chosen by
    snapshot : all images; those that were not audited come last in the table
    classes : of the head

    Returns
    -------
    ``audited``, ``contradicted``, ``first`` (the most doubtful, as records), ``table``, ``page``
    """
    given = snapshot.test_was_given
    records = []
    for position, margin, other, convincing in zip(
        doubts.rows, doubts.margins, doubts.suggested, doubts.contradicted, strict=True
    ):
        found = {"suggested": classes[other], "margin": round(float(margin), 4)}
        records.append(_record(rows[position], given) | found | {"contradicted": bool(convincing)})
    audited = {row.path for row in rows}
    labelled = [row for row in snapshot.rows if row.label is not None and row.readable]
    rest = [_record(row, given) for row in labelled if row.path not in audited]
    root = Path(snapshot.root)
    file = io.StringIO()
    table = csv.DictWriter(file, COLUMNS, restval="")
    table.writeheader()
    table.writerows(one | {"path": str(root / one["path"])} for one in records + rest)
    # with the very bytes of the files' names
    write_whole(directory / TABLE, file.getvalue().encode(errors="surrogateescape"))
    _write_page(directory / PAGE, root, records, [rows[position].key for position in doubts.rows])
    return {
        "audited": len(records),
        "contradicted": sum(one["contradicted"] for one in records),
        "first": records[:SHOWN],
        "table": str(directory / TABLE),
        "page": str(directory / PAGE),
    }


def _record(row: ImageRow, test_was_given: bool) -> dict[str, Any]:
    # a split that was made by hash is made again, and is better not frozen in a table
    split = row.split if test_was_given or row.split == "val" else ""
    return {"path": row.path, "label": row.label, "split": split or "", "group": row.group or ""}


def _write_page(
    path: Path, root: Path, records: Sequence[dict[str, Any]], keys: Sequence[bytes]
) -> None:
    count = sum(one["contradicted"] for one in records)
    head = "<h1>Labels that may be wrong</h1>\n" + paragraph(
        f"{count:,} of {len(records):,} labels are contradicted by heads that had not seen the "
        f"image. The {min(SHOWN, len(records)):,} most doubtful are shown, the most doubtful "
        f"first. Correct the column label of {TABLE}, which lies beside this page, and give it to "
        "fx extract; no feature is computed again.",
        kind="lead",
    )
    shown = list(zip(records, keys, strict=True))[:SHOWN]
    images = "".join(_image(root, *one) for one in shown)
    section = Section("images", "The most doubtful", f'<div class="images">{images}</div>\n')
    html = page("fx: labels that may be wrong", head, [section])
    write_whole(path, html.encode(errors="xmlcharrefreplace"))


def _image(root: Path, record: dict[str, Any], key: bytes) -> str:
    words = (
        f"labelled <b>{text(record['label'])}</b>, more like <b>{text(record['suggested'])}</b>"
        if record["margin"] < 0
        else f"labelled <b>{text(record['label'])}</b>, then <b>{text(record['suggested'])}</b>"
    )
    source = thumbnail(root / record["path"], key, THUMBNAIL)
    return (
        f'<figure><img src="{source}" alt="{text(record["path"])}">'
        f"<figcaption>{words}<br>{text(record['path'])}</figcaption></figure>\n"
    )
