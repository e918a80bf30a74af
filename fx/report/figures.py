"""Plotly figures of the report, as plain data: every string in them is escaped for plotly.

Text and rules carry no colour here: the page's style sheet colours them, so that one figure serves
light, dark and print. The series' colours are legible on both grounds.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fx.records import Measurement, Point
from fx.report.images import MapPoint
from fx.report.page import Figure
from fx.report.styles import Style, palette
from heads.metrics import Metric

_MAX_NAMED_SIZES = 8
_MAX_IN_LEGEND = 20
_FRONT = "#7F7F7F"
_TRAIN = Style("#0072B2", "solid", "circle")
_VALIDATION = Style("#D55E00", "dash", "square")
_CALIBRATED = Style("#009E73", "dashdot", "triangle-up")


def learning_curve(
    curves: Mapping[str, list[Point]],
    styles: Mapping[str, Style],
    metric: Metric,
    crossing: int | None,
) -> Figure:
    """A metric against training images: a line, a 95 % band and the single seeds per strategy."""
    sizes = sorted({point.n_train for row in curves.values() for point in row})
    data: list[dict[str, Any]] = []
    for strategy, row in curves.items():
        data += _curve(strategy, row, styles[strategy], metric.name)
    layout = _layout("training images", f"{metric.label} on the test images")
    layout["xaxis"] |= {"type": "log", "hoverformat": ",d"}
    layout["hovermode"] = "x unified"
    if len(sizes) <= _MAX_NAMED_SIZES:
        layout["xaxis"] |= {"tickvals": sizes, "ticktext": [f"{size:,}" for size in sizes]}
    if crossing is not None:
        layout["shapes"] = [_upright(crossing)]
    return {"data": data, "layout": layout, "alt": _curve_in_words(curves, metric)}


def cost(curves: Mapping[str, list[Point]], styles: Mapping[str, Style], metric: Metric) -> Figure:
    """A metric against seconds: a point per strategy and size, larger with more images."""
    sizes = sorted({point.n_train for row in curves.values() for point in row})
    data: list[dict[str, Any]] = []
    for strategy, row in curves.items():
        points = [
            (seconds, value, point.n_train)
            for point in row
            if (seconds := point.mean("seconds")) and (value := point.mean(metric.name)) is not None
        ]
        marker_sizes = [8 + 8 * (sizes.index(n) + 1) / len(sizes) for _, _, n in points]
        data.append(
            _series(strategy, styles[strategy], marker_sizes, width=1)
            | {
                "x": [seconds for seconds, _, _ in points],
                "y": [value for _, value, _ in points],
                "customdata": [f"{n:,} images" for _, _, n in points],
                "hovertemplate": "%{customdata}: %{y:.3f} in %{x:.3~g} s",
            }
        )
    measured = [point for trace in data for point in zip(trace["x"], trace["y"], strict=True)]
    front = _pareto(measured, metric.higher_is_better)
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [seconds for seconds, _ in front],
            "y": [value for _, value in front],
            "hoverinfo": "skip",
            "line": {"color": _FRONT, "dash": "dot", "width": 3, "shape": "hv"},
        }
    )
    layout = _layout("seconds, per run", f"{metric.label} on the test images")
    layout["xaxis"] |= {"type": "log", "tickformat": "~g"}
    if measured:
        seconds_of = [seconds for seconds, _ in measured]
        layout["xaxis"] |= {"tickvals": _ticks(min(seconds_of), max(seconds_of))}
    layout["hovermode"] = "closest"
    alt = f"{metric.heading} against seconds; the tables of results give the same numbers."
    return {"data": data, "layout": layout, "alt": alt}


def reliability(
    bins: Mapping[str, Sequence[tuple[float, float, int]]], styles: Mapping[str, Style]
) -> Figure:
    """Accuracy against confidence, a line a strategy; on the diagonal the two are equal."""
    data = [
        _series(strategy, styles[strategy])
        | {
            "x": [confidence for confidence, _, _ in rows],
            "y": [accuracy for _, accuracy, _ in rows],
            "customdata": [f"{count:,} images" for _, _, count in rows],
            "hovertemplate": "said %{x:.3f}, right %{y:.3f} (%{customdata})",
        }
        for strategy, rows in bins.items()
    ]
    layout = _layout("confidence", "accuracy")
    diagonal = {"dash": "dot", "width": 1}
    layout["shapes"] = [{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": diagonal}]
    lowest = min(value for rows in bins.values() for row in rows for value in row[:2])
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"range": [max(0.0, lowest - 0.05), 1.02]}
    layout["hovermode"] = "closest"
    alt = "Accuracy against confidence; the calibration errors in the table of results sum it up."
    return {"data": data, "layout": layout, "alt": alt}


def feature_map(points: Sequence[MapPoint]) -> Figure:
    """Points of a map, a trace a class; ``images`` of a trace are data URIs, a point each."""
    labels = sorted({point.label for point in points})
    data = []
    for label, style in zip(labels, palette(len(labels)), strict=True):
        of_label = [point for point in points if point.label == label]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(label),
                "x": [point.x for point in of_label],
                "y": [point.y for point in of_label],
                "customdata": [[point.image, point.path] for point in of_label],
                "hoverinfo": "none",
                "marker": {"color": style.colour, "symbol": style.symbol, "size": 6},
            }
        )
    layout = _layout("", "")
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"visible": False}
    layout |= {"hovermode": "closest", "height": 520, "showlegend": len(labels) <= _MAX_IN_LEGEND}
    alt = f"Map of {len(points):,} images of {len(labels)} classes by their features."
    return {"data": data, "layout": layout, "alt": alt}


def confusion(matrix: list[list[int]], classes: Sequence[str], strategy: str) -> Figure:
    """Heat map of a confusion matrix, each row as shares of its class: for many classes."""
    names = [html.escape(name) for name in classes]
    # the root, so that a few mistakes among many images are still seen
    roots = [[round((count / (sum(row) or 1)) ** 0.5, 3) for count in row] for row in matrix]
    ticks = (0, 1, 10, 25, 50, 100)
    data = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": roots,
        "customdata": matrix,
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": 1,
        "colorbar": {
            "thickness": 12,
            "outlinewidth": 0,
            "tickvals": [(percent / 100) ** 0.5 for percent in ticks],
            "ticktext": [f"{percent} %" for percent in ticks],
        },
        "hovertemplate": "true %{y}<br>predicted %{x}<br>%{customdata} images<extra></extra>",
    }
    layout = _layout("predicted", "true")
    layout["xaxis"] |= {"type": "category", "showgrid": False}
    layout["yaxis"] |= {"type": "category", "showgrid": False, "autorange": "reversed"}
    layout |= {"hovermode": "closest", "height": 480}
    return {"data": [data], "layout": layout, "alt": f"Confusion matrix of {strategy}, as colours."}


def training(run: Measurement, quantity: str, name: str) -> Figure:
    """Training and validation `quantity` ("loss" or "accuracy") by epoch, of the run `name`."""
    history = run.history or []
    epochs = [entry.get("epoch", index) for index, entry in enumerate(history)]
    data = []
    last = []
    lines = [
        ("training", f"train_{quantity}", _TRAIN),
        ("validation", f"validation_{quantity}", _VALIDATION),
    ]
    if quantity == "loss":
        lines.append(("validation, calibrated", "calibrated_loss", _CALIBRATED))
    for side, key, style in lines:
        values = [entry.get(key) for entry in history]
        drawn = {"x": epochs, "y": values, "hovertemplate": "%{y:.4f}"}
        data.append(_series(side, style, 7) | drawn)
        if values and values[-1] is not None:
            last.append(f"{side} {values[-1]:.3f}")
    layout = _layout("epoch", quantity)
    layout["xaxis"] |= {"dtick": 1} if len(epochs) <= 12 else {}
    layout |= {"hovermode": "x unified", "height": 300}
    if run.best_epoch is not None:
        layout["shapes"] = [_upright(run.best_epoch)]
    alt = f"{quantity.capitalize()} by epoch of {name}; at the last epoch: {', '.join(last)}."
    return {"data": data, "layout": layout, "alt": alt}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis: three at least, and few enough to stand apart."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        # the axis reaches a little beyond the points
        ticks = [tick for tick in ticks if low / 1.2 <= tick <= 1.2 * high]
        if len(ticks) > 2:
            break
    return ticks


def _pareto(points: list[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Points of (seconds, score) that no quicker one equals."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for seconds, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((seconds, value))
    return front


def _curve(strategy: str, row: Sequence[Point], style: Style, metric: str) -> list[dict[str, Any]]:
    known = [(point, value) for point in row if (value := point.mean(metric)) is not None]
    bounds = [(point.n_train, *point.interval) for point, _ in known if point.interval]
    seeds = [
        (point.n_train, value)
        for point, _ in known
        if len(point.runs) > 1
        for run in point.runs
        if (value := run.number(metric)) is not None
    ]
    group = html.escape(strategy)
    line = _series(strategy, style, 9) | {
        "legendgroup": group,
        "x": [point.n_train for point, _ in known],
        "y": [value for _, value in known],
        "customdata": [_in_brackets(point) for point, _ in known],
        "hovertemplate": "%{y:.3f}%{customdata}",
    }
    silent = {"type": "scatter", "legendgroup": group, "showlegend": False, "hoverinfo": "skip"}
    if len(bounds) == 1 == len(known):
        [(_, low, high)] = bounds
        [(_, middle)] = known
        line["error_y"] = {"array": [high - middle], "arrayminus": [middle - low], "width": 6}
        bounds = []
    band = silent | {
        "mode": "lines",
        "x": [n for n, _, _ in bounds] + [n for n, _, _ in reversed(bounds)],
        "y": [low for _, low, _ in bounds] + [high for _, _, high in reversed(bounds)],
        "fill": "toself",
        "fillcolor": f"rgba({', '.join(str(v) for v in bytes.fromhex(style.colour[1:]))}, 0.13)",
        "line": {"width": 0},
    }
    dots = silent | {
        "mode": "markers",
        "x": [n for n, _ in seeds],
        "y": [value for _, value in seeds],
        "opacity": 0.6,
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 4},
    }
    return [trace for trace in (band, dots, line) if trace["x"]]


def _series(
    name: str, style: Style, size: float | list[float] = 6, width: int = 2
) -> dict[str, Any]:
    """How a line with markers of so many pixels is drawn; 6 are plotly's own."""
    marker = {"color": style.colour, "symbol": style.symbol, "size": size}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(name),
        "line": {"color": style.colour, "dash": style.dash, "width": width},
        "marker": marker | {"opacity": 1, "line": {"width": 0}},
    }


def _in_brackets(point: Point) -> str:
    parts = [f"{point.interval[0]:.3f} to {point.interval[1]:.3f}"] if point.interval else []
    if len(point.runs) > 1:
        parts.append(f"{len(point.runs)} seeds")
    return f" ({', '.join(parts)})" if parts else ""


def _curve_in_words(curves: Mapping[str, list[Point]], metric: Metric) -> str:
    lines = []
    for strategy, row in curves.items():
        points = [
            f"{value:.3f} at {point.n_train:,}"
            for point in row
            if (value := point.mean(metric.name)) is not None
        ]
        lines.append(f"{strategy} {', '.join(points) or 'without a result'}")
    return f"{metric.heading} by number of training images: {'; '.join(lines)}."


def _upright(x: float) -> dict[str, Any]:
    line = {"dash": "dot", "width": 1}
    return {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "showline": True, "ticks": "outside"}
    return {
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}},
        "height": 420,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "#1f262d", "bordercolor": "#1f262d", "font": {"color": "#fff"}},
    }
