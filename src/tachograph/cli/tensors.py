"""Statistics of tensors as a table, and what the page about a run says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tachograph.cli.options import JsonOption, RunArgument, StoreOption, open_for_reading
from tachograph.cli.render import (
    console,
    context_label,
    print_json,
    print_table,
    section,
    short_id,
    short_name,
    shown,
    sparkline,
)
from tachograph.errors import QueryError
from tachograph.query import Store
from tachograph.reading.facts import decode_context
from tachograph.reading.run_record import RunRecord
from tachograph.table import Table
from tachograph.tensors.query import COLUMNS, SERIES, Wanted, find, index
from tachograph.tensors.ranking import with_remarks, worst_first
from tachograph.tensors.records import KINDS

_FEW = 30
_FEW_ON_PAGE = 5
_NARROW = ("name", "kind", "l2", "update_ratio", "remark")
_WIDE = (
    *("name", "kind", "shape", "mean", "std", "min", "max", "l2", "zeros", "update_ratio"),
    *("curve", "remark"),
)
_WIDE_FROM = 130
_NAME = 26  # letters of a name in a narrow terminal
_NUMBERS = ("mean", "std", "min", "max", "l2", "zeros", "update_ratio")
_STYLES = {"remark": "yellow"}
_HEADS = {"update_ratio": "update", "curve": "l2 over steps", "run_id": "run"}


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(tensors)


def tensors(
    run: RunArgument,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="KIND",
            help="Only these: weight, gradient, update, hessian or activation.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="PATTERN", help="Only these names; '*' is any text."),
    ] = None,
    step: Annotated[
        str,
        typer.Option(
            metavar="STEP", help="A number, or 'last': of each tensor the last, the default."
        ),
    ] = "last",
    sort: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Column to sort by, descending with a leading '-'; 'model' keeps the order of "
            "recording. By default the worst first: NaN and infinities, gradients and updates "
            "that are zero everywhere, gradients far from those of the other tensors and updates "
            "far too small or large for their weights, then the rest by how far they are from "
            "that.",
            show_default=False,
        ),
    ] = "worst",
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, help=f"At most so many; by default {_FEW}."
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List weights, gradients and updates with their statistics at one step, the worst first."""
    with open_for_reading(store) as opened:
        found = opened.tensors(run, kind, name, _step(step))
        if not len(found):
            raise QueryError(f"no tensors are recorded of run {opened.resolve(run)}")
        rows = _sorted(found, sort)
        chosen = rows.take(range(len(rows))[: limit if as_json else limit or _FEW])
        if as_json:
            print_json([row | {"context": decode_context(row["context"])} for row in chosen])
            return
        _print(opened, chosen, len(rows))


def _step(text: str) -> Any:
    if text == "last":
        return text
    try:
        return int(text)
    except ValueError:
        raise QueryError(f"--step takes a number or 'last', not {text!r}") from None


def _sorted(rows: Table, by: str) -> Table:
    if by == "worst":
        return worst_first(rows)
    if by == "model":
        return with_remarks(rows)
    column = by.removeprefix("-")
    if column not in COLUMNS:
        raise QueryError(f"--sort takes 'worst', 'model' or a column: {', '.join(COLUMNS)}")
    ranked = worst_first(rows)
    values = ranked[column]
    known = [at for at, value in enumerate(values) if value is not None]
    known.sort(key=values.__getitem__, reverse=by.startswith("-"))
    return ranked.take([*known, *(at for at, value in enumerate(values) if value is None)])


def _print(store: Store, rows: Table, count: int) -> None:
    out = console()
    steps, runs = set(rows["step"]), set(rows["run_id"])
    is_wide = out.width >= _WIDE_FROM
    columns = ["run_id"] * (len(runs) > 1) + ["step"] * (len(steps) > 1)
    columns += _WIDE if is_wide else _NARROW
    listed = [_readable(row, None if is_wide else _NAME) for row in rows]
    if is_wide:
        curves = _curves(store, rows)
        for row, key in zip(listed, _keys(rows), strict=True):
            row["curve"] = sparkline(curves[key], 16) if len(curves[key]) > 1 else ""
    if len(steps) == 1:
        out.print(f"step {next(iter(steps))}", style="bold")
    print_table(listed, _filled(columns, listed), names=_HEADS, styles=_STYLES, right=_NUMBERS)
    if count > len(rows):
        out.print(f"{count - len(rows)} more; --limit or --json shows them", style="dim")


def _readable(row: dict[str, Any], longest: int | None = None) -> dict[str, Any]:
    """Values as a person reads them; a name of at most so many letters."""
    place = context_label(row["context"])
    name = f"{row['name']} ({place})" if place else row["name"]
    zeros = None
    if row["size"] and row["zeros"] is not None:
        zeros = f"{row['zeros'] / row['size']:.0%}" if row["zeros"] else ""
    return row | {
        "name": name if longest is None else short_name(name, longest),
        "shape": None if row["shape"] is None else "×".join(map(str, row["shape"])) or "scalar",
        "zeros": zeros,
        **{column: _short(row[column]) for column in ("mean", "std", "min", "max", "l2")},
        "update_ratio": None if row["update_ratio"] is None else f"{row['update_ratio']:.1e}",
    }


def _filled(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Columns in which something stands."""
    return [name for name in columns if any(row[name] not in (None, "") for row in rows)]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _keys(rows: Table) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name] for name in SERIES), strict=True))


def _curves(store: Store, rows: Table) -> dict[tuple[Any, ...], list[float | None]]:
    """The l2 of these tensors at all their steps."""
    curves: dict[tuple[Any, ...], list[float | None]] = {key: [] for key in _keys(rows)}
    runs = [*dict.fromkeys(rows["run_id"])]
    names, kinds = sorted(set(rows["name"])), sorted(set(rows["kind"]))
    found = find(store.read, Wanted(runs, kinds, names, columns=(*SERIES, "step", "l2")))
    for key, value in zip(_keys(found), found["l2"], strict=True):
        if key in curves:
            curves[key].append(value)
    return curves


# ---------------------------------------------------------------------------- on the page


def print_section(store: Store, record: RunRecord) -> None:
    """What the page about a run says of its tensors: how many, when, and the few worst."""
    known = index(store.read, Wanted([record.run_id]))
    if not len(known) and len(record.children):
        known = index(store.read, Wanted(record.parts))
    if not len(known):
        return
    section("Tensors")
    out = console()
    kinds = [row["kind"] for row in known if '"stage"' not in row["context"]]
    counted = ", ".join(
        f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) != 1)}"
        for kind in dict.fromkeys([*KINDS, *kinds])
        if kind in kinds
    )
    first = min((step for step in known["first_step"] if step is not None), default=None)
    last = max((step for step in known["last_step"] if step is not None), default=None)
    times = max(known["count"])
    steps = f"; {times} times from step {first} to {last}" if times > 1 else f"; at step {last}"
    out.print(f"{counted}{steps if last is not None else ''}")
    for row in record.metrics:
        if row["name"] in ("gradient_norm", "gradient_norm_clipped"):
            of = context_label(row["context"])
            text = f"{row['name']} {shown(row['last'])}, at most {shown(row['max'])}"
            out.print(f"{text} ({of})" if of else text)
    if last is None:
        return
    ranked = worst_first(find(store.read, Wanted([*dict.fromkeys(known["run_id"])], step=last)))
    longest = _NAME if out.width < _WIDE_FROM else None
    worst = [_readable(row, longest) for row in ranked if row["remark"]]
    if worst:
        print_table(
            worst[:_FEW_ON_PAGE],
            _filled(_NARROW, worst),
            names=_HEADS,
            styles=_STYLES,
            right=_NUMBERS,
        )
    more = len(worst) - _FEW_ON_PAGE
    hint = f"{more} more with remarks; " if more > 0 else "" if worst else "nothing to remark; "
    command = f"tachograph tensors {short_id(record.run_id)}"
    out.print(f"{hint}'{command}' lists them all", style="dim")
