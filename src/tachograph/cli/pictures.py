"""The same curves and grids as in the terminal, as PNG, SVG or PDF; the one home of matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph.cli.curves import Curve, finite_points
from tachograph.errors import QueryError
from tachograph.tensors.grids import Grid, HistogramGrid, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES = 80
"""Rows of values in a picture."""

_FORMATS = (".png", ".svg", ".pdf")
_MOST_LABELS = 60
_DPI = 150
_INSTALL = "pictures need matplotlib; install it with: pip install 'tachograph[plot]'"


def check_output(output: Path) -> None:
    """Raise QueryError, before anything is read, where no such picture can be made."""
    if output.suffix.lower() not in _FORMATS:
        raise QueryError(f"--output takes a name that ends with {', '.join(_FORMATS)}: {output}")
    _new_figure(1, 1)


def _new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches; nothing global is touched and no window opens."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise QueryError(f"{_INSTALL} ({error})") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, output: Path) -> None:
    try:
        figure.savefig(output, dpi=_DPI)
    except OSError as error:
        raise QueryError(f"cannot write {output}: {error.strerror or error}") from error
    print(output)


# ---------------------------------------------------------------------------- curves


def save_curves(curves: Sequence[Curve], output: Path, *, log_scale: bool, title: str = "") -> None:
    """Curves of steps and values."""
    figure = _new_figure(8, 4.5)
    axes: Axes = figure.subplots()
    for curve in curves:
        steps, values, _ = finite_points(curve, log_scale=log_scale)
        axes.plot(steps, values, label=curve["label"], linewidth=1.3)
        bad = [
            step
            for step, value in zip(curve["steps"], curve["values"], strict=True)
            if step is not None and (value is None or not math.isfinite(value))
        ]
        if bad:  # at the foot of the picture, where no curve can be
            axes.plot(bad, [0.015] * len(bad), "x", color="red", transform=_foot(axes))
    if log_scale:
        axes.set_yscale("log")
    _dress(axes, title)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=8, frameon=False)
    _save(figure, output)


def _foot(axes: Axes) -> Any:
    return axes.get_xaxis_transform()


def _dress(axes: Axes, title: str) -> None:
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


# ---------------------------------------------------------------------------- grids


def save_layers(grid: Grid, output: Path, *, title: str, statistic: str) -> None:
    """Layers by steps, one colour per value; red where there is NaN or Inf."""
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    rows = len(grid.labels)
    figure = _new_figure(9, min(1.6 + 0.2 * rows, 24))
    axes: Axes = figure.subplots()
    edges, heights = _edges(grid.steps), range(rows + 1)
    bad = [[v is not None and math.isnan(v) for v in row] for row in grid.values]
    scale = scale_of(grid.values)
    if scale is not None:
        values = [[_drawn(v, scale.low, scale.is_log) for v in row] for row in grid.values]
        norm = (LogNorm if scale.is_log else Normalize)(scale.low, scale.high)
        mesh = axes.pcolormesh(edges, heights, _masked(values), norm=norm, cmap="viridis")
        figure.colorbar(mesh, ax=axes, label=statistic, pad=0.01, fraction=0.05)
    if any(map(any, bad)):
        marks = _masked([[1.0 if b else math.nan for b in row] for row in bad])
        axes.pcolormesh(edges, heights, marks, cmap=ListedColormap(["red"]))
        title += "   (red: NaN or Inf)"
    every = math.ceil(rows / _MOST_LABELS)
    ticks = range(0, rows, every)
    axes.set_yticks([at + 0.5 for at in ticks], [grid.labels[at] for at in ticks], fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _dress(axes, title)
    _save(figure, output)


def save_histogram(grid: HistogramGrid, output: Path, *, title: str) -> None:
    """The values of a tensor by steps, with its median, its 5 % and 95 % quantiles and extremes."""
    from matplotlib.colors import PowerNorm

    figure = _new_figure(9, 5)
    axes: Axes = figure.subplots()
    totals = [sum(column) or 1 for column in zip(*grid.counts, strict=True)]
    shares = [
        [100 * n / total if n else math.nan for n, total in zip(row, totals, strict=True)]
        for row in grid.counts
    ]
    most = max(share for row in shares for share in (*row, 0.0) if not math.isnan(share))
    norm = PowerNorm(0.5, 0.0, most or 100.0)  # a root, so that tails are seen
    mesh = axes.pcolormesh(
        _edges(grid.steps), grid.edges, _masked(shares), norm=norm, cmap="viridis"
    )
    figure.colorbar(mesh, ax=axes, label="% of the values in a row", pad=0.01, fraction=0.05)
    for name, values in grid.lines.items():
        drawn = [math.nan if value is None else value for value in values]
        style = "-" if name == "median" else ":" if name in ("min", "max") else "--"
        axes.plot(grid.steps, drawn, style, color="white", linewidth=1.6)
        axes.plot(grid.steps, drawn, style, color="black", linewidth=0.9, label=name)
    _signed_log(axes, grid.edges)
    axes.legend(fontsize=7, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    _dress(axes, "")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    _save(figure, output)


def _signed_log(axes: Axes, edges: Sequence[float]) -> None:
    """A logarithmic axis for both signs, linear in the class around zero."""
    inner = min((abs(edge) for edge in edges if abs(edge) > 1e-38), default=1.0)
    axes.set_yscale("symlog", linthresh=inner, linscale=0.3)
    axes.set_ylim(edges[0], edges[-1])
    axes.set_ylabel("value")
    largest = max(abs(edge) for edge in edges)
    powers = range(math.ceil(math.log10(3 * inner)), math.floor(math.log10(largest)) + 1)
    signed = [(sign, power) for power in powers for sign in (1, -1)]
    ticks = [(sign * 10.0**power, f"${'-' * (sign < 0)}10^{{{power}}}$") for sign, power in signed]
    ends = [(edge, f"{edge:.2g}") for edge in (edges[0], edges[-1])] if len(powers) < 2 else []
    ticks += [(0.0, "0"), *ends]
    shown = [tick for tick in ticks if edges[0] <= tick[0] <= edges[-1]]
    axes.set_yticks([value for value, _ in shown], [text for _, text in shown])
    axes.minorticks_off()


def _edges(steps: Sequence[int]) -> list[float]:
    """Edges of columns: each step in the middle between its neighbours."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    inner = [(low + high) / 2 for low, high in itertools.pairwise(steps)]
    return [2 * steps[0] - inner[0], *inner, 2 * steps[-1] - inner[-1]]


def _drawn(value: float | None, low: float, is_log: bool) -> float:
    if value is None or not math.isfinite(value):
        return math.nan
    return max(value, low) if is_log else value


def _masked(values: Sequence[Sequence[float]]) -> Any:
    import numpy as np

    return np.ma.masked_invalid(np.asarray(values, np.float64))
