"""Laws of `read`: filter, project, order and limit, the same on every store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tachograph.backends.base import SPAN, Backend, Condition, Query, table_columns
from tachograph.errors import QueryError
from tachograph.records import TABLES
from tachograph.testing.builders import dump, make_batch, make_block
from tachograph.testing.fixtures import StoreFixtures, read, where

RUNS: list[tuple[str, str | None, int | None]] = [
    ("a", "Churn", 3),
    ("b", "churn", None),
    ("c", None, 1),
    ("d", "churn_2", 2),
    ("e", "100% churn\nand more", 3),
]
CONDITIONS: list[tuple[str, Any, Any, str]] = [
    ("project", "=", "churn", "b"),
    ("project", "=", None, "c"),
    ("project", "!=", "churn", "ade"),
    ("project", "!=", None, "abde"),
    ("attempt", "=", 3, "ae"),
    ("attempt", "!=", 3, "cd"),
    ("attempt", "<", 2, "c"),
    ("attempt", "<=", 2, "cd"),
    ("attempt", ">", 2, "ae"),
    ("attempt", ">=", 2, "ade"),
    ("attempt", ">", 2.5, "ae"),
    ("attempt", "<", None, ""),
    ("attempt", ">=", None, ""),
    ("run_id", ">", "b", "cde"),
    ("run_id", "in", ["a", "c", "nobody"], "ac"),
    ("run_id", "in", ("d",), "d"),
    ("run_id", "in", [], ""),
    ("attempt", "in", [1, 2], "cd"),
    ("project", "like", "churn", "b"),
    ("project", "like", "churn%", "bd"),
    ("project", "like", "%churn%", "bde"),
    ("project", "like", "churn__", "d"),
    ("project", "like", "_hurn", "ab"),
    ("project", "like", "%more", "e"),
    ("project", "like", "chu.n", ""),
]
ORDERS = [
    (("run_id",), "abcde"),
    (("-run_id",), "edcba"),
    (("attempt", "run_id"), "cdaeb"),
    (("-attempt", "run_id"), "aedcb"),
    (("-attempt", "-run_id"), "eadcb"),
    (("project", "run_id"), "eabdc"),
    (("-project",), "dbaec"),
]
UNKNOWN = [
    Query("nothing"),
    Query("runs; drop table runs"),
    Query("sqlite_master"),
    Query("runs", columns=("run_id", "nothing")),
    Query("runs", columns=("run_id from runs --",)),
    Query("runs", order=("nothing",)),
    Query("runs", order=("run_id desc",)),
    Query("runs", order=("--run_id",)),
    Query("runs", where("nothing", "=", 1)),
    Query("runs", where("1=1 or run_id", "=", 1)),
    Query("runs", where("run_id", "==", 1)),  # type: ignore[arg-type]
    Query("runs", where("run_id", "= 1 or", 1)),  # type: ignore[arg-type]
    Query("cursors", columns=("run_id",)),
    Query("runs", span="attempt"),
    Query("runs", columns=("project",), span="nothing"),
    Query("runs", columns=("project",), span="min(attempt)"),
    Query("runs", columns=("project",), span="attempt", order=("attempt",)),
    Query("summaries", columns=("name", "count"), span="last_step"),
]
HOSTILE = [
    "x' OR '1'='1",
    "x'; DROP TABLE runs; --",
    'x" OR 1=1 --',
    "x`; delete from metrics",
    "\\' OR 1=1",
    "{}[]%s?:1$1@x",
    "x\x01\x7f",
]


class QueryLaws(StoreFixtures):
    """A query has one answer, whichever store it is asked."""

    @pytest.fixture
    def filled(self, backend: Backend) -> Backend:
        """The store with five runs."""
        rows = [{"run_id": r, "project": p, "attempt": a} for r, p, a in RUNS]
        backend.write(make_batch("w", 0, runs=rows))
        return backend

    def test_each_operator(self, filled: Backend) -> None:
        """What each operator finds; NULL satisfies only what asks for it."""
        for column, operator, value, expected in CONDITIONS:
            found = read(filled, "runs", "run_id", where=where(column, operator, value))
            letters = "".join(sorted(run_id for (run_id,) in found))
            assert letters == expected, (column, operator, value)

    def test_all_conditions_hold(self, filled: Backend) -> None:
        """Several conditions are joined by 'and'."""
        both = (Condition("attempt", "=", 3), Condition("project", "like", "C%"))
        assert read(filled, "runs", "run_id", where=both) == [("a",)]

    def test_order(self, filled: Backend) -> None:
        """Up and down, by several columns, text by code point, NULLs last either way."""
        for order, expected in ORDERS:
            found = read(filled, "runs", "run_id", order=order)
            assert "".join(run_id for (run_id,) in found) == expected, order

    def test_limit_cuts_after_sorting(self, filled: Backend) -> None:
        """A limit takes the first rows of the order; zero takes none."""
        assert read(filled, "runs", "run_id", order=("-run_id",), limit=2) == [("e",), ("d",)]
        assert read(filled, "runs", "run_id", limit=0) == []
        assert len(read(filled, "runs", "run_id", limit=99)) == 5

    def test_without_an_order_records_of_a_writer_stay_in_theirs(self, backend: Backend) -> None:
        """Points, statistics and events that no step tells apart come as they were recorded."""
        tensor = {"run_id": "r", "name": "w", "kind": "weight", "step": 1, "context": "{}"}
        # Numbers of different length: as texts they would sort as 0, 10, 2.
        for first, following in ((0, 2), (2, 10), (10, 11)):
            point = make_block("r", {"loss": [1.0]}, seqs=[first], steps=[None])
            event = {"run_id": "r", "kind": "note"}
            backend.write(
                make_batch("w", first, following, blocks=[point], tensors=[tensor], events=[event])
            )
        for table in ("metrics", "tensors", "events"):
            found = read(backend, table, "seq", where=where("run_id", "=", "r"))
            assert found == [(0,), (2,), (10,)], table

    def test_columns_come_in_the_order_asked_for(self, filled: Backend) -> None:
        """Only the columns named, as named; sorting and filtering may use others."""
        table = filled.read(
            Query("runs", where("attempt", "=", 3), ("project", "run_id"), ("-started_at",))
        )
        assert table.columns == ("project", "run_id")
        assert sorted(table["run_id"]) == ["a", "e"]

    def test_span_of_each_combination(self, backend: Backend) -> None:
        """Least and greatest value and number of rows per combination; NULL only counts."""
        steps = [5, None, 3, 4]
        one = make_block("r", {"loss": [1.0] * 4, "acc": [2.0] * 4}, steps=steps)
        two = make_block("r", {"loss": [1.0]}, seqs=[4], steps=[None], context='{"a":1}')
        # Two batches, with other texts: a store may keep each in a file of its own.
        backend.write(make_batch("w", 0, 4, blocks=[one], runs=[{"run_id": "r"}]))
        backend.write(make_batch("w", 4, 5, blocks=[two]))
        query = Query("metrics", columns=("name", "context"), order=("name", "-context"))
        found = backend.read(replace(query, span="step"))
        assert found.columns == ("name", "context", *SPAN)
        assert [tuple(row.values()) for row in found] == [
            ("acc", "{}", 3, 5, 4),
            ("loss", "{}", 3, 5, 4),
            ("loss", '{"a":1}', None, None, 1),
        ]
        few = replace(query, where=where("step", "<", 5), columns=("name",), order=("-name",))
        rows = [tuple(row.values()) for row in backend.read(replace(few, span="step", limit=1))]
        assert rows == [("loss", 3, 4, 2)]
        (text,) = backend.read(Query("metrics", columns=("run_id",), span="name"))
        assert text == {"run_id": "r", "first": "acc", "last": "loss", "count": 9}
        one_name = Query("summaries", where("name", "=", "acc"), ("name",), span="seq")
        assert repr(backend.read(one_name)["last"][0]) == "3", "a number as the column has them"
        none = Query("metrics", where("name", "=", "no"), ("name",), span="step")
        assert backend.read(none).to_pydict() == {"name": [], "first": [], "last": [], "count": []}

    def test_every_table_has_its_columns(self, backend: Backend) -> None:
        """Without a choice all columns come, in their order, of a table without rows too."""
        for table in (*TABLES, "all_metrics", "cursors"):
            for raw in (False, True):
                assert backend.read(Query(table, raw=raw)).columns == table_columns(table)

    def test_unknown_names_are_errors(self, filled: Backend) -> None:
        """A table, column or operator that is not known raises, and harms nothing."""
        for query in UNKNOWN:
            with pytest.raises(QueryError):
                filled.read(query)
        assert len(filled.read(Query("runs"))) == 5

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text_is_only_text(self, backend: Backend, text: str) -> None:
        """A value or name that looks like SQL is stored, found, and does nothing else."""
        block = make_block("r", {text: [1.0], "loss": [2.0]}, context=f'{{"a":"{len(text)}"}}')
        tags = [{"run_id": "r", "key": text, "value": text}, {"run_id": "r", "key": "other"}]
        backend.write(make_batch(text, 0, blocks=[block], tags=tags, runs=[{"run_id": "r"}]))
        before = dump(backend)
        assert read(backend, "metrics", "value", where=where("name", "=", text)) == [(1.0,)]
        assert read(backend, "tags", "value", where=where("key", "in", [text])) == [(text,)]
        assert read(backend, "cursors", "next", where=where("writer", "=", text)) == [(2,)]
        assert read(backend, "tags", "key", where=where("key", "like", text + "%x")) == []
        assert dump(backend) == before

    def test_cursors_of_all_writers(self, backend: Backend) -> None:
        """The table `cursors` says what is expected from each writer that wrote."""
        for writer, count in (("a", 1), ("b", 3)):
            backend.write(make_batch(writer, 0, count))
        found = backend.read(Query("cursors", order=("-next",)))
        assert found.to_pylist() == [{"writer": "b", "next": 3}, {"writer": "a", "next": 1}]
