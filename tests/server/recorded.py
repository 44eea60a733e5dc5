"""What the tests of reading share: a server in this process, and batches of two projects."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from tachograph.backends.memory import MemoryBackend
from tachograph.query import Store
from tachograph.records import Batch, Row
from tachograph.server.app import make_app
from tachograph.server.settings import Limits, ServerSettings
from tachograph.server.tokens import Tokens
from tachograph.table import Table
from tachograph.testing.builders import START, make_batch, make_block
from tachograph.wire.encoding import compress, encode
from tachograph.wire.tables import table_from_json

KINDS = ("sqlite", "parquet")
FEW = 60
"""Rows of an answer of a server that gives few."""

VAL, TEST = '{"phase":"val"}', '{"phase":"test"}'
SECRET = "zebra"
"""Is in every text of the project that a token for the other one must not see."""


def run_row(run_id: str, started_at: int, **columns: Any) -> Row:
    """A finished root run in few words."""
    row = {"run_id": run_id, "root_id": run_id, "kind": "run", "status": "finished"}
    return (
        row
        | {"started_at": START + started_at, "attempt": 1, "name": f"name of {run_id}"}
        | columns
    )


def about(run_id: str, mark: str) -> dict[str, list[Row]]:
    """Rows of each table about a run, each with a mark."""
    sha256 = hashlib.sha256(mark.encode()).hexdigest()
    return {
        "attempts": [{"run_id": run_id, "attempt": 1, "first_step": 0, "status": "finished"}],
        "params": [
            {"run_id": run_id, "path": f"{mark}.lr", "value": "0.1", "source": "user"},
            {"run_id": run_id, "path": "opt", "value": json.dumps({"name": mark, "k": [1, None]})},
        ],
        "tags": [{"run_id": run_id, "key": f"{mark}-stage", "value": mark}],
        "provenance": [
            {
                "run_id": run_id,
                "section": "packages",
                "document": json.dumps({"versions": {mark: "2.1", "torch": "2.9"}}),
                "digest": mark,
            }
        ],
        "artifacts": [{"run_id": run_id, "path": f"{mark}.ckpt", "sha256": sha256, "bytes": 7}],
        "events": [
            {"run_id": run_id, "time": START, "level": "info", "kind": "note", "message": mark},
            {"run_id": run_id, "time": START + 5, "level": "info", "kind": "note", "data": "{}"},
        ],
        "tensors": [
            {
                "run_id": run_id,
                "name": f"{mark}.weight",
                "kind": "weight",
                "context": "{}",
                "rank": 0,
                "attempt": 1,
                "step": 3,
                "time": START,
                "shape": "[2,2]",
                "dtype": "float32",
                "size": 4,
                "mean": 0.5,
                "l2": 1.5,
            }
        ],
        "writers": [{"host": mark, "pid": 1, "started_at": START}],
    }


def batches() -> list[Batch]:
    """Projects apple and zebra, children, a resumed run, a deleted one, values of all kinds."""
    apple = make_batch(
        "apple-writer",
        0,
        400,
        runs=[
            run_row("a1", 1, project="apple"),
            run_row("a2", 2, project="apple", status="failed"),
            run_row("a3", 3, project="apple", attempt=2),
            run_row("a4", 4, project="apple"),
            run_row("a1-trial", 5, project="apple", parent_id="a1", root_id="a1", kind="trial"),
            {"run_id": "a4", "deleted": 1, "changed_at": START + 9_000_000},
        ],
        **about("a1", "apple"),
        blocks=[
            make_block(
                "a1",
                {"loss": [3.0, math.nan, -0.0, 0.5], "acc": [0.1, math.inf, -math.inf, 1e-300]},
                seqs=[20, 21, 22, 23],
                steps=[0, 10, None, 30],
                epochs=[0.0, 0.5, None, 1.5],
            ),
            make_block("a1", {"loss": [9.0, 8.0]}, seqs=[24, 25], context=VAL),
            make_block("a2", {"loss": [0.25]}, seqs=[26], context=TEST),
            make_block("a2", {"loss": [0.75]}, seqs=[27], rank=1, context=TEST),
            make_block("a1-trial", {"loss": [0.125]}, seqs=[28]),
            make_block("a3", {"loss": [float(i) for i in range(100)]}, seqs=range(30, 130)),
            make_block("a4", {"loss": [1.0]}, seqs=[130]),
        ],
    )
    resumed = make_batch(
        "again-apple-writer",
        0,
        60,
        attempts=[
            {"run_id": "a3", "attempt": 1, "first_step": 0, "status": "lost"},
            {"run_id": "a3", "attempt": 2, "first_step": 50, "status": "finished"},
        ],
        blocks=[
            make_block(
                "a3",
                {"loss": [-1.0 - i for i in range(40)]},
                seqs=range(10, 50),
                steps=range(60, 100),
                attempt=2,
            )
        ],
    )
    zebra = make_batch(
        "zebra-writer",
        0,
        200,
        runs=[
            run_row("zebra1", 6, project=SECRET),
            # It says that it is of the other project, but its root is not.
            run_row("zebra-trial", 7, project="apple", parent_id="zebra1", root_id="zebra1"),
            run_row("zebra-bare", 8),
        ],
        **about("zebra1", SECRET),
        blocks=[
            make_block("zebra1", {"zebra_loss": [1.0, 0.5]}, seqs=[100, 101]),
            make_block("zebra-trial", {"zebra_loss": [2.0]}, seqs=[102]),
        ],
    )
    return [apple, resumed, zebra]


def reference(name: str, given: list[Batch]) -> Store:
    """A store in memory with the same, read where it is: what a server must say too."""
    backend = MemoryBackend(f"memory://{name}", create=True)
    for batch in given:
        backend.write(batch)
    return Store(backend)


class ReadServer:
    """A server of a kind of store, filled, with a token of each sort."""

    def __init__(self, kind: str, folder: Path, rows: int = 1_000_000) -> None:
        self.kind = kind
        url = f"{kind}:///{folder}/store/runs" + (".sqlite" if kind == "sqlite" else "")
        settings = ServerSettings((url,), folder / "server", Limits(answer_rows=rows))
        tokens = Tokens(settings.folder)
        self.admin = tokens.create("admin", rights=("admin",))
        self.apple = tokens.create("apple", rights=("read",), projects=("apple",))
        self.app = make_app(settings)
        self.client = TestClient(self.app, headers={"Authorization": f"Bearer {self.admin}"})

    @property
    def server(self) -> Any:
        """What its routes share."""
        return self.app.state.server

    def get(self, path: str, token: str | None = None, **keywords: Any) -> Any:
        """A GET below /v1, as the admin or with another token."""
        headers = keywords.pop("headers", {})
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        return self.client.get(f"/v1{path}", headers=headers, **keywords)

    def post(self, path: str, document: Any, token: str | None = None, **headers: str) -> Any:
        """A POST of JSON below /v1."""
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        return self.client.post(f"/v1{path}", json=document, headers=headers)

    def deliver(self, *batches: Batch) -> None:
        """Hand batches to the inbox as its route does."""
        for batch in batches:
            self.server.inbox.receive(compress(encode(batch)), batch)


@contextlib.contextmanager
def running(kind: str, folder: Path, rows: int = 1_000_000) -> Iterator[ReadServer]:
    """A server that has started, and received nothing."""
    server = ReadServer(kind, folder, rows)
    with server.client:
        yield server


@contextlib.contextmanager
def filled(kind: str, folder: Path) -> Iterator[ReadServer]:
    """A server that has received everything, part of which is in its store already."""
    with running(kind, folder) as server:
        first, *others = batches()
        server.deliver(first)
        assert server.server.inbox.flush(20)
        server.deliver(*others)
        yield server


def table_of(response: Any) -> Table:
    """The table that was answered."""
    assert response.status_code == 200, response.text
    return table_from_json(response.content)


def sayable(table: Table) -> list[dict[str, Any]]:
    """Rows as JSON says them: no NaN, no infinity."""
    return [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in table
    ]


def any_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in an order of their own."""
    return sorted(rows, key=repr)


def error_of(response: Any) -> tuple[int, str]:
    """Status and code of an answer that is an error."""
    return response.status_code, response.json()["error"]["code"]
