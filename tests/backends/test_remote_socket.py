"""The store behind a server, over a real socket: the contract, and what is long."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from remote_contract import RemoteContract

from tachograph.backends import remote_reading
from tachograph.backends.base import Condition, Query
from tachograph.backends.remote import RemoteBackend
from tachograph.errors import RunNotFound, StoreError, StoreNotFound
from tachograph.registry import open_backend
from tachograph.testing import dump, make_batch, make_block

Start = Callable[..., str]


@pytest.mark.slow
class TestRemoteOverSocket(RemoteContract):
    """The contract on a server that answers on a port, with Arrow, over files."""

    scheme = "parquet"

    @pytest.fixture
    def backend_url(self, start: Start) -> str:
        """A server of its own, on a new store."""
        return start(self.scheme)


# ---------------------------------------------------------------------------- long answers


def fill(backend: Any, calls: int = 80) -> None:
    """Two writers of a run, a metric in two contexts, events and tags, all of some length."""
    for writer, context in (("w1", '{"phase":"fit"}'), ("w2", "{}")):
        steps = [(7 * i) % calls for i in range(calls)]
        values = {"loss": [i / 7 for i in range(calls)], "acc": [float("nan")] * calls}
        block = make_block("r", values, steps=steps, context=context)
        events = [{"run_id": "r", "time": i, "message": str(i), "seq": i} for i in range(calls)]
        tags = [{"run_id": "r", "key": f"{writer}.{i}", "seq": i} for i in range(calls)]
        runs = [{"run_id": "r", "name": writer, "seq": 0}]
        batch = make_batch(writer, 0, blocks=[block], events=events, tags=tags, runs=runs)
        backend.write(batch)


QUESTIONS = [
    Query("metrics", order=("writer", "seq", "name")),
    Query("metrics", order=("-step", "name", "writer"), limit=150),
    Query("all_metrics", [Condition("name", "=", "loss")], ["value"], ["writer", "value"]),
    Query("metrics", [Condition("value", ">", 2.0)], ["writer", "step"], ["step", "writer"], 110),
    Query("events", order=("message", "writer"), columns=["message"]),
    Query("tags", order=("-key",)),
    Query("tags", order=("key",), raw=True, limit=133),
]


@pytest.mark.parametrize("store", ["sqlite", "parquet"])
def test_long_answers_are_those_of_the_store(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """A server that gives 100 rows at once answers as the store itself, row by row, in order."""
    url = start(store, answer_rows=100)
    monkeypatch.setattr(remote_reading, "FEWEST_ROWS", 10)
    monkeypatch.setattr(remote_reading, "PAGE_ROWS", 90)
    with closing(RemoteBackend(url, create=True)) as backend:
        fill(backend)
        answers = [backend.read(query) for query in QUESTIONS]
        everything = dump(backend)
    local = open_backend(f"{store}:///{tmp_path}/local.db", create=True)
    fill(local)
    assert [local.read(query) for query in QUESTIONS] == answers
    assert dump(local) == everything
    local.close()


READ_TWICE = """
import sys
from tachograph.backends.base import Query
from tachograph.backends.remote import RemoteBackend
if {blocked}: sys.modules["pyarrow"] = None
backend = RemoteBackend({url!r})
query = Query("metrics", columns=["value", "special", "step"], order=["seq"])
first = backend.read(query)
imported = [sys.modules.get("pyarrow") is not None]
assert backend.read(query) == first
imported += [sys.modules.get("pyarrow") is not None]
assert list(first["value"]) == [i / 7 for i in range(25_000)]
print(*imported)
"""


@pytest.mark.parametrize(("blocked", "imported"), [(False, "False True"), (True, "False False")])
def test_large_answers_come_as_arrow_where_it_is_there(
    start: Start, blocked: bool, imported: str
) -> None:
    """One large answer is enough to learn from; without pyarrow all are JSON, and the same."""
    url = start("sqlite")
    block = make_block("r", {"loss": [i / 7 for i in range(25_000)]})
    with closing(RemoteBackend(url, create=True)) as backend:
        backend.write(make_batch("w", 0, blocks=[block]))
    code = READ_TWICE.format(url=url, blocked=blocked)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == imported, done.stderr


def test_request_that_is_too_large_for_the_server_is_cut(start: Start) -> None:
    """413 makes pieces of a batch, also of later ones; a record that is too large is named."""
    url = start("sqlite", batch_bytes=5_000)
    with closing(RemoteBackend(url, create=True)) as backend:
        block = make_block("r", {"loss": [float(i) for i in range(1000)]})
        assert backend.write(make_batch("w", 0, blocks=[block])) == 1000
        assert backend.batch_bytes <= 5_000
        found = backend.read(Query("metrics", columns=["value"], order=["seq"]))
        assert list(found["value"]) == [float(i) for i in range(1000)]
        large = [{"run_id": "r", "seq": 1000, "message": "x" * 6_000}]
        with pytest.raises(StoreError, match=r"record 1000 of w: .* more than 5000 bytes"):
            backend.write(make_batch("w", 1000, events=large))


# ---------------------------------------------------------------------------- files


def test_file_is_sent_in_pieces_with_little_memory(start: Start, tmp_path: Path) -> None:
    """60 MB go there and back, and never lie in memory, of the client or of the server."""
    path = tmp_path / "model.pt"
    content, digest = bytes(range(251)) * 4000, hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(60):
            file.write(content)
            digest.update(content)
    sha256 = digest.hexdigest()
    with closing(RemoteBackend(start("sqlite"))) as backend:
        assert list(backend.list_artifacts()) == []  # everything is imported
        tracemalloc.start()
        uri = backend.put_artifact(path, sha256)
        with backend.open_artifact(sha256) as fetched:
            read = sum(len(chunk) for chunk in iter(lambda: fetched.read(1 << 20), b""))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert backend.put_artifact(path, sha256) == uri
        assert list(backend.list_artifacts()) == [(sha256, path.stat().st_size)]
    assert read == path.stat().st_size
    assert most < 25 << 20


def test_wrong_digest_is_refused_on_either_side(start: Start, tmp_path: Path) -> None:
    """A file that was changed since it was recorded is not kept under its old name."""
    path = tmp_path / "file"
    path.write_bytes(b"new")
    with closing(RemoteBackend(start("sqlite"), create=True)) as backend:
        with pytest.raises(StoreError, match="what came has the SHA-256"):
            backend.put_artifact(path, hashlib.sha256(b"old").hexdigest())
        with pytest.raises(StoreNotFound):
            backend.open_artifact(hashlib.sha256(b"old").hexdigest())
        with pytest.raises(StoreError, match=r"cannot send .*/absent"):
            backend.put_artifact(tmp_path / "absent", hashlib.sha256(b"old").hexdigest())


class Relay:
    """Passes connections on to a port, counts what clients send, and cuts them at a number.

    Attributes
    ----------
    sent : int
        Bytes from clients so far.
    most : int
        After which connections are cut.
    """

    def __init__(self, port: int, most: int) -> None:
        self.sent, self.most, self._port = 0, most, port

    def handle(self, client: socket.socket) -> None:
        """Pass one connection on."""
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=self._back, args=(server, client), daemon=True)
            back.start()
            while (data := client.recv(1 << 16)) and self.sent < self.most:
                self.sent += len(data)
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)


def test_transfer_that_is_cut_goes_on(start: Start, tmp_path: Path, scripted: Any) -> None:
    """What has arrived is not sent again, by this process or another one."""
    port, prefix = start("sqlite").removeprefix("http://127.0.0.1:").split("/")
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (12 << 12))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    relay = Relay(int(port), most=5 << 20)
    url = f"{scripted(relay.handle).url}/{prefix}"
    with closing(RemoteBackend(url, create=True)) as backend, pytest.raises(StoreError):
        backend.put_artifact(path, digest)
    before, relay.most = relay.sent, 1 << 40
    with closing(RemoteBackend(url, create=True)) as backend:
        backend.put_artifact(path, digest)
        assert relay.sent - before < path.stat().st_size - (4 << 20)
        assert backend.open_artifact(digest).read() == path.read_bytes()


# ---------------------------------------------------------------------------- following


def test_follow_hears_everything_once(start: Start) -> None:
    """Points, events and the end of a run, in order, also behind a cursor."""
    url = start("sqlite")
    with closing(RemoteBackend(url, create=True)) as writer, closing(RemoteBackend(url)) as reader:
        started = [{"run_id": "r", "status": "running", "seq": 0}]
        block = make_block("r", {"loss": [1.0, 2.0]}, seqs=[1, 2])
        writer.write(make_batch("w", 0, blocks=[block], runs=started))
        heard = reader.follow("r")
        first = [next(heard) for _ in range(3)]
        more = make_block("r", {"loss": [3.0]}, seqs=[3])
        later = threading.Timer(0.2, writer.write, [make_batch("w", 3, blocks=[more])])
        later.start()
        cursor, kind, row = next(heard)
        assert (kind, row["value"], row["seq"]) == ("point", 3.0, 3)
        heard.close()
        end = [{"run_id": "r", "status": "finished", "ended_at": 5, "seq": 4, "changed_at": 9**16}]
        writer.write(make_batch("w", 4, runs=end))
        rest = list(reader.follow("r", cursor))
        again = list(reader.follow("r"))
    assert sorted(kind for _, kind, _ in first) == ["point", "point", "status"]
    assert [(kind, row["status"]) for _, kind, row in rest] == [("status", "finished")]
    assert [row["value"] for _, kind, row in again if kind == "point"] == [1.0, 2.0, 3.0]
    with closing(RemoteBackend(url)) as reader, pytest.raises(RunNotFound):
        next(reader.follow("nobody"))
