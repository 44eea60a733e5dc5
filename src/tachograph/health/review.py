"""Health of a run that a store has: the rules over what was recorded, with any thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import Condition, Query
from tachograph.health import steps
from tachograph.health.findings import Finding
from tachograph.health.rules import RunRules
from tachograph.records import MetricBlock, Row, Series, join_special
from tachograph.settings import HealthConfig
from tachograph.tensors.records import STATISTICS

if TYPE_CHECKING:
    from tachograph.query import Store

_POINT = ("name", "context", "seq", "time", "step", "value", "special")
_TENSOR = (
    *("run_id", "rank", "attempt", "step", "name", "kind", "context"),
    *("shape", "logical_shape", "dtype", "size", *STATISTICS),
)
_PIECE = 1_000  # points of one series at a time, so that several losses go side by side


def review(store: Store, run: str, settings: HealthConfig | None = None) -> list[Finding]:
    """Look at what was recorded of a run, as if it happened now; nothing is recorded.

    Parameters
    ----------
    store : Store
    run : str
        As anywhere: an id, the beginning or end of one, a unique name, ``latest``.
    settings : HealthConfig, optional
        Which rules, and their thresholds; by default those of an empty configuration.

    Returns
    -------
    list of Finding
        As events of kind 'health' would have said it. Without `stalled`, which takes a clock.
    """
    run_id = store.resolve(run)
    settings = settings or HealthConfig()
    attempt = store.row(run_id)["attempt"] or 1
    found: list[Finding] = []
    first = RunRules(settings, attempt)
    for block in _blocks(store, run_id):
        found += first.points(block)
    by_rank = {0: first}
    rows = store.read(Query("tensors", _of(run_id), _TENSOR, ["time", "seq"]))
    for (_, rank, _, step), some in groupby(rows, steps.place):
        rules = by_rank.setdefault(rank, RunRules(settings, attempt, rank))
        keys, numbers = steps.from_rows([*some])
        found += rules.tensors(keys, step, numbers)
    for rules in by_rank.values():
        found += rules.flush()
    return found


def _of(run_id: str) -> list[Condition]:
    return [Condition("run_id", "=", run_id)]


def _blocks(store: Store, run_id: str) -> Iterator[MetricBlock]:
    """The points of the run's rank 0, some of one metric at a time."""
    where = [*_of(run_id), Condition("rank", "=", 0)]
    waiting: dict[Series, list[Mapping[str, Any]]] = {}
    for row in store.read(Query("metrics", where, _POINT, ["time", "seq"])):
        series = Series(run_id, (row["name"],), row["context"])
        rows = waiting.setdefault(series, [])
        rows.append(row)
        if len(rows) == _PIECE:
            yield MetricBlock.pack(series, map(_point, waiting.pop(series)))
    for series, rows in waiting.items():
        yield MetricBlock.pack(series, map(_point, rows))


def _point(row: Row | Mapping[str, Any]) -> tuple[int, int, int | None, None, tuple[float]]:
    value = join_special(row["value"], row["special"])
    number = float("nan") if value is None else value
    return row["seq"], row["time"], row["step"], None, (number,)
