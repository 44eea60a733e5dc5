"""Laws of keyed tables: the latest change wins, in whatever order changes arrive."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from tachograph.backends.base import Backend, Query
from tachograph.merge import merge_changes
from tachograph.records import TABLES, Row
from tachograph.testing.builders import START, dump, make_batch, make_block
from tachograph.testing.fixtures import StoreFixtures, read, read_one, where

RUN_TABLES = [name for name, spec in TABLES.items() if "run_id" in spec.columns]


def change(backend: Backend, writer: str, table: str, at: int, **columns: Any) -> None:
    """One more change of a writer, made `at` microseconds after START."""
    seq = backend.write(make_batch(writer, 0, 0))
    row = {"changed_at": START + at} | columns
    backend.write(make_batch(writer, seq, **{table: [row]}))  # type: ignore[arg-type]


def fill(backend: Backend, run_id: str, writer: str, first: int = 0) -> int:
    """Give a run something in every table; return the number expected next."""
    columns: dict[str, Row] = {
        "runs": {"name": run_id},
        "attempts": {"attempt": 1},
        "params": {"path": "lr", "value": "0.1"},
        "tags": {"key": "team", "value": "x"},
        "provenance": {"section": "git", "document": "{}"},
        "artifacts": {"path": "model.pt"},
        "tensors": {"name": "w"},
        "events": {"message": "hello"},
    }
    rows = {table: [{"run_id": run_id} | row] for table, row in columns.items()}
    block = make_block(run_id, {"loss": [1.0, 2.0]}, seqs=[first, first + 1])
    return backend.write(make_batch(writer, first, blocks=[block], **rows))  # type: ignore[arg-type]


def tables_with(backend: Backend, run_id: str, raw: bool = False) -> set[str]:
    """The tables that show rows of a run."""
    tables = [*RUN_TABLES, "all_metrics"]
    query = where("run_id", "=", run_id)
    return {table for table in tables if len(backend.read(Query(table, query, raw=raw)))}


class KeyedLaws(StoreFixtures):
    """Order is (changed_at, writer, seq), never arrival."""

    def test_latest_change_wins_in_any_order_of_arrival(self, backend: Backend) -> None:
        """Later beats earlier; of one time the greater writer wins."""
        changes = [(10, "z"), (20, "a"), (20, "c"), (20, "b")]
        for number, order in enumerate(permutations(changes)):
            for at, writer in order:
                columns = {"run_id": "r", "key": str(number), "value": f"{at}{writer}"}
                change(backend, f"{writer}{number}", "tags", at, **columns)
        rows = backend.read(Query("tags")).to_pylist()
        assert len(rows) == 24
        assert {(row["value"], row["changed_at"]) for row in rows} == {("20c", START + 20)}
        assert all(row["writer"] == "c" + row["key"] for row in rows)

    def test_number_decides_between_changes_of_one_time(self, backend: Backend) -> None:
        """Of changes of one writer at one time the last one wins, in a batch and across two."""
        for values in (["1", "2"], ["3"]):
            first = backend.write(make_batch("w", 0, 0))
            rows = [{"run_id": "r", "key": "k", "value": v, "changed_at": START} for v in values]
            backend.write(make_batch("w", first, tags=rows))
            assert read(backend, "tags", "value seq") == [(values[-1], first + len(values) - 1)]

    def test_time_decides_before_number(self, backend: Backend) -> None:
        """A writer whose clock was set back does not undo what was changed later."""
        for at in (9, 5):
            change(backend, "w", "params", at, run_id="r", path="lr", value=str(at))
        assert read(backend, "params", "value") == [("9",)]

    def test_later_row_replaces_the_whole_row(self, backend: Backend) -> None:
        """Outside `runs` a NULL is a value: nothing of the older row shows through."""
        change(backend, "w", "params", 1, run_id="r", path="lr", value="1", source="user")
        change(backend, "w", "params", 2, run_id="r", path="lr", value="2")
        assert read(backend, "params", "path value source") == [("lr", "2", None)]

    def test_keys_are_all_columns_of_the_key(self, backend: Backend) -> None:
        """Rows that differ in one column of the key are different rows."""
        for run_id in ("r1", "r2"):
            for attempt in (1, 2):
                name = f"{run_id}.{attempt}"
                change(backend, "w", "attempts", 1, run_id=run_id, attempt=attempt, host=name)
                change(backend, "w", "tags", 1, run_id=run_id, key=str(attempt), value=name)
        expected = ["r1.1", "r1.2", "r2.1", "r2.2"]
        assert [host for (host,) in read(backend, "attempts", "host", order=("host",))] == expected
        assert [value for (value,) in read(backend, "tags", "value", order=("value",))] == expected

    def test_null_in_runs_means_not_changed(self, backend: Backend) -> None:
        """Each column of a run has the latest value that somebody gave it, in any order."""
        changes: list[Row] = [
            {"name": "old", "status": "running", "project": "p"},
            {"name": "new", "hypothesis": "h"},
            {"status": "finished", "ended_at": START},
        ]
        for number, order in enumerate(permutations(range(3))):
            run_id = f"r{number}"
            for i in order:
                change(backend, f"{run_id}-w{i}", "runs", i, run_id=run_id, **changes[i])
            row = read_one(backend, "runs", where=where("run_id", "=", run_id))
            assert {name: value for name, value in row.items() if value is not None} == {
                "run_id": run_id,
                "name": "new",
                "status": "finished",
                "project": "p",
                "hypothesis": "h",
                "ended_at": START,
                "changed_at": START + 2,
                "writer": f"{run_id}-w2",
                "seq": 0,
                "deleted": 0,
            }

    def test_tombstone_hides_a_row(self, backend: Backend) -> None:
        """A deleted tag is gone, its neighbour stays, a later change brings it back."""
        for key in ("a", "b"):
            change(backend, "w", "tags", 1, run_id="r", key=key, value="1")
        change(backend, "editor", "tags", 3, run_id="r", key="a", deleted=1)
        assert read(backend, "tags", "key value") == [("b", "1")]
        change(backend, "w", "tags", 2, run_id="r", key="a", value="late")
        assert read(backend, "tags", "key value") == [("b", "1")]
        change(backend, "w", "tags", 4, run_id="r", key="a", value="2")
        assert sorted(read(backend, "tags", "key value")) == [("a", "2"), ("b", "1")]

    def test_tombstone_hides_a_run_and_all_that_is_its(self, backend: Backend) -> None:
        """A deleted run shows nowhere but in raw reads; another run does not change."""
        fill(backend, "gone", "w1")
        fill(backend, "kept", "w2")
        everything = {*RUN_TABLES, "all_metrics"}
        assert tables_with(backend, "gone") == tables_with(backend, "kept") == everything
        change(backend, "editor", "runs", 10_000, run_id="gone", deleted=1)
        assert tables_with(backend, "gone") == set()
        assert tables_with(backend, "gone", raw=True) == everything
        assert tables_with(backend, "kept") == everything

    def test_later_change_restores_a_run(self, backend: Backend) -> None:
        """A later change that says deleted=0 brings back a run with all it had."""
        fill(backend, "r", "w")
        before = dump(backend)
        change(backend, "editor", "runs", 10_000, run_id="r", deleted=1)
        change(backend, "editor", "runs", 20_000, run_id="r", deleted=0)
        after = dump(backend)
        assert [row["name"] for row in after.pop("runs")] == ["r"]
        del before["runs"]
        assert after == before

    def test_late_rows_do_not_restore_a_run(self, backend: Backend) -> None:
        """What arrives after the tombstone, but says nothing newer of the run, stays hidden."""
        change(backend, "editor", "runs", 10_000, run_id="r", deleted=1)
        next_ = fill(backend, "r", "w")
        fill(backend, "r", "w", first=next_)
        assert tables_with(backend, "r") == set()

    def test_null_in_deleted_leaves_a_run_deleted(self, backend: Backend) -> None:
        """A run that ends after it was deleted does not come back: NULL is 'not changed'."""
        fill(backend, "r", "w")
        change(backend, "editor", "runs", 10_000, run_id="r", deleted=1)
        change(backend, "w", "runs", 20_000, run_id="r", status="finished", deleted=None)
        assert tables_with(backend, "r") == set()

    def test_later_attempt_replaces_points_from_its_first_step(self, backend: Backend) -> None:
        """`metrics` has the attempts joined at their first steps, `all_metrics` every point."""
        tens = [10, 20, 30, 40]
        blocks = [
            make_block("r", {"loss": [1.0] * 5}, seqs=range(5), steps=[*tens, None]),
            make_block("r", {"loss": [2.0] * 4}, seqs=range(5, 9), steps=tens, attempt=2),
            make_block("r", {"loss": [3.0]}, seqs=[9], steps=[20], attempt=3),
            make_block("other", {"loss": [4.0]}, seqs=[10], steps=[40]),
        ]
        backend.write(make_batch("w", 0, blocks=blocks))
        assert len(backend.read(Query("metrics"))) == 11
        for attempt, first_step in ((1, 0), (2, 30), (3, None)):
            row = {"run_id": "r", "attempt": attempt, "first_step": first_step}
            change(backend, "w", "attempts", attempt, **row)
        found = read(backend, "metrics", "step value", where=where("run_id", "=", "r"))
        assert sorted(found, key=repr) == [
            (10, 1.0),
            (10, 2.0),
            (20, 1.0),
            (20, 2.0),
            (20, 3.0),
            (30, 2.0),
            (40, 2.0),
            (None, 1.0),
        ]
        change(backend, "w", "attempts", 9, run_id="r", attempt=3, first_step=20)
        found = read(backend, "metrics", "step value", order=("step", "value"))
        assert found == [(10, 1.0), (10, 2.0), (20, 3.0), (40, 4.0), (None, 1.0)]
        for table, raw in (("all_metrics", False), ("metrics", True), ("all_metrics", True)):
            assert len(backend.read(Query(table, raw=raw))) == 11

    def test_raw_rows_merge_to_the_view(self, backend: Backend) -> None:
        """Whether a store keeps all changes or the latest, its raw rows say the same."""
        for writer, at in (("b", 5), ("a", 7), ("c", 6)):
            for deleted, key in ((0, "x"), (int(at == 7), "y")):
                columns = {"run_id": "r", "key": key, "deleted": deleted}
                change(backend, writer, "tags", at, value=writer, **columns)
            status = "failed" if at == 5 else None
            change(backend, writer, "runs", at, run_id="r", name=writer, status=status)
        for table in ("runs", "tags"):
            raw = merge_changes(TABLES[table], backend.read(Query(table, raw=True)))
            kept = [row for row in raw if not row["deleted"]]
            assert kept == backend.read(Query(table)).to_pylist()
            assert len(raw) == (1 if table == "runs" else 2)
