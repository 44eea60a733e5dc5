"""SQL over HTTP reads the store's tables and nothing else, whatever the text is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import KINDS, ReadServer, batches, error_of, filled, table_of

from tachograph.backends.base import Bounds
from tachograph.errors import QueryError

CANARY = "canary-5f2b"
"""Stands in files that must not be read."""


@pytest.fixture(scope="module", params=KINDS)
def full(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[ReadServer]:
    """A server with files beside its store, and in the folder of a Parquet store, to be kept."""
    folder = tmp_path_factory.mktemp(request.param)
    with filled(request.param, folder) as server:
        for path in secrets(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"a,b\n{CANARY},1\n")
        (folder / "link").symlink_to("/etc")
        server.folder = folder
        yield server


def secrets(folder: Path) -> list[Path]:
    """Files that hold the canary: outside of the store, in its folder, beside its tables."""
    return [
        folder / "outside.csv",
        folder / "store" / "beside.csv",
        folder / "store" / "runs" / ".tachograph" / "journal" / "inside.csv",
        folder / "store" / "runs" / "inside.csv",
        folder / "server" / "tokens.csv",
    ]


READS = [
    "select * from read_csv('{}')",
    "select * from read_text('{}')",
    "select * from read_blob('{}')",
    "select * from read_json('{}')",
    "select * from read_parquet('{}')",
    "select * from parquet_metadata('{}')",
    "select * from sniff_csv('{}')",
    "select * from '{}'",
    "from '{}'",
    "select * from glob('{}')",
    "select * from query('select * from read_text(''{}'')')",
    "select * from query_table(['{}'])",
    "select * from sqlite_scan('{}', 't')",
    "select readfile('{}')",
    "select load_extension('{}')",
    "select * from json_each(readfile('{}'))",
    "select (select content from read_text('{}'))",
    "with x as (select * from read_csv('{}')) select * from x",
]


@pytest.mark.parametrize("text", READS)
def test_no_file_can_be_read(full: ReadServer, text: str) -> None:
    """Not outside of the store, nor what else lies in its folder, by no function."""
    for path in ("/etc/passwd", full.folder / "store" / "runs" / "inside.csv"):
        refuse(full, text.format(path))


def test_no_path_leads_out_of_the_tables(full: ReadServer) -> None:
    """However it is spelled: up and down again, with wildcards, by a link."""
    tables = full.folder / "store" / "runs" / "metrics"
    paths = [str(path) for path in secrets(full.folder)]
    paths += [f"{tables}/../inside.csv", f"{tables}/../.tachograph/journal/*"]
    paths += ["/proc/self/environ", f"{full.folder}/link/passwd", "*", "/*"]
    for path in paths:
        refuse(full, f"select * from read_text('{path}')")


def refuse(server: ReadServer, text: str) -> None:
    """Ask, and be refused without a word of what is in the files."""
    answer = server.post("/sql", {"text": text})
    assert error_of(answer) == (400, "query"), (text, answer.text)
    assert CANARY not in answer.text
    assert "root:" not in answer.text


REFUSED = [
    "copy (select 1) to '{}'",
    "attach '{}' as other",
    "create table t (a int)",
    "drop table runs",
    "delete from runs",
    "with x as (delete from runs returning *) select * from x",
    "pragma database_list",
    "select * from pragma_database_list()",
    "set enable_external_access = true",
    "set lock_configuration = false",
    "install httpfs",
    "export database '{}'",
    "vacuum into '{}'",
    "begin",
    "call pragma_version()",
    "checkpoint",
    "explain analyze select 1",
    "select 1; select 2",
    "select 1; attach '{}' as x",
    "select getenv('HOME')",
    "select fts3_tokenizer('simple')",
    "select * from duckdb_secrets()",
    "select * from 'https://localhost:1/x.parquet'",
    "select * from batches",
    "",
    "select * from runs where",
    "\u0000",
    "select '\ud800'",
]


@pytest.mark.parametrize("text", REFUSED)
def test_nothing_but_reading_is_done(full: ReadServer, text: str) -> None:
    """400 with a message; and no file is made."""
    made = full.folder / "made"
    content = json.dumps({"text": text.format(made)})  # half a character, too, goes through
    headers = {"Content-Type": "application/json"}
    answer = full.client.post("/v1/sql", content=content, headers=headers)
    assert error_of(answer) in ((400, "query"), (400, "malformed")), answer.text
    assert answer.json()["error"]["message"]
    assert not made.exists()


def test_the_tables_are_still_as_they_were(full: ReadServer) -> None:
    """After all of that, every row is there."""
    count = full.post("/sql", {"text": "select count(*) as n from all_metrics"})
    points = sum(batch.points for batch in batches())
    assert list(table_of(count)["n"]) == [points - 1]  # one is of a deleted run


GREEDY = {
    "sqlite": [
        "select zeroblob(1000000000)",
        "with recursive n(i) as (select 1 union all select i + 1 from n)"
        " select zeroblob(1000000) from n",
        "with recursive n(s) as (select 'xxxxxxxx' union all select s || s from n) select s from n",
    ],
    "parquet": [
        "select list(range) from range(1000000000)",
        "select repeat('x', 30000000) from range(10)",
        "select a.range, b.range from range(3000) a, range(100000) b"
        " order by hash(a.range + b.range)",
    ],
}


@pytest.mark.parametrize("number", range(3))
def test_memory_is_bounded(full: ReadServer, number: int) -> None:
    """Texts and intermediate results that would fill the memory are refused."""
    with full.server.readers.lend() as served, pytest.raises(QueryError):
        served.backend.sql(GREEDY[full.kind][number], bounds=Bounds(1_000_000, 50_000_000))


@pytest.mark.parametrize("text", ["select 1 as a from runs", "values (1)"])
def test_rows_are_fetched_no_further_than_the_bound(full: ReadServer, text: str) -> None:
    """An answer without an end is cut at the bound, at once."""
    endless = {
        "sqlite": "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n",
        "parquet": "select range as i from range(100000000000)",
    }[full.kind]
    with full.server.readers.lend() as served:
        assert len(served.backend.sql(endless, bounds=Bounds(100, 1 << 26))) == 100
        assert len(served.backend.sql(text, bounds=Bounds(1, 1 << 26))) == 1
