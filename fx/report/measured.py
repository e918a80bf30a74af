"""Sections of the report with what was measured: accuracy, its forecast, costs, every number."""

from typing import Any

from fx.report import figures as draw
from fx.report.cells import cells_of, describe, finite, styles_of
from fx.report.numbers import NOTHING, number, seconds
from fx.report.page import Section, figure, pairs, paragraph, place, table


def curve(comparison: dict[str, Any]) -> Section | None:
    """Accuracy against training images, of every strategy."""
    cells = cells_of(comparison)
    if not cells:
        return None
    crossover = comparison.get("crossover") or {}
    crossing = finite(crossover.get("n_train"))
    plot = draw.learning_curve(cells, styles_of(list(cells)), crossing)
    note = _what_bands_cover(comparison)
    if any(len(cell.runs) > 1 for row in cells.values() for cell in row):
        note += " Lines are means over the seeds; small markers are single seeds."
    note += " A click on a name in the legend hides its line."
    body = figure(place("learning-curve", plot), note)
    if crossing is not None:
        body += paragraph(
            f"The dotted line marks {crossing:,.0f} training images: from there on, fine-tuning "
            f"is ahead of the classifiers on frozen features. {_how_sure(crossover)}"
        )
    elif "crossover" in comparison and any(name.startswith("finetune") for name in cells):
        body += paragraph(
            "At none of these sizes does fine-tuning overtake the classifiers on frozen features "
            "to stay ahead of them."
        )
    body += pairs((name, description) for name in cells if (description := describe(name)))
    return Section("curve", "Accuracy by training images", body, plots={"learning-curve": [plot]})


def _what_bands_cover(comparison: dict[str, Any]) -> str:
    sizes: dict[str, set[int]] = {}
    for one in comparison.get("estimates") or []:
        sizes.setdefault(one["covers"], set()).add(one["n_train"])
    if len(sizes) <= 1:
        return f"Bands are 95 % intervals; they allow for {next(iter(sizes), 'chance')}."
    each = [
        f"at {', '.join(f'{n:,}' for n in sorted(found))} images for {covers}"
        for covers, found in sorted(sizes.items(), key=lambda item: min(item[1]))
    ]
    return f"Bands are 95 % intervals; they allow {'; '.join(each)}."


def _how_sure(crossover: dict[str, Any]) -> str:
    low, high = finite(crossover.get("low")), finite(crossover.get("high"))
    if low is None:
        return ""
    to = f"to {high:,.0f}" if high is not None else "to beyond the largest size"
    share = finite(crossover.get("share")) or 0.0
    return (
        f"With other seeds and test images it could lie from {low:,.0f} {to} (95 %); in "
        f"{share:.0%} of the resamples it lies within the sizes measured."
    )


def forecasts(comparison: dict[str, Any]) -> Section | None:
    """What more images would bring, and how many a wanted accuracy would take."""
    found = comparison.get("forecasts") or []
    told = [one for one in found if "at" in one]
    reasons = list(dict.fromkeys(one["reason"] for one in found if "reason" in one))
    if not found:
        return None
    body = ""
    if told:
        rows = [
            (
                one["strategy"],
                f"{at['n_train']:,}",
                number(finite(at["accuracy"])),
                f"{at['low']:.3f} to {at['high']:.3f}",
            )
            for one in told
            for at in one["at"]
        ]
        columns = ("Strategy", "Training images", "Accuracy", "90 % interval")
        caption = (
            "Predicted by a power law with an asymptote, fitted to the measured sizes; the "
            "interval is of what would be measured on these test images"
        )
        body += table(f"{caption}.", columns, rows, numeric=columns[1:])
    body += "".join(paragraph(_wanted(one)) for one in told if "wanted" in one)
    body += "".join(paragraph(f"Not predicted: {reason}.") for reason in reasons)
    return Section("forecasts", "Would more images help?", body)


def _wanted(one: dict[str, Any]) -> str:
    wanted = one["wanted"]
    target = f"{one['strategy']}, accuracy {wanted['accuracy']:.3f}:"
    if wanted["n_train"] is None:
        return f"{target} not reached by more images, as far as these can tell."
    high = f"{wanted['high']:,}" if wanted["high"] is not None else "never"
    return f"{target} about {wanted['n_train']:,} training images ({wanted['low']:,} to {high})."


def cost(comparison: dict[str, Any]) -> Section | None:
    """Accuracy against seconds."""
    cells = cells_of(comparison)
    if not any(cell.mean("seconds") for row in cells.values() for cell in row):
        return None
    plot = draw.cost(cells, styles_of(list(cells)))
    body = figure(
        place("cost-curve", plot),
        "The larger the marker, the more training images. Of the points on the dotted line (the "
        "Pareto front) none is beaten by a quicker one.",
    )
    extraction = finite(comparison.get("extraction_seconds"))
    if extraction is not None:
        body += paragraph(
            f"Extracting the features took {seconds(extraction)} s, once for all classifiers on "
            "them; it is not part of the seconds here."
        )
    return Section("cost", "What it costs", body, plots={"cost-curve": [plot]})


def results(comparison: dict[str, Any]) -> Section | None:
    """Every number of every cell."""
    cells = [cell for row in cells_of(comparison).values() for cell in row]
    if not cells:
        return None
    cells.sort(key=lambda cell: (-cell.n_train, -(cell.mean("accuracy") or 0)))
    rows = [
        (
            cell.strategy,
            f"{cell.n_train:,}",
            number(cell.mean("accuracy")),
            f"{cell.interval[0]:.3f} to {cell.interval[1]:.3f}" if cell.interval else NOTHING,
            seconds(cell.mean("seconds")),
            number(cell.mean("macro_f1")),
            number(cell.mean("log_loss")),
            number(cell.mean("ece")),
            number(cell.mean("trainable_parameters"), 0),
            number(cell.mean("peak_memory_mb"), 0),
            number(cell.mean("deployed_mb"), 1),
            number(cell.mean("predict_ms"), 1),
            number(cell.mean("settings_tried"), 0),
            str(len(cell.runs)),
        )
        for cell in cells
    ]
    columns = (
        "Strategy",
        "Training images",
        "Accuracy",
        "95 % interval",
        "Seconds",
        "Macro F1",
        "Log loss",
        "Calibration error",
        "Trained parameters",
        "Memory, MB",
        "Deployed, MB",
        "Milliseconds an image",
        "Settings tried",
        "Seeds",
    )
    caption = (
        "On the test images, the largest training set first; means over the seeds. Calibration "
        "error is the expected one; memory is the peak of the process; deployed is the head with "
        "its network, or the network; milliseconds are of predicting, decoding included; settings "
        "are values of C, normalisations and kernels, or epochs, of which validation rows chose."
    )
    body = table(caption, columns, rows, numeric=columns[1:])
    body += "".join(paragraph(f"{note}.") for note in comparison.get("notes") or [])
    return Section("results", "All results", body)
