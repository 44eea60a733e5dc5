"""The training does not notice its server, whatever is wrong with it, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty import FAULTS, FaultyServer

import tachograph
from tachograph import recorder
from tachograph.backends import remote
from tachograph.backends.remote_http import Patience
from tachograph.delivery import drain, drain_thread, outbox
from tachograph.errors import StoreError, TachographWarning
from tachograph.journal_reader import list_journals, read_batches

STEPS = 500
DEADLINE = 0.5

TRAINING = """
import json, sys, time
import tachograph
from tachograph.delivery import drain_thread

drain_thread.TICK_SECONDS = 0.05  # the server is tried from the first steps on
url, run_id, steps, deadline = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
config = {"backend": url, "record": {"exit_deadline": deadline}}
began = time.perf_counter()
run = tachograph.start_run(run_id=run_id, config=config)
start, weight, times = time.perf_counter() - began, 1.0, []
for step in range(steps):
    began = time.perf_counter()
    for number in range(8_000):
        weight = (weight * 1.000001 + number) % 17.0
    run.log({"loss": weight, "accuracy": 1.0 / (1.0 + weight)}, step=step)
    times.append(time.perf_counter() - began)
print(json.dumps({"start": start, "weight": weight.hex(), "times": times}))
print(time.time(), flush=True)
run.finish()
"""


@dataclass
class Training:
    """What a training did.

    Attributes
    ----------
    start : float
        Seconds that `start_run` took.
    weight : str
        What it has learnt, to the bit.
    times : list of float
        Seconds of each step.
    ending : float
        Seconds from the last step to the end of the process.
    status : int
    said : list of str
        Lines on stderr.
    """

    start: float
    weight: str
    times: list[float]
    ending: float
    status: int
    said: list[str]

    @property
    def median(self) -> float:
        """Seconds of a usual step."""
        return statistics.median(self.times)

    @property
    def slow(self) -> float:
        """Seconds that one step in a hundred takes, or more."""
        return p99(self.times)


def p99(times: list[float]) -> float:
    """What one in a hundred takes, or more."""
    return statistics.quantiles(times, n=100)[-1]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's state folder, which all trainings here share."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def journals(state: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals lie; this process too works there, with a token."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("TACHOGRAPH_TOKEN", server.token)
    return state / "tachograph" / "journal"


def train(url: str, run_id: str, state: Path, token: str) -> Training:
    """Train in a process of its own, which records to a store."""
    environment = os.environ | {"XDG_STATE_HOME": str(state), "TACHOGRAPH_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, url, run_id, str(STEPS), str(DEADLINE)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ended = time.time()
    figures, ending = done.stdout.splitlines()
    said = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    return Training(
        **json.loads(figures), ending=ended - float(ending), status=done.returncode, said=said
    )


@pytest.fixture(scope="module")
def faulty_servers(server: Any) -> Iterator[dict[str, FaultyServer]]:
    """One for each fault, all in front of the same real server."""
    made = {fault: FaultyServer(fault, server.port) for fault in FAULTS}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture(scope="module")
def trainings(
    tmp_path_factory: pytest.TempPathFactory,
    faulty_servers: dict[str, FaultyServer],
    state: Path,
    server: Any,
) -> dict[str, Training]:
    """One for each fault, and one that records to a file, all at the same time."""
    urls = {fault: one.url for fault, one in faulty_servers.items()}
    urls["none"] = f"sqlite:///{tmp_path_factory.mktemp('local')}/runs.sqlite"
    with ThreadPoolExecutor(len(urls)) as pool:
        started = {
            fault: pool.submit(train, url, f"run-{fault}", state, server.token)
            for fault, url in urls.items()
        }
        return {fault: training.result() for fault, training in started.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_goes_on_as_without_a_server(
    fault: str,
    trainings: dict[str, Training],
    faulty_servers: dict[str, FaultyServer],
    journals: Path,
) -> None:
    """As quick, as exact, with one warning at most; it ends in time, and its record is safe."""
    training, undisturbed = trainings[fault], trainings["none"]
    assert training.status == 0
    assert training.weight == undisturbed.weight
    # Wide limits, for a busy machine: who waited for a server would wait for seconds.
    # benchmarks/server_faults.py has the figures.
    assert training.median < 3.0 * undisturbed.median + 0.005
    assert training.slow < 3.0 * undisturbed.slow + 0.5
    assert training.start < 3.0 * undisturbed.start + 2.0
    assert training.ending < DEADLINE + 4.0
    warned = [line for line in training.said if "Warning: Tachograph: " in line]
    told = [line for line in training.said if line.startswith("tachograph: ")]
    assert (len(warned) + len(told), len(told)) == (len(training.said), 1), training.said
    assert len(warned) <= 1
    assert "tachograph sync" in told[0]
    waiting = [
        step
        for writer in drain.writers_for(journals, faulty_servers[fault].url)
        for batch in read_batches(journals, writer, 0, 1 << 20)
        for block in batch.blocks
        if "loss" in block.series.names
        for step in (row[2] for row in block.unpack())
    ]
    assert waiting == list(range(STEPS))


def test_a_server_that_comes_back_gets_everything_once(
    trainings: dict[str, Training],
    faulty_servers: dict[str, FaultyServer],
    journals: Path,
    server: Any,
) -> None:
    """All that the trainings above left, from another process, in one go."""
    for one in faulty_servers.values():
        one.heal()
    left = list_journals(journals)
    assert len(left) == len(FAULTS)
    assert sorted(drain.drain_orphans(journals)) == sorted(left)
    assert list_journals(journals) == {}
    with tachograph.open(server.url) as store:
        for fault in FAULTS:
            found = store.series(f"run-{fault}", "loss")
            assert list(found["step"]) == list(range(STEPS))
            assert store.run(f"run-{fault}").status == "finished"


FITS = """
import json, sys, time
import numpy, xgboost
from tachograph.delivery import drain_thread
from tachograph.callbacks import XGBoostCallback

drain_thread.TICK_SECONDS = 0.05

class Clock(xgboost.callback.TrainingCallback):
    def __init__(self):
        self.times, self.last = [], time.perf_counter()
    def after_iteration(self, model, epoch, evals_log):
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.last = now

source = numpy.random.default_rng(0)
data = xgboost.DMatrix(source.normal(size=(1000, 10)), source.normal(size=1000))

def fit(*callbacks):
    clock = Clock()
    model = xgboost.train({"nthread": 1, "max_depth": 4}, data, 100, evals=[(data, "train")],
                          callbacks=[*callbacks, clock], verbose_eval=False)
    return {"model": model.save_raw().hex(), "times": clock.times}

fits = [fit()]
for number, url in enumerate(sys.argv[1:]):
    config = {"backend": url, "record": {"exit_deadline": 0.5}}
    fits.append(fit(XGBoostCallback(config=config, name=f"fit-{number}")))
print(json.dumps(fits))
"""


@pytest.mark.slow
def test_a_fit_of_a_framework_goes_on_as_without_a_server(
    journals: Path, server: Any, tmp_path: Path
) -> None:
    """The same model to the bit and the same times of its iterations, whatever the server does."""
    faulty = [FaultyServer(fault, server.port) for fault in FAULTS]
    urls = [f"sqlite:///{tmp_path}/runs.sqlite", *(one.url for one in faulty)]
    done = subprocess.run(
        [sys.executable, "-c", FITS, *urls], capture_output=True, text=True, check=True, timeout=120
    )
    bare, local, *fits = json.loads(done.stdout)
    median, slow = (
        max(measure(one["times"]) for one in (bare, local)) for measure in (statistics.median, p99)
    )
    for fault, fit in zip(FAULTS, fits, strict=True):
        assert fit["model"] == bare["model"], fault
        assert statistics.median(fit["times"]) < 3.0 * median + 0.005, fault
        assert p99(fit["times"]) < 3.0 * slow + 0.5, fault
    warned = [line for line in done.stderr.splitlines() if "Warning: Tachograph: " in line]
    assert len(warned) <= len(FAULTS)
    for one in faulty:
        one.heal()
    assert len(drain.drain_orphans(journals)) == len(FAULTS)
    with tachograph.open(server.url) as store:
        for number, one in enumerate(faulty, 1):
            run = store.run(f"fit-{number}")
            assert run.status == "finished"
            assert list(store.series(run.run_id, "rmse")["step"]) == list(range(100))
            one.close()


# ---------------------------------------------------------------------------- the rest of a process


ENDING = """
import os, sys, time
import tachograph
from tachograph.delivery import drain_thread
drain_thread.TICK_SECONDS = 0.05
run = tachograph.start_run(run_id=sys.argv[2], config={
    "backend": sys.argv[1], "record": {"exit_deadline": 0.5, "system": False}
})
run.log({"parent": 1.0}, step=0)
began = time.perf_counter()
run.log_artifact(sys.argv[3])
assert time.perf_counter() - began < 0.5
time.sleep(0.5)  # by now the server holds a request and does not answer
if os.fork() == 0:
    run.log({"child": 1.0}, step=0)
    sys.exit()
os.wait()
print(time.time(), flush=True)
"""


def test_a_process_ends_though_its_server_hangs(
    journals: Path, state: Path, server: Any, tmp_path: Path
) -> None:
    """Without a word from us to end the run, with a fork, and with a file on its way."""
    model = tmp_path / "model.bin"
    model.write_bytes(b"weights")
    with FaultyServer("hanging", server.port) as faulty:
        done = subprocess.run(
            [sys.executable, "-c", ENDING, faulty.url, "ending", str(model)],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert time.time() - float(done.stdout) < DEADLINE + 4.0
        lines = done.stderr.splitlines()
        assert [line[:38] for line in lines] == ["tachograph: not everything has reached"] * 2
        faulty.heal()
        (command,) = re.findall(r"`tachograph (sync .*)`", lines[1])
        sync = [sys.executable, "-m", "tachograph", *shlex.split(command)]
        subprocess.run(sync, env=os.environ, cwd=tmp_path, check=True, capture_output=True)
        assert list_journals(journals) == {}
        assert outbox.waiting(journals) == []
        with tachograph.open(faulty.url) as store:
            assert (
                len(store.series("ending", "parent")) == len(store.series("ending", "child")) == 1
            )
            assert store.run("ending").status == "finished"
            (artifact,) = store.run("ending").artifacts
            with store.open_artifact(artifact["sha256"]) as file:
                assert file.read() == b"weights"


def test_a_server_that_hangs_holds_up_no_other_store(
    journals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file beside it, nor the flush to the disk each second."""
    monkeypatch.setattr(drain_thread, "TICK_SECONDS", 0.05)
    local = f"sqlite:///{tmp_path}/runs.sqlite"
    with FaultyServer("hanging") as faulty:
        config = {"backend": [faulty.url, local], "record": {"exit_deadline": 0.1, "system": False}}
        run = tachograph.start_run(config=config)
        for step in range(100):
            run.log({"loss": 1.0}, step=step)
        recorded = run._recorder.journal.next_seq
        thread: Any = run._recorder._drain
        deadline = time.monotonic() + 10.0
        while thread._synced_seq < recorded or thread.confirmed(local) < recorded:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert thread.confirmed(faulty.url) == 0
        assert run._recorder.backlog()["waiting_bytes"] > 1000
        run.finish()
        assert tachograph.open(local).run(run.run_id).status == "finished"


def test_a_run_that_is_resumed_without_its_server_is_another_attempt(
    journals: Path, tmp_path: Path
) -> None:
    """What waits for the server says which attempts there were."""
    with FaultyServer("refusing") as faulty:
        config = {"backend": faulty.url, "record": {"exit_deadline": 0.1, "system": False}}
        with pytest.warns(TachographWarning):
            with tachograph.start_run(run_id="again", config=config) as run:
                assert run.attempt == 1
            with tachograph.start_run(run_id="again", config=config, resume=True) as run:
                assert run.attempt == 2
            recorder.close_all()
    for path in journals.glob("*.journal"):
        path.unlink()


# ---------------------------------------------------------------------------- what others left


LEFT = """
import os, sys
import tachograph
run = tachograph.start_run(run_id=sys.argv[1], config={
    "backend": sys.argv[2:], "record": {"system": False}
})
for step in range(100):
    run.log({"loss": 1.0}, step=step)
os.kill(os.getpid(), 9)
"""


def leave(run_id: str, *urls: str) -> None:
    """Have a process die that recorded for these stores."""
    subprocess.run([sys.executable, "-c", LEFT, run_id, *urls], env=os.environ, check=False)


def test_what_is_left_for_a_dead_server_holds_up_nobody(
    journals: Path, server: Any, tmp_path: Path
) -> None:
    """Who reads the local store, or starts a training, gets what is there at once."""
    local = f"sqlite:///{tmp_path}/runs.sqlite"
    with FaultyServer("absent", server.port) as faulty:
        for number in range(3):
            leave(f"left-{number}", local, faulty.url)
        began = time.monotonic()
        with tachograph.open(local) as store:
            assert [row["status"] for row in store.runs()] == ["lost"] * 3
            assert len(store.series("left-0", "loss")) == 100
        config = {"backend": [local, faulty.url], "record": {"exit_deadline": 0.1, "system": False}}
        with tachograph.start_run(config=config) as run:
            assert time.monotonic() - began < 4.0
            run.log({"loss": 1.0}, step=0)
        recorder.close_all()
        folder = tmp_path / ".tachograph" / "journal"
        assert len(list_journals(folder)) == 4
        faulty.heal()
        assert len(drain.drain_orphans(folder)) == 3  # this process lives
        with tachograph.open(faulty.url) as store:
            assert [len(store.series(f"left-{n}", "loss")) for n in range(3)] == [100] * 3
            assert store.run("left-0").status == "lost"


def test_a_training_sends_what_others_left_for_its_server(
    journals: Path, server: Any, tmp_path: Path
) -> None:
    """And nothing of what is meant for another, or does not say for whom it is."""
    with FaultyServer(None, server.port) as other:
        leave("mine", server.url)
        leave("theirs", other.url)
        leave("whose", other.url)
        damaged = max(journals.glob("*.journal"), key=lambda path: path.stat().st_mtime)
        content = bytearray(damaged.read_bytes())
        content[30] ^= 1
        damaged.write_bytes(content)
        connections = other.connections
        config = {"backend": server.url, "record": {"system": False}}
        with tachograph.start_run(config=config), tachograph.open(server.url) as store:
            deadline = time.monotonic() + 60.0
            while len(list_journals(journals)) > 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert store.run("mine").status == "lost"
            assert {"theirs", "whose"}.isdisjoint(store.runs()["run_id"])
        recorder.close_all()
        assert len(list_journals(journals)) == 2
        assert other.connections == connections
    for path in journals.glob("*.journal"):
        path.unlink()


def test_reading_from_a_server_that_is_away_fails_at_once(
    journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something waits for it; the error says what is wrong."""
    monkeypatch.setattr(remote, "GREETING", Patience(connect=1.0, silence=1.0, total=2.0))
    for fault, said in (("refusing", "nothing listens"), ("hanging", "said nothing for 1 s")):
        with FaultyServer(fault) as faulty:
            leave("waits", faulty.url)
            began = time.monotonic()
            with pytest.raises(StoreError, match=said):
                tachograph.open(faulty.url)
            assert time.monotonic() - began < 4.0
    for path in journals.glob("*.journal"):
        path.unlink()
