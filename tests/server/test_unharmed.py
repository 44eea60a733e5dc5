"""The training does not notice its server, whatever is wrong with it, and nothing is lost."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty import FAULTS, FaultyServer

import tachograph
from tachograph import drain
from tachograph.journal_reader import list_journals

STEPS = 400
DEADLINE = 1.0

TRAINING = """
import json, sys, time
import tachograph

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
        return statistics.quantiles(self.times, n=100)[-1]


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


def train(url: str, run_id: str, state: Path, token: str = "", steps: int = STEPS) -> Training:
    """Train in a process of its own, which records to a store."""
    environment = os.environ | {"XDG_STATE_HOME": str(state), "TACHOGRAPH_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, url, run_id, str(steps), str(DEADLINE)],
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
def undisturbed(tmp_path_factory: pytest.TempPathFactory, state: Path) -> Training:
    """A training that records to a file."""
    return train(f"sqlite:///{tmp_path_factory.mktemp('local')}/runs.sqlite", "local", state)


@pytest.fixture(scope="module")
def faulty_servers(server: Any) -> Iterator[dict[str, FaultyServer]]:
    """One for each fault, all in front of the same real server."""
    made = {fault: FaultyServer(fault, server.port) for fault in FAULTS}
    yield made
    for one in made.values():
        one.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_goes_on_as_without_a_server(
    fault: str,
    faulty_servers: dict[str, FaultyServer],
    undisturbed: Training,
    journals: Path,
    state: Path,
    server: Any,
) -> None:
    """As quick, as exact, with one warning at most; it ends in time, and its record is safe."""
    url = faulty_servers[fault].url
    training = train(url, f"run-{fault}", state, server.token)
    assert training.status == 0
    assert training.weight == undisturbed.weight
    assert training.median < 1.5 * undisturbed.median + 0.001
    assert training.slow < 3.0 * undisturbed.slow + 0.02
    assert training.start < undisturbed.start + 0.5
    assert training.ending < DEADLINE + 2.0
    warned = [line for line in training.said if "Warning: Tachograph: " in line]
    told = [line for line in training.said if line.startswith("tachograph: ")]
    assert (len(warned) + len(told), len(told)) == (len(training.said), 1), training.said
    assert len(warned) <= 1
    assert "tachograph sync" in told[0]
    waiting = [
        step
        for batch in drain.pending_batches(journals, url, {})
        for block in batch.blocks
        if "loss" in block.series.names
        for step in (row[2] for row in block.unpack())
    ]
    assert waiting == list(range(STEPS))


def test_a_server_that_comes_back_gets_everything_once(
    faulty_servers: dict[str, FaultyServer], journals: Path, server: Any
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
