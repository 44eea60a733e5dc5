"""The command that draws: plot."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any

import typer

from tachograph.cli.options import JsonOption, StoreOption, open_for_reading
from tachograph.cli.render import console, context_label, print_json, short_id
from tachograph.errors import QueryError
from tachograph.query import Store

_MARKERS = ("braille", "x", "o", "+", "*")  # tell curves apart where there is no colour


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(plot)


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to draw.")],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", help="Metrics; by default the losses of the run."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Only series whose context has this, as in phase=val.")
    ] = None,
    log_scale: Annotated[bool, typer.Option("--log", help="Logarithmic values.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the curves of metrics in the terminal."""
    with open_for_reading(store) as opened:
        curves = [
            curve for name in runs for curve in find_curves(opened, name, metric or [], context)
        ]
    if not curves:
        raise QueryError("there is nothing to draw; 'tachograph show' lists the metrics of a run")
    if as_json:
        print_json(curves)
    else:
        draw(curves, log_scale=log_scale)


def find_curves(
    store: Store, run: str, metrics: list[str], context: str | None = None
) -> list[dict[str, Any]]:
    """The series of a run to draw: label, steps and values of each."""
    record = store.run(run)
    rows = [row for row in record.metrics if context is None or _fits(row["context"], context)]
    names = {row["name"] for row in rows}
    if missing := [metric for metric in metrics if metric not in names]:
        raise QueryError(
            f"run {record.run_id} has no metric {', '.join(missing)}; it has: "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    wanted = metrics or [name for name in sorted(names) if "loss" in name][:4]
    curves = []
    for row in rows:
        if row["name"] in wanted:
            points = store.series(
                record.run_id, row["name"], context=row["context"], rank=row["rank"]
            )
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


def _fits(context: str, wanted: str) -> bool:
    return wanted.replace(" ", "") in context_label(context).replace(" ", "").split(",")


def draw(curves: list[dict[str, Any]], *, log_scale: bool = False, title: str = "") -> None:
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
        steps = [n if step is None else step for n, step in enumerate(curve["steps"])]
        pairs = [
            (step, value)
            for step, value in zip(steps, curve["values"], strict=True)
            if value is not None and math.isfinite(value) and (value > 0 or not log_scale)
        ]
        left_out += len(steps) - len(pairs)
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            marker = "braille" if coloured else _MARKERS[number % len(_MARKERS)]
            plotext.plot(list(xs), list(ys), label=curve["label"], marker=marker)
    if log_scale:
        plotext.yscale("log")
    plotext.xlabel("step")
    if title:
        plotext.title(title)
    drawing = plotext.build()
    print(drawing if coloured else plotext.uncolorize(drawing))
    if left_out:
        print(f"{left_out} points are not finite numbers that this scale can show")
