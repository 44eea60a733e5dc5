"""Curves of metrics and of statistics of tensors: found in a store, drawn in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tachograph.cli.options import check_metrics
from tachograph.cli.render import console, context_label, short_id
from tachograph.query import Store
from tachograph.tensors import grids as tensor_grids
from tachograph.tensors.ranking import worst_first

MOST_CURVES = 8
"""More are not told apart."""

POINTS = 4000
"""So many of a curve are drawn: more than a picture has columns."""

_LARGEST = 1e200
"""Beyond it, and nearer to 0 than its inverse, the arithmetic of a scale overflows."""

_MARKERS = ("braille", "x", "o", "+", "*")  # tell curves apart where there is no colour

Curve = dict[str, Any]
"""run_id, label, steps, values."""


def find_curves(
    store: Store,
    run: str,
    metrics: Sequence[str],
    context: str | None = None,
    most: int | None = POINTS,
) -> list[Curve]:
    """The series of a run to draw, each of at most so many points."""
    record = store.run(run)
    rows = [row for row in record.metrics if fits(row["context"], context)]
    names = {row["name"] for row in rows}
    check_metrics(record, metrics, names)
    wanted = metrics or [name for name in sorted(names) if "loss" in name][:4]
    chosen = [row for row in rows if row["name"] in wanted]
    found = store.curves(record.run_id, chosen, most)
    curves = []
    for row in chosen:
        points = found[row["name"], row["context"], row["rank"]]
        place = context_label(row["context"])
        label = f"{record.name or short_id(record.run_id)}: {row['name']}"
        curves.append(
            {
                "run_id": record.run_id,
                "label": f"{label} ({place})" if place else label,
                "steps": list(points["step"]),
                "values": list(points["value"]),
            }
        )
    return curves


def tensor_curves(store: Store, run: str, rows: Any, statistic: str) -> list[Curve]:
    """One statistic of each of some tensors over their steps, the worst of the last step first."""
    record = store.run(run)
    head = record.name or short_id(record.run_id)
    last: dict[tuple[str, ...], Any] = {}
    curves: dict[tuple[str, ...], Curve] = {}
    for row in rows:
        key = (row["run_id"], row["name"], row["kind"], row["context"])
        name = f"{head}: {tensor_grids.label(row, row['run_id'] != record.run_id)}"
        curve = curves.setdefault(
            key, {"run_id": row["run_id"], "label": name, "steps": [], "values": []}
        )
        curve["steps"].append(row["step"])
        curve["values"].append(tensor_grids.statistic_of(row, statistic))
        last[key] = row
    columns = (*rows.columns,)
    ranked = worst_first(type(rows).from_rows(list(last.values()), columns))
    return [
        curves[row["run_id"], row["name"], row["kind"], row["context"]]
        for row in ranked
        if any(v is not None for v in curves[_key(row)]["values"])
    ]


def _key(row: Any) -> tuple[str, ...]:
    return row["run_id"], row["name"], row["kind"], row["context"]


def fits(context: str, wanted: str | None) -> bool:
    """Whether a context has what was asked for, as in ``phase=val``."""
    if wanted is None:
        return True
    return wanted.replace(" ", "") in context_label(context).replace(" ", "").split(",")


def finite_points(curve: Curve, *, log_scale: bool) -> tuple[list[float], list[float], int]:
    """Steps and values that a scale can show, and how many it cannot."""
    steps = [n if step is None else step for n, step in enumerate(curve["steps"])]
    least = 1 / _LARGEST if log_scale else -_LARGEST
    points = [
        (step, 0.0 if abs(value) < 1 / _LARGEST else value)
        for step, value in zip(steps, curve["values"], strict=True)
        if value is not None and least <= value <= _LARGEST
    ]
    return [step for step, _ in points], [value for _, value in points], len(steps) - len(points)


def draw(curves: Sequence[Curve], *, log_scale: bool = False, title: str = "") -> None:
    """Draw curves of steps and values; what is not a finite number is left out and counted."""
    import plotext

    plotext.clear_figure()
    plotext.canvas_color("default")
    plotext.axes_color("default")
    plotext.ticks_color("default")
    plotext.plot_size(min(console().width, 110), 22)
    coloured = sys.stdout.isatty()
    left_out = 0
    for number, curve in enumerate(curves):
        steps, values, without = finite_points(curve, log_scale=log_scale)
        left_out += without
        if values:
            marker = "braille" if coloured else _MARKERS[number % len(_MARKERS)]
            plotext.plot(steps, values, label=curve["label"], marker=marker)
    if log_scale:
        plotext.yscale("log")
    plotext.xlabel("step")
    if title:
        plotext.title(title)
    drawing = plotext.build()
    print(drawing if coloured else plotext.uncolorize(drawing))
    if left_out:
        print(f"{left_out} points are not finite numbers that this scale can show")
