"""Laws of what a store may do beyond writing and reading; a store without an ability skips."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tachograph.backends.base import (
    Backend,
    Query,
    SupportsArtifacts,
    SupportsCompact,
    SupportsGC,
    SupportsSQL,
)
from tachograph.errors import QueryError, StoreError, StoreNotFound
from tachograph.records import TABLES, Row, now_us
from tachograph.testing.builders import dump, make_batch, make_block
from tachograph.testing.fixtures import StoreFixtures, read, where
from tachograph.testing.keyed_laws import RUN_TABLES, change, fill, tables_with

WRITING_SQL = [
    "delete from runs",
    "update tags set value = 'x'",
    "insert into runs (run_id) values ('x')",
    "drop view runs",
    "drop table runs",
    "create table x (a int)",
    "select 1; create table x (a int)",
    "attach '{path}/x.db' as other",
    "vacuum into '{path}/x.db'",
    "copy (select 1) to '{path}/x.csv'",
    "begin",
    "",
]
BROKEN_SQL = ["select nothing from runs", "select * from nothing", "selekt 1", "select ?"]


def skip_without(backend: Backend, ability: type) -> Any:
    """The backend, if it has an ability."""
    if not isinstance(backend, ability):
        pytest.skip(f"{type(backend).__name__} is not {ability.__name__}")
    return backend


def digest(content: bytes) -> str:
    """The SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class SQLLaws(StoreFixtures):
    """One documented subset of SQL has one answer on every store."""

    @pytest.fixture
    def store(self, backend: Backend) -> SupportsSQL:
        """A store with two runs, params and points."""
        store: SupportsSQL = skip_without(backend, SupportsSQL)
        blocks = [
            make_block("r1", {"loss": [4.0, 2.0], "acc": [0.5, 0.25]}, context='{"phase":"fit"}'),
            make_block("r2", {"loss": [float("nan")]}, seqs=[2], context='{"phase":"test"}'),
        ]
        params: list[dict[str, Any]] = [
            {"run_id": "r1", "path": "lr", "value": "0.125"},
            {"run_id": "r1", "path": "opt.name", "value": '"adam"'},
            {"run_id": "r2", "path": "layers", "value": '{"sizes":[3,4]}'},
        ]
        backend.write(make_batch("w", 0, blocks=blocks, params=params, runs=[{"run_id": "r1"}]))
        return store

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "select name, count(*), max(step) from metrics group by name order by name",
                [("acc", 2, 1), ("loss", 3, 2)],
            ),
            (
                "select run_id, avg(value) as mean, count(value) as n from metrics"
                " where name = 'loss' group by run_id order by mean desc nulls last",
                [("r1", 3.0, 2), ("r2", None, 0)],
            ),
            (
                "select path, cast(value ->> '$' as double) as number from params"
                " where path = 'lr'",
                [("lr", 0.125)],
            ),
            (
                "select value ->> '$' from params where path = 'opt.name'",
                [("adam",)],
            ),
            (
                "select run_id from params where (value ->> '$.sizes[1]') = '4'"
                " or cast(value ->> '$.sizes[1]' as integer) = 4",
                [("r2",)],
            ),
            (
                "select distinct run_id from metrics where (context ->> 'phase') = 'fit'",
                [("r1",)],
            ),
            (
                "with best as (select run_id, min(value) as low from metrics"
                " where name = 'loss' group by run_id)"
                " select m.step, m.value from metrics m join best on m.run_id = best.run_id"
                " and m.value = best.low where m.name = 'loss'",
                [(1, 2.0)],
            ),
            (
                "select step, value, lag(value) over (partition by name order by seq) as before"
                " from all_metrics where name = 'acc' order by step",
                [(0, 0.5, None), (1, 0.25, 0.5)],
            ),
            ("select cast(count(*) as double) / 2 from metrics", [(2.5,)]),
            (
                "select last, min, max, count from summaries where name = 'acc'",
                [(0.25,) * 2 + (0.5, 2)],
            ),
            ("select run_id, special from metrics where value is null", [("r2", "nan")]),
        ],
    )
    def test_sql_subset(
        self, store: SupportsSQL, text: str, expected: list[tuple[Any, ...]]
    ) -> None:
        """What the reference documents for every store gives the same rows, of the same types."""
        found = [tuple(row.values()) for row in store.sql(text)]
        assert found == expected
        assert [[type(value) for value in row] for row in found] == [
            [type(value) for value in row] for row in expected
        ]

    def test_sql_and_read_agree(self, store: SupportsSQL, backend: Backend) -> None:
        """Each table by SQL is the table by `read`."""
        fill(backend, "r3", "w3")
        change(backend, "editor", "runs", 10_000, run_id="r2", deleted=1)
        for table in (*TABLES, "all_metrics"):
            columns = ", ".join(f'"{name}"' for name in backend.read(Query(table)).columns)
            found = store.sql(f"select {columns} from {table}").to_pylist()
            assert sorted(found, key=repr) == sorted(backend.read(Query(table)), key=repr), table

    def test_sql_sees_what_was_written_last(self, store: SupportsSQL, backend: Backend) -> None:
        """Views follow the writer."""
        for number in (2, 3):
            change(backend, "w", "runs", number, run_id=f"new{number}")
            assert store.sql("select count(*) as n from runs").to_pylist() == [{"n": number}]

    def test_sql_takes_parameters(self, store: SupportsSQL) -> None:
        """Values go through placeholders, so no text can become SQL."""
        found = store.sql("select path from params where value = ? and run_id = ?", ["0.125", "r1"])
        assert found.to_pylist() == [{"path": "lr"}]
        assert len(store.sql("select path from params where path = ?", ["' or 1=1 --"])) == 0

    @pytest.mark.parametrize("text", WRITING_SQL)
    def test_sql_cannot_write(
        self, store: SupportsSQL, backend: Backend, tmp_path: Path, text: str
    ) -> None:
        """What is no single SELECT raises and changes nothing, in the store or beside it."""
        place = tmp_path / "beside"
        place.mkdir()
        before = dump(backend)
        with pytest.raises(QueryError):
            store.sql(text.format(path=place))
        assert list(place.iterdir()) == []
        assert dump(backend) == before
        assert backend.write(make_batch("w2", 0, events=[{"run_id": "r1"}])) == 1

    @pytest.mark.parametrize("text", BROKEN_SQL)
    def test_sql_mistakes_are_query_errors(self, store: SupportsSQL, text: str) -> None:
        """A mistake in the statement is the user's, and reads as such."""
        with pytest.raises(QueryError):
            store.sql(text)


class ArtifactLaws(StoreFixtures):
    """Files are kept by content."""

    @pytest.fixture
    def keeper(self, backend: Backend) -> SupportsArtifacts:
        """The store, if it keeps files."""
        keeper: SupportsArtifacts = skip_without(backend, SupportsArtifacts)
        return keeper

    def test_artifact_comes_back(self, keeper: SupportsArtifacts, tmp_path: Path) -> None:
        """A file that was put can be opened by its digest, and is listed with its size."""
        for content in (b"", b"model \x00\xff" * 100_000):
            path = tmp_path / "file"
            path.write_bytes(content)
            assert keeper.put_artifact(path, digest(content))
            path.unlink()
            with keeper.open_artifact(digest(content)) as file:
                assert file.read() == content
            assert (digest(content), len(content)) in set(keeper.list_artifacts())

    def test_content_is_kept_once(self, keeper: SupportsArtifacts, tmp_path: Path) -> None:
        """Two files of the same content are one artifact with one URI."""
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"same")
        uris = {keeper.put_artifact(tmp_path / name, digest(b"same")) for name in "ab"}
        assert len(uris) == 1
        assert list(keeper.list_artifacts()) == [(digest(b"same"), 4)]

    def test_wrong_digest_is_refused(self, keeper: SupportsArtifacts, tmp_path: Path) -> None:
        """A file that is not what its digest says leaves nothing behind."""
        path = tmp_path / "file"
        path.write_bytes(b"changed meanwhile")
        with pytest.raises(StoreError):
            keeper.put_artifact(path, digest(b"as hashed before"))
        assert list(keeper.list_artifacts()) == []
        with pytest.raises(StoreNotFound):
            keeper.open_artifact(digest(b"as hashed before"))

    @pytest.mark.parametrize("sha256", ["0" * 64, "../../etc/passwd", "", "short"])
    def test_unknown_artifact_is_not_found(self, keeper: SupportsArtifacts, sha256: str) -> None:
        """What is not kept, or is no digest, cannot be opened."""
        with pytest.raises(StoreError):
            keeper.open_artifact(sha256)

    def test_artifacts_survive_reopening(
        self, keeper: SupportsArtifacts, backend: Backend, backend_url: str, tmp_path: Path
    ) -> None:
        """Another object on the same store opens what the first one kept."""
        path = tmp_path / "file"
        path.write_bytes(b"kept")
        keeper.put_artifact(path, digest(b"kept"))
        backend.close()
        again = self.open_backend(backend_url, create=False)
        assert isinstance(again, SupportsArtifacts)
        with again.open_artifact(digest(b"kept")) as file:
            assert file.read() == b"kept"
        again.close()


class GCLaws(StoreFixtures):
    """What deletes have hidden can be freed, and nothing else is."""

    @pytest.fixture
    def collector(self, backend: Backend) -> SupportsGC:
        """A store with a deleted run and one to keep."""
        collector: SupportsGC = skip_without(backend, SupportsGC)
        fill(backend, "gone", "w1")
        fill(backend, "kept", "w2")
        change(backend, "editor", "runs", 10_000, run_id="gone", deleted=1)
        return collector

    def test_dry_run_changes_nothing(self, collector: SupportsGC, backend: Backend) -> None:
        """It says what would be freed: the run and its points."""
        before = dump(backend)
        for garbage in (collector.gc(), collector.gc(dry_run=True)):
            assert (garbage.runs, garbage.points) == (("gone",), 2)
        assert dump(backend) == before
        assert tables_with(backend, "gone", raw=True) == {*RUN_TABLES, "all_metrics"}

    def test_gc_frees_deleted_runs_only(self, collector: SupportsGC, backend: Backend) -> None:
        """Their rows leave the raw tables, all others stay, and there is no garbage any more."""
        before = dump(backend)
        kept = tables_with(backend, "kept", raw=True)
        assert collector.gc(dry_run=False).runs == ("gone",)
        assert dump(backend) == before
        assert tables_with(backend, "gone", raw=True) <= {"runs"}
        assert tables_with(backend, "kept", raw=True) == kept
        assert (collector.gc().runs, collector.gc().points) == ((), 0)

    def test_records_do_not_come_back_after_gc(
        self, collector: SupportsGC, backend: Backend
    ) -> None:
        """Cursors stay, so a repeat adds nothing; late points of a deleted run stay hidden."""
        collector.gc(dry_run=False)
        before = dump(backend)
        expected = dict(read(backend, "cursors"))
        assert expected.keys() == {"w1", "w2", "editor"}
        assert fill(backend, "gone", "w1") == expected["w1"]
        fill(backend, "gone", "w1", first=expected["w1"])
        assert dump(backend) == before

    def test_gc_frees_files_that_nobody_refers_to(
        self, collector: SupportsGC, backend: Backend, tmp_path: Path
    ) -> None:
        """The file of a deleted run goes, that of a kept one and one of both stays.

        So does one that was put in again since the last row: another row is on its way.
        """
        keeper: SupportsArtifacts = skip_without(backend, SupportsArtifacts)
        users = {"gone": ["gone"], "kept": ["kept"], "both": ["gone", "kept"], "again": ["gone"]}
        for number, (name, runs) in enumerate(users.items()):
            content = name.encode()
            (tmp_path / name).write_bytes(content)
            uri = keeper.put_artifact(tmp_path / name, digest(content))
            row: Row = {"path": name, "sha256": digest(content), "uri": uri}
            if name != "again":
                row["changed_at"] = now_us()
            rows = [row | {"run_id": run} for run in runs]
            backend.write(make_batch(f"files{number}", 0, artifacts=rows))
        assert collector.gc().artifacts == (digest(b"gone"),)
        assert collector.gc(dry_run=False).artifacts == (digest(b"gone"),)
        left = {sha256 for sha256, _ in keeper.list_artifacts()}
        assert left == {digest(b"kept"), digest(b"both"), digest(b"again")}


class CompactLaws(StoreFixtures):
    """Merging parts changes no answer."""

    def test_compact_changes_no_row(self, backend: Backend) -> None:
        """Before, after, and after further writes every table is the same."""
        store: SupportsCompact = skip_without(backend, SupportsCompact)
        for seq in range(4):
            change(backend, "w", "tags", seq, run_id="r", key=str(seq % 2), value=str(seq))
            change(backend, "w", "runs", seq, run_id="r", status=str(seq))
        fill(backend, "gone", "w1")
        change(backend, "editor", "runs", 10_000, run_id="gone", deleted=1)
        before = dump(backend)
        store.compact(grace_seconds=0.0)
        assert dump(backend) == before
        change(backend, "w", "tags", 9, run_id="r", key="0", value="new")
        assert read(backend, "tags", "value", where=where("key", "=", "0")) == [("new",)]
        store.compact(grace_seconds=0.0)
        assert len(backend.read(Query("tags"))) == 2
        assert tables_with(backend, "gone") == set()
