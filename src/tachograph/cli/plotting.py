"""The command that draws: plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from tachograph.cli import heatmaps, pictures
from tachograph.cli.curves import MOST_CURVES, POINTS, Curve, draw, find_curves, fits, tensor_curves
from tachograph.cli.options import JsonOption, StoreOption, open_for_reading
from tachograph.cli.render import console, print_json, short_id
from tachograph.errors import QueryError
from tachograph.query import Store
from tachograph.table import Table
from tachograph.tensors import grids as tensor_grids

_NEEDED = (
    *("run_id", "name", "kind", "context", "step", "size", "l2", "min", "max"),
    *("zeros", "nan", "inf", "update_ratio"),
)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(plot)


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to draw.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", "-m", metavar="NAME", help="Metrics; by default the losses of the run."
        ),
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option("--tensor", "-t", metavar="NAME", help="Tensors, '*' is any text."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="A map of all tensors by steps; --tensor chooses.")
    ] = False,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="A map of the values of one tensor by steps.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="KIND",
            help="Of tensors: gradient (where there are some, the default), weight, update, "
            "hessian or activation.",
        ),
    ] = None,
    statistic: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Of tensors: {', '.join(tensor_grids.STATISTICS)}; counts are shown as shares.",
        ),
    ] = "l2",
    context: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE", help="Only series whose context has this, as in phase=val."
        ),
    ] = None,
    log_scale: Annotated[bool, typer.Option("--log", help="Logarithmic values.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Make a picture: a .png, .svg or .pdf file."
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw curves of metrics or tensors, and maps of tensors, in the terminal or as a picture."""
    if metric and (tensor or layers or histogram):
        raise QueryError("--metric is for curves of metrics, and goes with no option for tensors")
    if output is not None:
        pictures.check_output(output)
    show = Show(output, as_json, log_scale)
    choice = Choice(tensor or ["*"], kind, statistic, context)
    with open_for_reading(store) as opened:
        if layers or histogram:
            if len(runs) > 1 or (layers and histogram):
                raise QueryError("a map is of one run, and is --layers or --histogram")
            (_plot_layers if layers else _plot_histogram)(opened, runs[0], choice, show)
        elif tensor:
            _plot_tensors(opened, runs, choice, show)
        else:
            most = None if as_json else POINTS
            found = (find_curves(opened, run, metric or [], context, most) for run in runs)
            _show_curves([curve for of_run in found for curve in of_run], show)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tensors, and which of their statistics."""

    names: Sequence[str]
    kind: str | None
    statistic: str
    context: str | None

    def find(self, store: Store, run: str, *, histograms: bool = False) -> Table:
        """Rows of one kind of tensor, in the context asked for."""
        if self.statistic not in tensor_grids.STATISTICS:
            known = ", ".join(tensor_grids.STATISTICS)
            raise QueryError(f"there is no statistic {self.statistic!r}; there are: {known}")
        columns = {*_NEEDED, self.statistic}

        def of_kind(kind: str) -> Table:
            names = list(self.names)
            return store.tensors(run, kind, names, histograms=histograms, columns=[*columns])

        if self.kind is not None or self.statistic == "update_ratio":
            return self._in_context(of_kind(self.kind or "weight"))
        try:
            return self._in_context(of_kind("gradient"))
        except QueryError:
            return self._in_context(of_kind("weight"))

    def _in_context(self, rows: Table) -> Table:
        if self.context is not None:
            rows = rows.filter(lambda row: fits(row["context"], self.context))
            if not len(rows):
                raise QueryError(f"no such tensor has the context {self.context}")
            return rows
        before = rows.filter(lambda row: '"stage"' not in row["context"])  # such as after clipping
        return before if len(before) else rows


@dataclass(frozen=True, slots=True)
class Show:
    """How something is shown."""

    output: Path | None
    as_json: bool
    log_scale: bool


def _show_curves(curves: Sequence[Curve], show: Show, title: str = "") -> None:
    if not curves:
        raise QueryError(
            "no metric is called a loss; name one with --metric: 'tachograph show' lists them"
        )
    if show.as_json:
        print_json(curves)
    elif show.output is not None:
        pictures.save_curves(curves, show.output, log_scale=show.log_scale, title=title)
    else:
        draw(curves, log_scale=show.log_scale, title=title)


def _plot_tensors(store: Store, runs: Sequence[str], choice: Choice, show: Show) -> None:
    curves: list[Curve] = []
    title = ""
    for run in runs:
        rows = choice.find(store, run)
        curves += tensor_curves(store, run, rows, choice.statistic)
        title = f"{choice.statistic} of the {rows['kind'][0]}"
    drawn = curves if show.as_json else curves[:MOST_CURVES]
    _show_curves(drawn, show, title)
    if len(drawn) < len(curves):
        text = f"{len(drawn)} of {len(curves)}, the worst of the last step; --layers shows all"
        console().print(text, style="dim")


def _plot_layers(store: Store, run: str, choice: Choice, show: Show) -> None:
    rows = choice.find(store, run)
    grid = tensor_grids.layer_grid(rows, choice.statistic)
    if not grid.steps:
        raise QueryError(f"there is no {choice.statistic} of these tensors to draw")
    title = f"{_name(store, run)}: {choice.statistic} of the {rows['kind'][0]}s"
    if show.as_json:
        print_json(asdict(grid))
    elif show.output is not None:
        pictures.save_layers(grid, show.output, title=title, statistic=choice.statistic)
    else:
        heatmaps.draw_layers(grid, title)


def _plot_histogram(store: Store, run: str, choice: Choice, show: Show) -> None:
    rows = choice.find(store, run, histograms=True)
    rows = rows.filter(lambda row: row["histogram"] and row["step"] is not None)
    labels = sorted({tensor_grids.label(row, with_run=True) for row in rows})
    if not labels:
        raise QueryError(
            "these tensors have no histograms; the setting record.histograms says at which steps "
            "they are recorded"
        )
    if len(labels) > 1:
        some = ", ".join(sorted(set(rows["name"]))[:12])
        raise QueryError(f"a histogram is of one tensor; choose with --tensor one of: {some}")
    listed = list(rows)
    is_terminal = show.output is None and not show.as_json
    classes = heatmaps.CLASSES if is_terminal else pictures.CLASSES
    grid = tensor_grids.histogram_grid(listed, classes)
    title = f"{_name(store, run)}: values of {grid.label} ({listed[0]['kind']})"
    if show.as_json:
        print_json(asdict(grid))
    elif show.output is not None:
        pictures.save_histogram(grid, show.output, title=title)
    else:
        heatmaps.draw_histogram(grid, title)


def _name(store: Store, run: str) -> str:
    record = store.run(run)
    return record.name or short_id(record.run_id)
