"""What runs have in common and where they differ: parameters, results, code, data, environment.

Knows no store and no way to show things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.comparing.causes import facts_of, facts_of_params, place, sorted_out
from tachograph.comparing.notebooks import told_alike
from tachograph.query import Store
from tachograph.reading.run_record import RunRecord
from tachograph.table import Table
from tachograph.values import canonical_json

STATISTICS = ("last", "min", "max")

_HEADS = {"path", "key", "name", "context", "statistic", "area", "differs", "change"}

Key = tuple[str, ...]
Columns = Sequence[Mapping[Key, Any]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side: in each table but `runs`, every run is a column named by its label.

    Attributes
    ----------
    labels : tuple of str
        A short unique name for each run, in the order asked for.
    runs : Table
        label, run_id, name, project, status, started_at, ended_at (µs), seconds.
    params : Table
        path, differs, then each run's value; None where it has none.
    metrics : Table
        name, context, statistic (last, min, max), then each run's value.
    tags : Table
        key, differs, then each run's value.
    facts : Table
        area, path, then each run's value: everything in code, data, configuration, environment,
        seed and hardware in which the runs differ, in this order. Parameters are not repeated.
    """

    labels: tuple[str, ...]
    runs: Table
    params: Table
    metrics: Table
    tags: Table
    facts: Table


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same in two runs.

    Attributes
    ----------
    labels : tuple of str
        A short unique name for each of the two.
    runs : Table
        As in `Comparison`.
    changes : Table
        area, path, then each run's value, in the order of `causes.AREAS`; parameters included.
    metrics : Table
        name, context, statistic, each run's value, and `change`: the second less the first.
    """

    labels: tuple[str, ...]
    runs: Table
    changes: Table
    metrics: Table


def compare(store: Store, runs: Sequence[str]) -> Comparison:
    """Put runs side by side.

    Parameters
    ----------
    store : Store
        Where they are.
    runs : sequence of str
        Ids, their beginnings or ends, or names.

    Raises
    ------
    RunNotFound
        One of them is not there.
    """
    records = [store.run(run) for run in runs]
    labels = _labels(records)
    return Comparison(
        labels,
        _overview(labels, records),
        _side_by_side(("path",), labels, [_keyed(r.params) for r in records], mark=True),
        _side_by_side(("name", "context", "statistic"), labels, [_metrics(r) for r in records]),
        _side_by_side(("key",), labels, [_keyed(r.tags) for r in records], mark=True),
        _changes(labels, sorted_out([facts_of(record.provenance) for record in records])),
    )


def diff(store: Store, first: str, second: str) -> Difference:
    """What is not the same in two runs, ordered by where to look first.

    Raises
    ------
    RunNotFound
        One of them is not there.
    """
    records = [store.run(first), store.run(second)]
    labels = _labels(records)
    columns = [_metrics(record) for record in records]
    metrics = _side_by_side(("name", "context", "statistic"), labels, columns)
    change = [_less(*pair) for pair in zip(*(metrics[label] for label in labels), strict=True)]
    return Difference(
        labels,
        _overview(labels, records),
        changes(records, labels),
        Table({**metrics.to_pydict(), "change": change}),
    )


def changes(
    records: Sequence[RunRecord],
    labels: Sequence[str],
    translate: Callable[[Any], Any] = lambda value: value,
) -> Table:
    """What differs in where two runs come from, ordered by what most likely explains a difference.

    Parameters
    ----------
    records : sequence of RunRecord
    labels : sequence of str
        Names of the columns.
    translate : callable, optional
        Makes of a value of the second run what it would be in the first: for a run that was made
        again in another folder.

    Returns
    -------
    Table
        As `Difference.changes`.
    """
    first, second = records
    documents = told_alike(first.provenance, translate(second.provenance))
    params = [first.params, translate(second.params)]
    facts = [
        facts_of(found) | facts_of_params(own) for found, own in zip(documents, params, strict=True)
    ]
    return _changes(labels, sorted_out(facts))


# ---------------------------------------------------------------------------- tables


def _labels(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """The names where they tell the runs apart, else the ends of the ids, else the ids."""
    ids = list(dict.fromkeys(record.run_id for record in records))
    names = {record.run_id: record.name or "" for record in records}
    for labels in ([names[run_id] for run_id in ids], [run_id[-8:] for run_id in ids]):
        if all(labels) and len(set(labels)) == len(ids) and not _HEADS & set(labels):
            break
    else:
        labels = ids
    short = dict(zip(ids, labels, strict=True))
    if len(ids) < len(records):  # a run that is asked for twice has two columns
        return tuple(f"{short[r.run_id]} ({n})" for n, r in enumerate(records, 1))
    return tuple(labels)


def _overview(labels: Sequence[str], records: Sequence[RunRecord]) -> Table:
    columns = ("run_id", "name", "project", "status", "started_at", "ended_at")
    rows = [{"label": label} | record.row for label, record in zip(labels, records, strict=True)]
    spans = [_less(row["started_at"], row["ended_at"]) for row in rows]
    table = Table.from_rows(rows, ("label", *columns)).to_pydict()
    return Table({**table, "seconds": [None if span is None else span / 1e6 for span in spans]})


def _side_by_side(
    head: Sequence[str], labels: Sequence[str], columns: Columns, *, mark: bool = False
) -> Table:
    """One row per key in any of the columns, in order of their first appearance."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    table: dict[str, list[Any]] = {
        name: [key[position] for key in keys] for position, name in enumerate(head)
    }
    if mark:
        table["differs"] = [_differs(key, columns) for key in keys]
    for label, column in zip(labels, columns, strict=True):
        table[label] = [column.get(key) for key in keys]
    return Table(table)


def _changes(labels: Sequence[str], columns: Columns) -> Table:
    keys = {key for column in columns for key in column if _differs(key, columns)}
    everywhere = {key for key in keys if all(key in column for column in columns)}
    chosen = sorted(keys, key=lambda key: place(key, is_lacking=key not in everywhere))
    kept = [{key: column[key] for key in chosen if key in column} for column in columns]
    blank = dict.fromkeys(chosen)
    return _side_by_side(("area", "path"), labels, [blank | column for column in kept])


def _differs(key: Key, columns: Columns) -> bool:
    return len({canonical_json(column[key]) if key in column else "" for column in columns}) > 1


def _less(first: Any, second: Any) -> Any:
    return None if first is None or second is None else second - first


# ---------------------------------------------------------------------------- facts


def _keyed(values: Mapping[str, Any]) -> dict[Key, Any]:
    return {(name,): value for name, value in values.items()}


def _metrics(record: RunRecord) -> dict[Key, Any]:
    """Statistics of the latest attempt at each series, on the lowest rank that has it."""
    found: dict[Key, Any] = {}
    rows = sorted(record.metrics, key=lambda row: (row["attempt"], -row["rank"]))
    for row in rows:
        for statistic in STATISTICS:
            found[row["name"], row["context"], statistic] = row[statistic]
    return dict(sorted(found.items(), key=lambda item: item[0][:2]))
