"""Reading over HTTP says the same as the store read where it is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from recorded import (
    KINDS,
    SECRET,
    ReadServer,
    any_order,
    batches,
    filled,
    reference,
    sayable,
    table_of,
)

from tachograph.backends.base import Condition, Query
from tachograph.query import Store
from tachograph.records import TABLES, split_special
from tachograph.table import Table
from tachograph.wire.tables import conditions_to_json, query_to_json


@pytest.fixture(scope="module", params=KINDS)
def full(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[ReadServer]:
    """A server that has received everything, part of which is in its store already."""
    with filled(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def local() -> Store:
    """The same in a store that is read where it is."""
    return reference(str(uuid.uuid4()), batches())


LISTINGS: list[dict[str, Any]] = [
    {},
    {"children": True},
    {"where": "metrics.loss < 1"},
    {"where": "params['apple.lr'] == 0.1 and packages.torch >= '2.8'", "columns": ["name"]},
    {"where": "project == 'apple' or tags['zebra-stage'] == 'zebra'", "sort": ["name"]},
    {"sort": ["project", "-started_at"], "columns": ["run_id", "metrics.zebra_loss.min"]},
    {"where": "metrics['loss', phase='test'].max > 0", "columns": ["run_id", "params.opt"]},
    {"where": "status == 'failed'", "lost": False},
    {"where": "name like 'name%1'", "children": True, "sort": ["-metrics.loss"]},
]


@pytest.mark.parametrize("asked", LISTINGS, ids=str)
def test_runs_are_listed_as_the_store_lists_them(
    full: ReadServer, local: Store, asked: dict[str, Any]
) -> None:
    """Filter, sort, columns and children mean on the server what they mean on a file."""
    answered = table_of(full.get("/runs", params=asked))
    expected = local.runs(**asked)
    assert answered.columns == expected.columns
    assert sayable(answered) == sayable(expected)


def test_pages_of_runs_are_the_list(full: ReadServer, local: Store) -> None:
    """Pages put together are the whole list, each says how long it is, and none is behind it."""
    pages = []
    for offset in range(0, 12, 2):
        answer = full.get("/runs", params={"children": True, "limit": 2, "offset": offset})
        assert answer.json()["total"] == 7
        pages += list(table_of(answer))
    assert pages == list(local.runs(children=True))
    assert len(table_of(full.get("/runs", params={"limit": 0}))) == 0


@pytest.mark.parametrize("run", ["a1", "a2", "a3", "zebra1", "a1-trial"])
def test_a_run_and_its_documents_are_what_the_store_has(
    full: ReadServer, local: Store, run: str
) -> None:
    """All that belongs to a run; JSON in it stays the text that it is in the tables."""
    shown = full.get(f"/runs/{run}").json()
    assert shown["run"] == local.row(run)
    assert list(Table(shown["children"]["columns"])) == list(local.children(run))
    metrics = Table(shown["metrics"]["columns"])
    columns = local.metrics_of(run).columns
    assert sayable(metrics.select(columns)) == sayable(local.metrics_of(run))
    for name in ("params", "tags", "attempts", "artifacts", "events", "provenance"):
        answered = table_of(full.get(f"/runs/{run}/{name}"))
        expected = getattr(local, name)(run)
        texts = {"params": "value", "provenance": "document"}
        decoded = [
            row | {texts[name]: json.loads(row[texts[name]])} if name in texts else row
            for row in answered
        ]
        assert answered.columns == expected.columns
        assert decoded == list(expected)
        if name in shown:
            assert list(Table(shown[name]["columns"])) == list(answered)


SERIES: list[tuple[str, dict[str, Any]]] = [
    ("a1", {"name": "loss"}),
    ("a1", {"name": "acc"}),
    ("a1", {"name": "loss", "context": {"phase": "val"}}),
    ("a2", {"name": "loss", "rank": "all"}),
    ("a2", {"name": "loss", "rank": 1}),
    ("a3", {"name": "loss"}),
    ("a1", {"name": "loss", "attempts": "all"}),
    ("a3", {"name": "loss", "points": 11}),
    ("name of a3", {"name": "loss", "points": 1000}),
    ("zebra1", {"name": "zebra_loss"}),
]


@pytest.mark.parametrize(("run", "asked"), SERIES, ids=str)
def test_series_are_exact_or_reduced_as_the_store_does_it(
    full: ReadServer, local: Store, run: str, asked: dict[str, Any]
) -> None:
    """Values come exactly, with NaN, infinities and the sign of zero in `special`."""
    params = asked | ({"context": json.dumps(asked["context"])} if "context" in asked else {})
    answered = table_of(full.get(f"/runs/{run}/series", params=params))
    expected = local.series(run, **asked)
    pairs = [*zip(answered["value"], answered["special"], strict=True)]
    assert pairs == [split_special(value) for value in expected["value"]]
    others = [name for name in expected.columns if name != "value"]
    assert answered.select(others) == expected.select(others)


OURS = Condition("writer", "like", "%-writer")
"""The server is a writer itself, of which the reference knows nothing."""

QUERIES = [
    *(Query(table) for table in (*TABLES, "all_metrics") if table != "writers"),
    Query(
        "writers", [OURS], [name for name in TABLES["writers"].columns if name != "heartbeat_at"]
    ),
    Query("cursors", [OURS], ["next", "writer"]),
    Query("metrics", [], ["name", "value"], ["-value", "name"], 5),
    Query("all_metrics", raw=True),
    Query("params", raw=True, order=["run_id", "path"]),
    Query("events", raw=True, columns=["writer", "seq", "run_id"], order=["writer", "seq"]),
]


def without_bookkeeping(query: Query, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a store may choose (see `testing.builders.dump`)."""
    left = {"changed_at", "writer", "seq", "deleted", "mean"} if query.table == "summaries" else ()
    return [{name: value for name, value in row.items() if name not in left} for row in rows]


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_tables_are_read_as_from_the_store(full: ReadServer, local: Store, query: Query) -> None:
    """Each table, by POST and by GET, also raw."""
    posted = table_of(full.post("/read", query_to_json(query)))
    asked = {"query": json.dumps(query_to_json(query))}
    assert table_of(full.get("/read", params=asked)) == posted
    expected = local.read(query)
    assert posted.columns == expected.columns
    rows, wanted = (without_bookkeeping(query, list(one)) for one in (posted, expected))
    assert rows == wanted if query.order else any_order(rows) == any_order(wanted)


@pytest.mark.parametrize("table", [*TABLES, "all_metrics"])
def test_digests_are_equal_where_the_rows_are(full: ReadServer, local: Store, table: str) -> None:
    """A digest worked out by the server is that of the same rows anywhere."""
    without = ["heartbeat_at"] if table == "writers" else []
    where = [OURS] if table == "writers" else [Condition("run_id", "like", "a%")]
    asked = {"table": table, "where": conditions_to_json(where), "without": without}
    assert full.post("/digest", asked).json() == {"digest": local.digest(table, where, without)}


def test_sql_sees_the_tables(full: ReadServer) -> None:
    """A SELECT with parameters, over what was received up to now."""
    text = "select project, count(*) as runs from runs where status = ? group by project order by 1"
    answer = full.post("/sql", {"text": text, "parameters": ["finished"]})
    rows = {row["project"]: row["runs"] for row in table_of(answer)}
    assert rows == {"apple": 4, SECRET: 1, None: 1}
    twice = table_of(full.post("/sql", {"text": "select 1 as a, 2 as a"}))
    assert [*twice] == [{"a": 1, "a_2": 2}]
