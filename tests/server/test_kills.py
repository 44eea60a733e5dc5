"""Nothing that was logged is lost or doubled, however often servers and trainings are killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tachograph import registry
from tachograph.backends.base import Condition, Query

CLIENTS = 8
KILLED_CLIENTS = 4
KILLS = 10

CLIENT = """
import mmap, struct, sys, time
from pathlib import Path
import tachograph
url, run_id, counter, stop = sys.argv[1:]
config = {"backend": url, "record": {"exit_deadline": 60, "system": False, "code": "allow"}}
run = tachograph.start_run(run_id=run_id, config=config)
with open(counter, "r+b") as file:
    acknowledged = mmap.mmap(file.fileno(), 8)
step, stop = 0, Path(stop)
while not stop.exists():
    for _ in range(100):
        run.log({"loss": float(step), "step": step}, step=step)
        step += 1
        acknowledged[:] = struct.pack("<q", step)
    time.sleep(0.05)
run.finish()
"""


class Client:
    """A training that counts what was logged."""

    def __init__(self, url: str, number: int, folder: Path, environment: dict[str, str]) -> None:
        self.run_id = f"run{number}"
        self.lost = False
        self._counter = folder / f"counter{number}"
        self._counter.write_bytes(bytes(8))
        command = [sys.executable, "-c", CLIENT, url, self.run_id, str(self._counter)]
        self.process = subprocess.Popen(
            [*command, str(folder / "stop")], env=environment, stderr=subprocess.PIPE, text=True
        )

    @property
    def logged(self) -> int:
        """Calls of `log` that have returned."""
        return int.from_bytes(self._counter.read_bytes(), "little")

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()
        self.lost = True


@pytest.mark.slow
def test_kills_lose_and_double_nothing(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Eight trainings record; the server is killed ten times, and four of them once.

    What those four leave is sent by another process. Then each store of the server holds each
    acknowledged record once, in its order. The cursors that count are those of the Parquet one.
    """
    parquet, sqlite = f"parquet:///{tmp_path}/runs", f"sqlite:///{tmp_path}/runs.sqlite"
    server = serve(parquet, ["--store", sqlite])
    environment = os.environ | {
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TACHOGRAPH_TOKEN": server.token,
    }
    clients = [Client(server.url, n, tmp_path, environment) for n in range(CLIENTS)]
    for kill in range(KILLS):
        time.sleep(random.uniform(0.1, 0.8))
        server.kill()
        if kill % 2 and kill // 2 < KILLED_CLIENTS:
            clients[kill // 2].kill()
        server.start()
    (tmp_path / "stop").touch()
    for client in clients:
        _, said = client.process.communicate(timeout=60)
        assert client.lost or client.process.returncode == 0, said
        assert said.count("tachograph:") == said.count("it is safe in"), (
            said
        )  # a server that starts
    sync = [sys.executable, "-m", "tachograph", "sync", "--store", server.url]
    done = subprocess.run(sync, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "state").rglob("*.journal"))
    assert server.stop() == 0
    while list(server.folder.rglob("*.journal")):  # what a busy machine did not store in time
        server.start()
        assert server.stop() == 0
    for store in (parquet, sqlite):
        for client in clients:
            check(store, client)


def check(store: str, client: Client) -> None:
    """A store has all that the training logged, once, in order."""
    backend = registry.open_backend(store)
    try:
        losses = [Condition("run_id", "=", client.run_id), Condition("name", "=", "loss")]
        query = Query("all_metrics", losses, ["step", "value"], order=["seq"])
        steps = list(backend.read(query)["step"])
        assert steps == list(range(len(steps))), "a point is missing, doubled or out of order"
        assert len(steps) in (client.logged, client.logged + client.lost)
        assert len(steps) > 1000
        (summary,) = backend.read(Query("summaries", losses))
        assert summary["count"] == len(steps)
        (run,) = backend.read(Query("runs", losses[:1]))
        assert run["status"] == ("lost" if client.lost else "finished")
    finally:
        backend.close()
