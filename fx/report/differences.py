"""Section of the report with the differences in accuracy: intervals and tests of pairs."""

from typing import Any

from fx.report.cells import finite
from fx.report.numbers import MINUS, NOTHING, number, probability, signed
from fx.report.page import ROWS_SHOWN, Section, folded, paragraph, table


def differences(comparison: dict[str, Any]) -> Section | None:
    """Differences between strategies, and between the models of the largest size."""
    tests = comparison.get("pairs") or []
    compared = comparison.get("differences") or []
    if not tests and not compared:
        return None
    body = (_of_strategies(compared) if compared else "") + (_of_models(tests) if tests else "")
    return Section("pairs", "Are the differences real?", body)


def _of_strategies(compared: list[dict[str, Any]]) -> str:
    rows = [
        (
            f"{pair['a']} {MINUS} {pair['b']}",
            f"{pair['n_train']:,}",
            signed(finite(pair["difference"])),
            " to ".join(signed(finite(bound)) for bound in pair["interval"]),
            probability(finite(pair["p_holm"])),
            str(pair["seeds"]),
            _verdict(pair),
        )
        for pair in sorted(compared, key=lambda pair: -int(pair["n_train"]))
    ]
    columns = (
        "Strategies",
        "Training images",
        "Difference",
        "Interval",
        "p, corrected",
        "Seeds",
        "Reading",
    )
    caption = (
        "Differences in accuracy, paired by seed and test image. The intervals hold at once (95 %) "
        "for all pairs of a size; p is corrected for the number of rows (Holm). With three seeds "
        "or more both allow for other training images too, else for other test images alone."
    )
    content = table(caption, columns, rows, numeric=columns[1:6])
    long = len(rows) > ROWS_SHOWN
    return folded(f"{len(rows)} differences between strategies", content) if long else content


def _of_models(tests: list[dict[str, Any]]) -> str:
    rows = [
        (
            f"{pair.get('a')} {MINUS} {pair.get('b')}",
            number(finite(pair.get("n_train")), 0),
            signed(finite(pair.get("difference"))),
            probability(finite(pair.get("p_value"))),
            probability(finite(pair.get("p_holm"))),
            _verdict(pair),
        )
        for pair in sorted(tests, key=lambda pair: -(finite(pair.get("n_train")) or 0))
    ]
    names = sorted({str(pair["test"]) for pair in tests if pair.get("test")})
    columns = ("Pair", "Training images", "Difference", "p", "p, corrected", "Reading")
    caption = "Difference in accuracy on the same test images"
    caption += f"; test: {', '.join(names)}." if names else "."
    return table(caption, columns, rows, numeric=columns[1:5]) + paragraph(
        "Corrected is for the number of tests (Holm); a difference is called shown where that p is "
        "under 0.05. The tests are of these fitted models; another training run could differ.",
        kind="note",
    )


def _verdict(pair: dict[str, Any]) -> str:
    p = finite(pair.get("p_holm"))
    difference = finite(pair.get("difference"))
    if p is None or difference is None:
        return NOTHING
    if p >= 0.05:
        return "no difference shown"
    return f"{pair['a'] if difference > 0 else pair['b']} is better"
