"""Grids of tensors in the terminal: layers by steps, and the values of a tensor by steps.

With colours where the terminal has them; else with signs whose height or weight says the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from tachograph.cli.render import console, short_name
from tachograph.tensors.grids import (
    Grid,
    HistogramGrid,
    Scale,
    scale_of,
    squeeze,
    squeeze_counts,
)

WIDEST = 110
CLASSES = 21
"""Rows of values in the terminal."""

_HEIGHTS = "▁▂▃▄▅▆▇█"
_SHADES = " ·░▒▓█"
_COLOURS = (  # of viridis, from the least to the largest
    *((68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140)),
    *((40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37)),
)
_LONGEST_LABEL = 32
_BAD = ("×", "bold red")

Paint = Callable[[float], tuple[str, str]]
"""From a place between 0 and 1 to a sign and its style."""


def draw_layers(grid: Grid, title: str) -> None:
    """Draw layers by steps."""
    out = console()
    labels = [short_name(label, _LONGEST_LABEL) for label in grid.labels]
    margin = max(map(len, labels), default=0) + 1
    small = squeeze(grid, min(out.width, WIDEST) - margin)
    scale = scale_of(grid.values)
    paint = _painter(out, _HEIGHTS)
    out.print(Text(title, style="bold"))
    for label, values in zip(labels, small.values, strict=True):
        out.print(_line(f"{label:>{margin - 1}} ", [_cell(v, scale, paint) for v in values]))
    out.print(_axis(margin, len(small.steps), grid.steps))
    out.print(_legend(scale, paint, any_bad=_any_bad(grid)))


def draw_histogram(grid: HistogramGrid, title: str) -> None:
    """Draw the values of a tensor by steps, the largest on top."""
    out = console()
    labels = [_class_label(low, high) for low, high in _pairs(grid.edges)]
    margin = max(map(len, labels)) + 1
    shares = squeeze_counts(grid, min(out.width, WIDEST) - margin)
    most = max(max(row) for row in shares)
    scale = Scale(0.0, math.sqrt(most), is_log=False)  # the root, so that tails are seen
    paint = _painter(out, _SHADES)
    out.print(Text(title, style="bold"))
    for label, row in zip(reversed(labels), reversed(shares), strict=True):
        cells = [_share_cell(share, scale, paint) for share in row]
        out.print(_line(f"{label:>{margin - 1}} ", cells))
    out.print(_axis(margin, len(shares[0]), grid.steps))
    legend = Text("share of the values in a row: ", style="dim")
    for place in (0.25, 0.5, 0.75, 1.0):
        share = f" {100 * most * place * place:.2g} %  "
        legend.append_text(_signs([paint(place)] * 2)).append(share, "dim")
    out.print(legend)


# ---------------------------------------------------------------------------- cells


def _cell(value: float | None, scale: Scale | None, paint: Paint) -> tuple[str, str]:
    if value is None:
        return " ", ""
    if scale is None or not math.isfinite(value):
        return _BAD
    return paint(scale.place(value))


def _share_cell(share: float, scale: Scale, paint: Paint) -> tuple[str, str]:
    return paint(max(scale.place(math.sqrt(share)), 1e-9)) if share else (" ", "")


def _painter(out: Console, signs: str) -> Paint:
    """Colours where the terminal has them."""
    if out.color_system is not None and not out.no_color:
        return lambda place: ("█", _colour(place))
    first = signs[0] == " "

    def sign(place: float) -> tuple[str, str]:
        known = signs[1:] if first else signs  # a blank is for what is not there
        return known[min(int(place * len(known)), len(known) - 1)], ""

    return sign


def _colour(place: float) -> str:
    at = place * (len(_COLOURS) - 1)
    low = min(int(at), len(_COLOURS) - 2)
    mixed = (
        round(a + (b - a) * (at - low))
        for a, b in zip(_COLOURS[low], _COLOURS[low + 1], strict=True)
    )
    return f"rgb({','.join(map(str, mixed))})"


def _line(label: str, cells: Sequence[tuple[str, str]]) -> Text:
    return Text(label).append_text(_signs(cells))


def _signs(cells: Sequence[tuple[str, str]]) -> Text:
    return Text.assemble(*cells)


# ---------------------------------------------------------------------------- labels


def _axis(margin: int, width: int, steps: Sequence[int]) -> Text:
    """First, middle and last step, under their columns."""
    first, last = str(steps[0]), str(steps[-1])
    line = list(" " * max(width, len(first)))
    line[: len(first)] = first
    if len(steps) > 1 and width > len(first) + len(last) + 1:
        line[-len(last) :] = last
        middle = str(round((steps[0] + steps[-1]) / 2))
        start = (width - len(middle)) // 2
        if start > len(first) + 1 and start + len(middle) < width - len(last) - 1:
            line[start : start + len(middle)] = middle
    return Text(f"{'step':>{margin - 1}} {''.join(line)}", style="dim")


def _legend(scale: Scale | None, paint: Paint, *, any_bad: bool) -> Text:
    if scale is None:
        return Text("× NaN or Inf; there is no finite number", style="dim")
    legend = Text(f"{scale.low:.3g} ", style="dim")
    legend.append_text(_signs([paint(at / 15) for at in range(16)]))
    legend.append(f" {scale.high:.3g}{', logarithmic' if scale.is_log else ''}", "dim")
    if any_bad:
        legend.append("; ", "dim").append(*_BAD).append(" NaN or Inf", "dim")
    return legend


def _any_bad(grid: Grid) -> bool:
    return any(v is not None and math.isnan(v) for row in grid.values for v in row)


def _class_label(low: float, high: float) -> str:
    if low < 0 < high or low == 0 or high == 0:
        return "0"
    return f"{(low + high) / 2:.2g}"


def _pairs(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(edges))
