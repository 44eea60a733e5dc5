"""Laws of reading a store: listing, finding, series, edits, and the tails of journals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph import registry
from tachograph.backends.base import Backend, Condition, Query, SupportsGC
from tachograph.errors import QueryError, RunNotFound, StoreError, StoreNotFound
from tachograph.query import Store
from tachograph.reading import live
from tachograph.reading.digests import digest_table
from tachograph.reading.listing import SILENT_US
from tachograph.records import TABLES, Batch, Row, now_us
from tachograph.table import Table
from tachograph.testing.builders import START, dump, make_batch, make_block

KINDS = ("memory", "sqlite", "parquet")
TEST, TRAIN = '{"phase":"test"}', '{"phase":"train"}'


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty store of each kind."""
    yield from open_kind(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Backend]:
    """An empty store in memory."""
    yield from open_kind("memory", tmp_path)


def open_kind(kind: str, folder: Path) -> Iterator[Backend]:
    """A new store of a kind, closed afterwards."""
    place = f"/{folder}/runs" + (".sqlite" if kind == "sqlite" else "")
    url = f"{kind}://{place if kind != 'memory' else uuid.uuid4()}"
    opened = registry.open_backend(url, create=True)
    yield opened
    opened.close()


def run_row(run_id: str, started_at: int = 0, **columns: Any) -> Row:
    """A finished root run in few words."""
    return {
        "run_id": run_id,
        "root_id": run_id,
        "status": "finished",
        "started_at": START + started_at,
        "name": f"name of {run_id}",
    } | columns


def fill(backend: Backend) -> None:
    """Three roots, a child, metrics in contexts, params of several kinds, tags, packages."""
    versions = [{"torch": "2.10"}, {"torch": "2.9"}, {}]
    backend.write(
        make_batch(
            "w",
            0,
            40,
            runs=[
                run_row("one", 1, project="p"),
                run_row("two", 2, project="q", status="failed"),
                run_row("three", 3, project="p"),
                run_row("child", 4, parent_id="two", root_id="two", kind="trial"),
            ],
            params=[
                {"run_id": "one", "path": "lr", "value": "0.1"},
                {"run_id": "two", "path": "lr", "value": '"auto"'},
                {"run_id": "three", "path": "lr", "value": "0.01"},
                {"run_id": "one", "path": "opt.name", "value": '"adam"'},
            ],
            tags=[{"run_id": "one", "key": "stage", "value": "prod"}],
            provenance=[
                {
                    "run_id": run_id,
                    "section": "packages",
                    "document": json.dumps({"versions": found}),
                }
                for run_id, found in zip(("one", "two", "three"), versions, strict=True)
            ],
            blocks=[
                make_block("one", {"loss": [3.0, 1.0, 2.0], "acc": [0.1] * 3}, seqs=[10, 11, 12]),
                make_block("one", {"loss": [9.0]}, seqs=[13], context=TEST),
                make_block("two", {"loss": [0.5, 0.25]}, seqs=[14, 15], context=TRAIN),
                make_block("child", {"loss": [0.125]}, seqs=[16]),
            ],
        )
    )


def ids(table: Any) -> list[str]:
    """The run ids of a listing."""
    return list(table["run_id"])


# ---------------------------------------------------------------------------- listing


def test_listing_shows_the_latest_roots_first(backend: Backend) -> None:
    """By default roots, by start, with every column of a run and no bookkeeping."""
    fill(backend)
    store = Store(backend)
    found = store.runs()
    assert ids(found) == ["three", "two", "one"]
    assert set(found.columns) == set(TABLES["runs"].columns) - {
        "changed_at",
        "writer",
        "seq",
        "deleted",
    }
    assert ids(store.runs(children=True, limit=2)) == ["child", "three"]
    assert ids(store.runs(sort="started_at")) == ["one", "two", "three"]
    assert ids(store.runs(sort=["project", "-started_at"])) == ["three", "one", "two"]
    for equal in ("kind", "-tags.nothing", ()):
        assert ids(store.runs(sort=equal)) == ["three", "two", "one"], "then newest first"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("project == 'p'", ["three", "one"]),
        ("metrics.loss < 1", ["two"]),
        ("metrics.loss == 2 and metrics.loss.min == 1 and metrics.loss.count == 3", ["one"]),
        ("metrics['loss', phase='test'] == 9", ["one"]),
        ("metrics.loss is null", ["three"]),
        ("params.lr < 0.05", ["three"]),
        ("params.lr == 'auto'", ["two"]),
        ("params.opt.name like 'ad%' and tags.stage == 'prod'", ["one"]),
        ("packages.torch >= '2.10'", ["one"]),
        ("packages.torch < '2.10'", ["two"]),
        ("status == 'failed' or params.lr == 0.1", ["two", "one"]),
        ("name == 'nobody'", []),
    ],
)
def test_listing_filters(backend: Backend, where: str, expected: list[str]) -> None:
    """A filter sees columns, metrics, parameters, tags and packages, on every store."""
    fill(backend)
    assert ids(Store(backend).runs(where)) == expected


def test_listing_has_the_columns_asked_for(backend: Backend) -> None:
    """Columns are named in the language of filters; sorting too; nothing comes last."""
    fill(backend)
    found = Store(backend).runs(
        columns=["run_id", "metrics.loss.min", "params.lr", "tags.stage"],
        sort="-metrics.loss",
        children=True,
    )
    assert found.to_pylist() == [
        {"run_id": "one", "metrics.loss.min": 1.0, "params.lr": 0.1, "tags.stage": "prod"},
        {"run_id": "two", "metrics.loss.min": 0.25, "params.lr": "auto", "tags.stage": None},
        {"run_id": "child", "metrics.loss.min": 0.125, "params.lr": None, "tags.stage": None},
        {"run_id": "three", "metrics.loss.min": None, "params.lr": 0.01, "tags.stage": None},
    ]
    assert ids(Store(backend).runs(sort="params.lr", limit=2)) == ["three", "one"]


def test_child_has_the_packages_of_its_root(memory: Backend) -> None:
    """Documents of a process are recorded once, for the root."""
    fill(memory)
    assert ids(Store(memory).runs("packages.torch == '2.9'", children=True)) == ["child", "two"]


def test_misspelled_metric_is_an_error_only_where_one_is_near(memory: Backend) -> None:
    """A filter that finds nothing names what it may have meant; a new name just finds nothing."""
    fill(memory)
    store = Store(memory)
    with pytest.raises(QueryError, match=r"no run has metrics.losss; did you mean 'loss'"):
        store.runs("metrics.losss < 1")
    with pytest.raises(QueryError, match=r"did you mean 'opt.name'"):
        store.runs("params.optname == 1")
    assert len(store.runs("metrics.perplexity < 1")) == 0
    assert len(store.runs("metrics.losss is null")) == 3


def test_latest_attempt_on_the_lowest_rank_is_meant(memory: Backend) -> None:
    """A metric of several attempts and ranks has the value of the latest attempt, rank 0."""
    blocks = [
        make_block("r", {"loss": [value]}, seqs=[seq], rank=rank, attempt=attempt)
        for seq, (value, rank, attempt) in enumerate([(1.0, 0, 1), (2.0, 0, 2), (3.0, 1, 2)])
    ]
    memory.write(make_batch("w", 0, blocks=blocks, runs=[run_row("r")]))
    assert list(Store(memory).runs(columns=["metrics.loss"])["metrics.loss"]) == [2.0]


# ---------------------------------------------------------------------------- finding a run


def test_run_is_found_by_a_few_characters(memory: Backend) -> None:
    """By id, its beginning or end, a unique name, latest, @n; the id wins over all."""
    fill(memory)
    memory.write(make_batch("x", 0, runs=[run_row("019a-77ff", 9, name="one")]))
    store = Store(memory)
    assert store.resolve("one") == "one"
    assert store.resolve("thr") == "three"
    assert store.resolve("77ff") == "019a-77ff"
    assert store.resolve("name of two") == "two"
    memory.write(make_batch("y", 0, runs=[run_row("a_bcd"), run_row("axbcd")]))
    assert store.resolve("_bcd") == "a_bcd", "no pattern"
    assert store.resolve("latest") == store.resolve("@1") == "019a-77ff"
    assert store.resolve("@2") == "three"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t", "'t' fits several runs:\n  three.*\n  two"),
        ("nam of two", "there is no run 'nam of two'; did you mean 'name of two'?"),
        ("@9", "the store has 3"),
        pytest.param("@" + "9" * 5000, "there is no run", id="@9…"),
        ("", "there is no run ''"),
        ("%", "there is no run"),
    ],
)
def test_run_that_is_not_clear_is_an_error(memory: Backend, text: str, message: str) -> None:
    """Candidates are listed, or the nearest name."""
    fill(memory)
    with pytest.raises(RunNotFound, match=message.replace("?", r"\?")):
        Store(memory).resolve(text)


def test_run_record_has_everything(backend: Backend) -> None:
    """Row, params, tags, metrics, documents and children of a run, decoded."""
    fill(backend)
    store = Store(backend)
    run = store.run("two")
    assert run.status == "failed"
    assert run.params == {"lr": "auto"}
    assert run.tags == {}
    assert run.provenance == {"packages": {"versions": {"torch": "2.9"}}}
    assert ids(run.children) == ["child"]
    assert store.run("child").provenance == run.provenance
    assert store.run("one").tags == {"stage": "prod"}
    assert [(row["name"], row["context"]) for row in store.run("one").metrics] == [
        *(("acc", "{}"), ("loss", TEST), ("loss", "{}")),
    ]


def test_common_rows_of_the_root_are_not_those_of_a_run_with_its_own(backend: Backend) -> None:
    """Neither those of the root's whole data nor those of its folds."""
    documents = [("top", "splits.fold-0"), ("top", "packages"), ("own", "splits")]
    provenance = [
        {"run_id": run, "section": section, "document": "{}"} for run, section in documents
    ]
    runs = [{"run_id": run, "root_id": "top"} for run in ("top", "own", "without")]
    backend.write(make_batch("writer", 0, runs=runs, provenance=provenance))
    store = Store(backend)
    assert set(store.run("own").provenance) == {"packages", "splits"}
    assert set(store.run("without").provenance) == {"packages", "splits.fold-0"}


# ---------------------------------------------------------------------------- series


def test_series_is_sorted_by_step_and_exact(backend: Backend) -> None:
    """Steps ascend, equal ones by time, those without come last; NaN stays NaN."""
    values = [1.0, math.nan, -0.0, math.inf, 5.0]
    block = make_block("r", {"loss": values}, steps=[3, 1, None, 1, 0], epochs=[1, None, 0, 0, 0])
    backend.write(make_batch("w", 0, blocks=[block], runs=[run_row("r")]))
    found = Store(backend).series("r", "loss")
    assert found.columns == ("step", "epoch", "time", "value")
    assert list(found["step"]) == [0, 1, 1, 3, None]
    assert [str(value) for value in found["value"]] == ["5.0", "nan", "inf", "1.0", "-0.0"]
    assert list(found["time"]) == [START + seq * 1000 for seq in (4, 1, 3, 0, 2)]
    earlier = make_block("r", {"loss": [2.0]}, seqs=[2], steps=[1])  # between two of the other's
    backend.write(make_batch("v", 0, blocks=[earlier]))
    rows = Store(backend).metrics_of("r")
    (curve,) = Store(backend).curves("r", rows).values()
    for found in (Store(backend).series("r", "loss"), curve):
        assert list(map(str, found["value"])) == ["5.0", "nan", "2.0", "inf", "1.0", "-0.0"]


def test_series_chooses_context_rank_and_attempts(backend: Backend) -> None:
    """By default the empty context, the lowest rank, and what no later attempt replaced."""
    blocks = [
        make_block("r", {"loss": [1.0, 2.0, 3.0]}, seqs=[0, 1, 2]),
        make_block("r", {"loss": [7.0]}, seqs=[3], steps=[0], context=TEST),
        make_block("r", {"loss": [8.0]}, seqs=[4], steps=[0], context=TRAIN),
        make_block("r", {"loss": [1.5]}, seqs=[5], steps=[0], rank=1),
        make_block("r", {"loss": [30.0]}, seqs=[6], steps=[2], attempt=2),
        make_block("r", {"only": [4.0]}, seqs=[7], steps=[0], context=TRAIN),
        make_block("r", {"both": [5.0]}, seqs=[8], steps=[0], context=TRAIN),
        make_block("r", {"both": [6.0]}, seqs=[9], steps=[0], context=TEST),
    ]
    attempts = [{"run_id": "r", "attempt": 2, "first_step": 2, "seq": 6}]
    backend.write(make_batch("w", 0, 10, blocks=blocks, runs=[run_row("r")], attempts=attempts))
    store = Store(backend)
    assert list(store.series("r", "loss")["value"]) == [1.0, 2.0, 30.0]
    assert list(store.series("r", "loss", context={"phase": "test"})["value"]) == [7.0]
    assert list(store.series("r", "loss", context=TRAIN)["value"]) == [8.0]
    assert list(store.series("r", "only")["value"]) == [4.0]
    assert list(store.series("r", "loss", rank=1)["value"]) == [1.5]
    every = store.series("r", "loss", rank="all", attempts="all")
    assert sorted(zip(every["value"], every["rank"], every["attempt"], strict=True)) == [
        *((1.0, 0, 1), (1.5, 1, 1), (2.0, 0, 1), (3.0, 0, 1), (30.0, 0, 2)),
    ]
    with pytest.raises(QueryError, match="several contexts"):
        store.series("r", "both")
    with pytest.raises(QueryError, match="did you mean 'loss'"):
        store.series("r", "los")
    with pytest.raises(QueryError, match="it has both, loss, only"):
        store.series("r", "perplexity")
    with pytest.raises(QueryError, match="no context"):
        store.series("r", "loss", context={"phase": "predict"})


# ---------------------------------------------------------------------------- lost runs


def running(**writer: Any) -> Batch:
    """A run that never ended."""
    return make_batch(
        "w",
        0,
        runs=[run_row("r", status="running")],
        attempts=[{"run_id": "r", "attempt": 1, "status": "running"}],
        writers=[{"host": "h", "pid": 1} | writer],
    )


@pytest.mark.parametrize(
    ("alive", "silent_us", "status"),
    [
        (True, 10 * SILENT_US, "running"),
        (False, 0, "lost"),
        (None, 0, "running"),
        (None, 2 * SILENT_US, "lost"),
    ],
)
def test_run_of_a_dead_process_is_lost(
    memory: Backend, alive: bool | None, silent_us: int, status: str
) -> None:
    """Its process decides where one can tell, else the time since its last sign of life."""
    memory.write(running(heartbeat_at=now_us() - silent_us))
    store = Store(memory, is_alive=lambda _: alive)
    assert list(store.runs()["status"]) == [status]
    assert store.run("r").status == status
    assert len(store.runs(f"status == '{status}'")) == 1
    assert list(store.runs(lost=False)["status"]) == ["running"]


def test_edited_run_is_still_lost(backend: Backend) -> None:
    """A note or an edit is not a sign of life of the process."""
    backend.write(running(heartbeat_at=START))
    store = Store(backend)
    store.update("r", verdict="odd")
    store.tag("r", x="y")
    assert list(store.runs()["status"]) == ["lost"]


# ---------------------------------------------------------------------------- edits


def test_edits_are_seen_at_once(backend: Backend) -> None:
    """Tags, notes and columns change; what was not named stays."""
    fill(backend)
    store = Store(backend)
    store.tag("one", stage="test", extra="x")
    store.note("one", "looks good")
    store.update("one", name="best", verdict="keep")
    run = store.run("one")
    assert run.tags == {"stage": "test", "extra": "x"}
    assert list(run.events["message"]) == ["looks good"]
    assert (run.row["name"], run.row["verdict"], run.row["project"]) == ("best", "keep", "p")
    store.tag("one", stage=None)
    assert store.run("one").tags == {"extra": "x"}
    with pytest.raises(QueryError, match="did you mean 'verdict'"):
        store.update("one", verdikt="x")


def test_edit_wins_over_a_clock_that_runs_ahead(backend: Backend) -> None:
    """An edit is later than all that it changes, whatever the clock of the writer said."""
    ahead = now_us() + 3_600_000_000
    backend.write(make_batch("w", 0, runs=[run_row("r", changed_at=ahead)]))
    store = Store(backend)
    store.update("r", name="mine")
    assert store.run("r").name == "mine"
    assert store.run("r").row["changed_at"] == ahead + 1


def test_delete_hides_descendants_and_points(backend: Backend) -> None:
    """A deleted run is gone from every table, with its children."""
    fill(backend)
    backend.write(make_batch("v", 0, runs=[run_row("deep", parent_id="child", root_id="two")]))
    store = Store(backend)
    assert store.delete("two") == ["child", "deep", "two"]
    assert ids(store.runs(children=True)) == ["three", "one"]
    assert set(store.read(Query("all_metrics"))["run_id"]) == {"one"}
    with pytest.raises(RunNotFound):
        store.run("two")
    if isinstance(backend, SupportsGC):
        assert {"child", "two"} <= set(store.gc().runs)


def test_secret_in_an_edit_is_taken_out(memory: Backend) -> None:
    """What a person types goes through the same redaction as what a training records."""
    fill(memory)
    store = Store(memory)
    store.tag("one", api_token="hunter2hunter2")
    store.note("one", "password=hunter2hunter2")
    assert "hunter2" not in repr(dump(memory))


@pytest.mark.parametrize("kind", ["sqlite", "parquet"])
def test_sql_goes_to_the_store(kind: str, tmp_path: Path) -> None:
    """One SELECT gives the same table on each store that answers SQL; nothing may be written."""
    for opened in open_kind(kind, tmp_path):
        fill(opened)
        store = Store(opened)
        text = (
            "select name, count(*) as n from metrics where run_id = ? group by name order by name"
        )
        assert store.sql(text, ["one"]).to_pydict() == {"name": ["acc", "loss"], "n": [3, 4]}
        with pytest.raises(QueryError):
            store.sql("delete from runs")


def test_missing_abilities_are_named(memory: Backend) -> None:
    """A store that answers no SQL says so."""
    store = Store(memory)
    with pytest.raises(QueryError, match="answers no SQL"):
        store.sql("select 1")
    with pytest.raises(StoreError, match="cannot free"):
        store.gc()
    with pytest.raises(StoreError, match="keeps no files"):
        store.open_artifact("0" * 64)


# ---------------------------------------------------------------------------- tails of journals


def whole() -> list[Batch]:
    """All records of a training that was resumed, in three batches of two writers."""
    first = make_batch(
        "w",
        0,
        6,
        runs=[
            run_row("r", status="running", project="p"),
            run_row("c", parent_id="r", root_id="r"),
        ],
        attempts=[{"run_id": "r", "attempt": 1, "first_step": 0, "status": "running"}],
        writers=[{"host": "h"}],
        params=[{"run_id": "r", "path": "lr", "value": "1", "seq": 1}],
        tags=[{"run_id": "r", "key": "k", "value": "old", "seq": 1}],
        blocks=[make_block("r", {"loss": [3.0, math.nan, 2.0]}, seqs=[3, 4, 5], steps=[0, 1, 2])],
    )
    second = make_batch(
        "w",
        6,
        12,
        heartbeat=START + 77,
        runs=[{"run_id": "r", "status": "finished", "seq": 11}],
        attempts=[{"run_id": "r", "attempt": 2, "first_step": 1, "seq": 7}],
        tags=[{"run_id": "r", "key": "k", "value": "new", "seq": 6}],
        events=[{"run_id": "r", "time": 5, "kind": "note", "message": "hi", "seq": 6}],
        blocks=[
            make_block("r", {"loss": [7.0, -0.0]}, seqs=[8, 9], steps=[1, 2], attempt=2),
            make_block("r", {"loss": [1.0], "acc": [0.5]}, seqs=[10], steps=[5]),
        ],
    )
    third = make_batch(
        "v",
        0,
        runs=[run_row("gone", deleted=1), run_row("late", 9)],
        blocks=[make_block("gone", {"loss": [1.0]}, seqs=[1])],
    )
    return [first, second, third]


@pytest.mark.parametrize("drained", [0, 1, 2, 3])
@pytest.mark.parametrize("raced", [False, True])
def test_tails_are_read_as_if_they_were_in_the_store(
    backend: Backend, memory: Backend, drained: int, raced: bool
) -> None:
    """However much is drained, also in the middle of a query, every table reads the same."""
    batches = whole()
    for batch in batches:
        memory.write(batch)
    for batch in batches[:drained]:
        backend.write(batch)
    store = Store(backend, tails=lambda _: batches)  # more than asked for, as after a drain
    if raced:
        store.runs()
        for batch in batches:
            backend.write(batch)
    for table in (*TABLES, "all_metrics"):
        expected = sorted(map(repr, _comparable(memory.read(Query(table)))))
        assert sorted(map(repr, _comparable(store.read(Query(table))))) == expected, table
        assert digest_table(store, table) == digest_table(memory, table), table


def _comparable(rows: Any) -> list[Row]:
    # When a summary was changed is the store's business, as are the last digits of a mean.
    left_out = {"changed_at", "seq", "writer"} if "finite" in rows.columns else set()
    return [
        {name: round(v, 12) + 0.0 if isinstance(v, float) else v for name, v in row.items()}
        | dict.fromkeys(left_out)
        for row in rows
    ]


def test_tail_may_begin_before_the_cursor(backend: Backend, memory: Backend) -> None:
    """Of a batch that is partly in the store only the rest is merged in."""
    first, second, third = whole()
    joined = Batch(
        "w",
        0,
        12,
        first.blocks + second.blocks,
        {name: [*first.rows.get(name, ()), *second.rows.get(name, ())] for name in TABLES},
        second.heartbeat,
    )
    for batch in (joined, third):
        memory.write(batch)
    backend.write(first)
    store = Store(backend, tails=lambda _: [joined, third])
    for table in (*TABLES, "all_metrics"):
        assert digest_table(store, table) == digest_table(memory, table), table


def test_drain_between_two_parts_of_a_query_does_no_harm(
    memory: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a drain moves points from the tail into the store, a summary counts them once."""
    batches = whole()
    memory.write(batches[0])
    original = memory.read

    def read(query: Query) -> Any:
        found = original(query)
        if query.table == "cursors":
            memory.write(batches[1])
        return found

    monkeypatch.setattr(memory, "read", read)
    where = [Condition("run_id", "=", "r"), Condition("attempt", "=", 1)]
    query = Query("summaries", where, ["name", "count"])
    found = Store(memory, tails=lambda _: batches).read(query)
    assert dict(zip(found["name"], found["count"], strict=True)) == {"loss": 4, "acc": 1}


def test_points_that_come_before_their_cursor_are_there_once(
    memory: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of files shows a batch a moment before it says that it has it."""
    batches = whole()
    for batch in batches:
        memory.write(batch)
    original = memory.read

    def read(query: Query) -> Any:
        found = original(query)
        return Table({"writer": ["w"], "next": [6]}) if query.table == "cursors" else found

    monkeypatch.setattr(memory, "read", read)
    store = Store(memory, tails=lambda _: batches)
    for table in ("metrics", "all_metrics", "events", "params", "runs"):
        assert len(store.read(Query(table))) == len(original(Query(table))), table


@pytest.mark.parametrize(
    "query",
    [
        Query("runs", [Condition("status", "=", "running")]),
        Query("runs", [Condition("status", "=", "finished")], ["run_id"], ["-run_id"], 1),
        Query("runs", [Condition("run_id", "=", "late")], ["name"]),
        Query("tags", [Condition("value", "=", "old")]),
        Query("metrics", [Condition("value", ">", 1.5)], ["value"], ["-value"]),
        Query("all_metrics", [Condition("run_id", "in", ["r"])], ["step"], ["-step"], 2),
        Query("summaries", [Condition("name", "=", "acc")], ["last", "count"]),
        Query("summaries", [Condition("count", ">", 2)], ["name", "count"], ["name"]),
        Query("writers", [Condition("heartbeat_at", "=", START + 77)], ["writer"]),
        Query("metrics", columns=["name"], order=["-name"], span="step"),
        Query("runs", [Condition("status", "!=", None)], ["status"], ["status"], 1, span="name"),
    ],
)
def test_conditions_hold_for_the_merged_rows(
    backend: Backend, memory: Backend, query: Query
) -> None:
    """A row that a tail changes is filtered, sorted and cut by what it becomes."""
    batches = whole()
    for batch in batches:
        memory.write(batch)
    backend.write(batches[0])
    assert Store(backend, tails=lambda _: batches).read(query) == memory.read(query)


def test_cursors_are_looked_up_for_the_writers_of_journals_only(memory: Backend) -> None:
    """Whoever reads journals is told what the store expects of each writer."""
    memory.write(whole()[0])
    asked: list[tuple[int, int, set[str], int]] = []
    store = Store(
        memory,
        tails=lambda cursors: (
            asked.append((cursors["w"], cursors.get("v", 0), set(cursors), len(cursors))) or []
        ),
    )
    store.runs()
    store.runs()
    assert asked == [(6, 0, {"w"}, 1)], "and not again within a moment"


def test_edit_is_later_than_what_a_tail_holds(
    memory: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change on its way from a clock ahead does not undo an edit."""
    monkeypatch.setattr(live, "KEEP_SECONDS", 0.0)
    ahead = now_us() + 3_600_000_000
    memory.write(make_batch("w", 0, runs=[run_row("r")]))
    tail = make_batch("w", 1, runs=[{"run_id": "r", "name": "theirs", "changed_at": ahead}])
    store = Store(memory, tails=lambda _: [tail])
    assert store.run("r").name == "theirs"
    store.update("r", name="mine")
    assert store.run("r").name == "mine"
    memory.write(tail)
    assert store.run("r").name == "mine"


def test_edit_of_a_run_in_a_tail_is_seen_at_once(memory: Backend) -> None:
    """What was read of the store for the tail is read anew after a change."""
    batches = whole()
    memory.write(batches[0])
    store = Store(memory, tails=lambda _: batches[1:])
    assert len(store.series("r", "loss")) > 0
    store.tag("r", k="mine")
    assert store.run("r").tags == {"k": "mine"}
    store.delete("r")
    assert [row["run_id"] for row in store.runs(children=True)] == ["late"]
    assert len(store.read(Query("metrics"))) == 0


# ---------------------------------------------------------------------------- opening


def test_open_reads_what_a_living_process_has_not_drained(tmp_path: Path) -> None:
    """Another process logs and stays alive: its points are read from its journal."""
    url = f"parquet:///{tmp_path}/runs"
    script = f"""
        import sys, tachograph
        config = {{"backend": {url!r}, "record": {{"system": False}}}}
        run = tachograph.start_run(project="p", name="live", config=config)
        for step in range(100):
            run.log({{"loss": 1.0 / (step + 1)}}, step=step)
        print(run.run_id, flush=True)
        sys.stdin.readline()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        with tachograph.open(url, create=True) as store:
            found = store.runs(columns=["run_id", "status", "metrics.loss.count"])
            assert found.to_pylist() == [
                {"run_id": run_id, "status": "running", "metrics.loss.count": 100}
            ]
            assert len(store.series("live", "loss")) == 100
    finally:
        process.kill()
        process.communicate()
    with tachograph.open(url) as store:
        assert store.run(run_id).status == "lost", "killed, and drained by whoever opens next"
        assert len(store.series("live", "loss")) == 100


def test_open_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Reading makes no store."""
    with pytest.raises(StoreNotFound):
        tachograph.open(f"sqlite:///{tmp_path}/none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_digest_of_a_store_is_that_of_its_rows(
    tmp_path: Path, backend: Backend, memory: Backend
) -> None:
    """Equal content has equal digests on every store, whatever the order of its rows."""
    fill(backend)
    fill(memory)
    for table in (*TABLES, "all_metrics"):
        assert Store(backend).digest(table) == Store(memory).digest(table), table
