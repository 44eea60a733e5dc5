"""What a server takes: points a second, bytes of a point, time of a request, memory, cost of log.

Client and server share the machine. What is counted as durable was acknowledged, so it is on the
server's disk; after each measurement the store is counted: nothing may be missing or twice.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import (
    Figures,
    Options,
    Result,
    at_least,
    at_most,
    for_information,
    fresh,
    in_turn,
    scratch,
)
from log import time_calls
from mix import NAMES, Training, write_journal

WRITERS = 4
CLIENTS = 200
RATE = {"parquet": 1.0, "sqlite": 0.3}  # millions of points a second
MEMORY_MB = 300
_LISTENS = re.compile(r"https?://[^\s\"]+:\d+")
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs: its address, a token for everything, its process and its store."""

    url: str
    token: str
    process: subprocess.Popen[str]
    store: str

    def peak_mb(self) -> float:
        """The most memory that the process has held."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else float("nan")

    def metric(self, name: str) -> float:
        """A figure of its page for Prometheus, summed over labels."""
        import httpx

        answer = httpx.get(f"{self.url}/metrics", headers=_bearer(self.token))
        lines = [line for line in answer.text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def serving(scheme: str) -> Iterator[Served]:
    """A real server on a new store, as the command starts it; stopped afterwards."""
    folder = scratch() / "server"
    folder.mkdir(exist_ok=True)
    store = f"sqlite:///{folder}/runs.sqlite" if scheme == "sqlite" else f"parquet:///{folder}/runs"
    state = folder / "state"
    command = [sys.executable, "-m", "tachograph"]
    name = ["token", "create", "bench", "--right", "admin", "--folder", str(state)]
    token = subprocess.run([*command, *name], capture_output=True, text=True, check=True).stdout
    log = open(folder / "log", "w")  # noqa: SIM115
    serve = ["serve", "--store", store, "--port", "0", "--folder", str(state)]
    process = subprocess.Popen([*command, *serve], stdout=log, stderr=log, text=True)
    try:
        url = _address(process, folder / "log")
        os.environ["TACHOGRAPH_TOKEN"] = token.strip()
        yield Served(url, token.strip(), process, store)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := _LISTENS.search(log.read_text()):
            return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def _count(store: str, run_id: str = "run") -> tuple[int, int]:
    """Points of a run in a store, and how many different ones."""
    from tachograph.backends.base import Condition, Query
    from tachograph.registry import open_backend

    backend = open_backend(store)
    columns = ["writer", "seq", "name"]
    found = backend.read(Query("all_metrics", [Condition("run_id", "=", run_id)], columns))
    backend.close()
    keys = set(zip(*(found[name] for name in columns), strict=True))
    return len(found), len(keys)


# ---------------------------------------------------------------------------- ingest


def ingest(scheme: str, calls: int) -> Figures:
    """Send journals that lie here, as `tachograph sync` does: until acknowledged, until stored."""
    from tachograph.delivery.drain import drain_orphans

    points = WRITERS * calls * len(NAMES)
    with serving(scheme) as served:
        folder = scratch() / "journal"
        for _ in range(WRITERS):
            write_journal(folder, served.url, calls)
        began = time.perf_counter()
        drained = drain_orphans(folder)
        acknowledged = time.perf_counter() - began
        if len(drained) < WRITERS:
            raise RuntimeError("not everything was sent")
        sent = served.metric("tachograph_received_bytes_total")
        peak = served.peak_mb()
        began_stop = time.perf_counter()
    stored = acknowledged + time.perf_counter() - began_stop
    found, different = _count(served.store)
    return {
        "acknowledged": points / acknowledged / 1e6,
        "stored": points / stored / 1e6,
        "bytes": sent / points,
        "peak": peak,
        "lost": points - different,
        "double": found - different,
    }


# ---------------------------------------------------------------------------- many clients


def many_clients(scheme: str, seconds: float) -> Figures:
    """Two hundred clients, each of which sends a step of twenty metrics each second."""
    with serving(scheme) as served:
        times, failed = asyncio.run(_clients(served, seconds))
        peak = served.peak_mb()
    times.sort()
    return {
        "p50": statistics.median(times) * 1e3,
        "p99": times[int(len(times) * 0.99)] * 1e3,
        "requests": len(times) / seconds,
        "failed": failed,
        "peak": peak,
    }


async def _clients(served: Served, seconds: float) -> tuple[list[float], int]:
    times: list[float] = []
    jobs = [_client(served, number, seconds, times) for number in range(CLIENTS)]
    return times, sum(await asyncio.gather(*jobs))


async def _client(served: Served, number: int, seconds: float, times: list[float]) -> int:
    """One connection that speaks plain HTTP, so that clients do not take the server's time."""
    from tachograph.records import Batch, MetricBlock, Series, now_us, uuid7
    from tachograph.wire.encoding import compress, encode

    training, writer, failed = Training(), uuid7(), 0
    series = Series(f"run{number}", NAMES)
    host, port = served.url.partition("//")[2].split(":")
    reader, stream = await asyncio.open_connection(host, int(port))
    begin = time.perf_counter() + number / CLIENTS
    for seq in range(round(seconds)):
        await asyncio.sleep(begin + seq - time.perf_counter())
        row = (seq, now_us(), seq, None, training.values())
        batch = Batch(writer, seq, seq + 1, (MetricBlock.pack(series, [row]),))
        body = compress(encode(batch))
        began = time.perf_counter()
        stream.write(_head(host, served.token, len(body)) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(_LENGTH.search(head)[1]))  # type: ignore[index]
        times.append(time.perf_counter() - began)
        failed += not head.startswith(b"HTTP/1.1 200")
    stream.close()
    return failed


def _head(host: str, token: str, size: int) -> bytes:
    from tachograph.wire.encoding import MEDIA_TYPE

    lines = ("POST /v1/batches HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}")
    lines += (f"Content-Type: {MEDIA_TYPE}", "Content-Encoding: deflate", f"Content-Length: {size}")
    return "\r\n".join((*lines, "", "")).encode()


# ---------------------------------------------------------------------------- the client's log


def log_cost(variant: str, calls: int) -> Figures:
    """One metric a call into 'local' (SQLite), 'server', or 'away' (nobody listens)."""
    os.environ["XDG_STATE_HOME"] = str(scratch() / "state-home")
    if variant == "server":
        with serving("sqlite") as served:
            return _time_log(served.url, calls)
    os.environ["TACHOGRAPH_TOKEN"] = "tacho_nobody"
    away = "http://127.0.0.1:9"
    return _time_log(away if variant == "away" else f"sqlite:///{scratch()}/runs.sqlite", calls)


def _time_log(url: str, calls: int) -> Figures:
    import tachograph

    run = tachograph.start_run(config={"backend": url, "record": {"exit_deadline": 1.0}})
    run.log({"warm": 0.0})
    time.sleep(2.0)
    figures = time_calls(run.log, 1, calls)
    run.finish()
    return figures


# ---------------------------------------------------------------------------- beside MLflow


def live(scheme: str, calls: int) -> Figures:
    """A training that logs as fast as it can, from the first call until all is acknowledged."""
    import tachograph

    os.environ["XDG_STATE_HOME"] = str(scratch() / "state-home")
    with serving(scheme) as served:
        training = Training()
        steps = [dict(zip(NAMES, training.values(), strict=True)) for _ in range(calls)]
        run = tachograph.start_run(config={"backend": served.url}, run_id="run")
        began = time.perf_counter()
        for step, values in enumerate(steps):
            run.log(values, step)
        run.finish()
        from tachograph.recorder import close_all

        close_all()
        seconds = time.perf_counter() - began
    return {"rate": calls * len(NAMES) / seconds}


MLFLOW = """
import json, sys, time, logging
import mlflow
from mlflow.entities import Metric
logging.getLogger("mlflow").setLevel(logging.ERROR)
url, mode, points = sys.argv[1], sys.argv[2], int(sys.argv[3])
mlflow.set_tracking_uri(url)
mlflow.set_experiment("bench")
run = mlflow.start_run()
client, began = mlflow.MlflowClient(), time.perf_counter()
if mode == "batch":
    for start in range(0, points, 1000):
        client.log_batch(run.info.run_id, [
            Metric(f"m{i % 20}", float(i), int(time.time() * 1000), (start + i) // 20)
            for i in range(1000)])
else:
    for step in range(points // 20):
        mlflow.log_metrics({f"m{i}": float(step) for i in range(20)}, step, synchronous=False)
    mlflow.flush_async_logging()
print(json.dumps({"rate": points / (time.perf_counter() - began)}))
"""


def mlflow(mode: str, points: int) -> Figures:
    """The same points into a real MLflow server on SQLite: 'batch' of 1,000, or 'async'."""
    import json
    import urllib.request

    python, folder = _mlflow_python(), scratch() / "mlflow"
    folder.mkdir()
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    port = "5057"
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        done = subprocess.run(
            [python, "-c", MLFLOW, url, mode, str(points)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    with sqlite3.connect(folder / "runs.db") as store:
        (stored,) = store.execute("select count(*) from metrics").fetchone()
    answer = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    figures: Figures = json.loads(answer)  # MLflow says something of its own behind it
    return figures | {"stored": stored}


def _mlflow_python() -> str:
    """A Python that has MLflow: the one that BENCH_MLFLOW_PYTHON names, or this one."""
    return os.environ.get("BENCH_MLFLOW_PYTHON", sys.executable)


def _has_mlflow() -> bool:
    command = [_mlflow_python(), "-c", "import mlflow"]
    seen = subprocess.run(command, capture_output=True, check=False)
    return seen.returncode == 0


# ---------------------------------------------------------------------------- lines


def results(options: Options) -> Iterator[Result]:
    """Ingest, many clients, the client's own cost, and MLflow beside it."""
    part = 5 if options.quick else 1
    for scheme, rate in RATE.items():
        take = partial(fresh, ingest, scheme=scheme, calls=100_000 // part)
        found = in_turn({scheme: take}, min(3, options.repeats))[scheme]
        note = f"all in the store: {found['stored']:.3g} M/s, lost {found['lost']:.0f}"
        note += f", double {found['double']:.0f}"
        yield at_least(f"{scheme}: acknowledged", found["acknowledged"], rate, "M points/s", note)
        yield at_most(f"{scheme}: lost or double", found["lost"] + found["double"], 0, "points")
        yield at_most(f"{scheme}: on the wire", found["bytes"], 5, "bytes/point")
        yield for_information(f"{scheme}: server's memory at most", found["peak"], "MB")
    for scheme in RATE:
        many = fresh(many_clients, scheme=scheme, seconds=20 / part + 5)
        note = f"p50 {many['p50']:.3g}, {many['requests']:.0f} requests/s"
        yield at_most(f"{CLIENTS} clients, {scheme}: a request", many["p99"], 250, "ms p99", note)
        yield at_most(f"{CLIENTS} clients, {scheme}: refused", many["failed"], 0, "requests")
        yield at_most(f"{CLIENTS} clients, {scheme}: memory", many["peak"], MEMORY_MB, "MB")
    yield from _log_lines(options, part)
    yield from _mlflow_lines(part)


def _log_lines(options: Options, part: int) -> Iterator[Result]:
    variants = ("local", "server", "away")
    found = in_turn(
        {v: partial(fresh, log_cost, variant=v, calls=100_000 // part) for v in variants},
        options.repeats,
    )
    local = found["local"]
    yield for_information("log, local store", local["p50"], "µs p50", f"p99 {local['p99']:.3g}")
    for variant in variants[1:]:
        here = found[variant]
        note = f"p99 {here['p99']:.3g}, {here['p50'] / local['p50']:.2f} x local"
        what = f"log, {'server there' if variant == 'server' else 'server away'}"
        yield at_most(what, here["p50"], 1.15 * local["p50"], "µs p50", note)


def _mlflow_lines(part: int) -> Iterator[Result]:
    if not _has_mlflow():
        yield Result("MLflow is not installed", "left out")
        return
    ours = fresh(live, scheme="sqlite", calls=50_000 // part)["rate"]
    yield for_information("a training into our server, SQLite", ours / 1e6, "M points/s")
    for mode in ("batch", "async"):
        theirs = fresh(mlflow, mode=mode, points=10_000 // part)
        note = f"{theirs['rate']:.0f} points/s, {theirs['stored']:.0f} stored"
        yield at_least(f"beside MLflow, {mode}", ours / theirs["rate"], 100, "times", note)
