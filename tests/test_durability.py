"""Nothing that was logged is lost or doubled: kills, forks, many writers, broken stores."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tachograph
from tachograph import journal, journal_reader, recorder
from tachograph.delivery import drain
from tachograph.errors import TachographWarning
from tachograph.records import Series, uuid7

STORES = ("sqlite", "parquet")

TRAINING = """
import mmap, struct, sys
import tachograph
run = tachograph.start_run(run_id=sys.argv[2], config={"backend": sys.argv[1]})
with open(sys.argv[3], "r+b") as file:
    acknowledged = mmap.mmap(file.fileno(), 8)
step = 0
while True:
    run.log({"loss": float(step), "step": step}, step=step)
    step += 1
    acknowledged[:] = struct.pack("<q", step)
"""


def store_url(kind: str, folder: Path) -> str:
    """The URL of a store below a folder."""
    return f"sqlite:///{folder}/runs.sqlite" if kind == "sqlite" else f"parquet:///{folder}/runs"


def steps_of(url: str, run_id: str, name: str = "loss") -> list[int]:
    """Steps of a series as a reader finds them."""
    store = tachograph.open(url)
    try:
        return list(store.series(run_id, name)["step"])
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_a_kill_loses_and_doubles_nothing(kind: str, tmp_path: Path) -> None:
    """A training killed at random times leaves every acknowledged point, once, and is lost."""
    url = store_url(kind, tmp_path)
    for number in range(5):
        counter = tmp_path / f"counter{number}"
        counter.write_bytes(bytes(8))
        child = subprocess.Popen(
            [sys.executable, "-c", TRAINING, url, f"run{number}", str(counter)],
            stderr=subprocess.DEVNULL,
        )
        while int.from_bytes(counter.read_bytes(), "little") == 0:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 3.0))
        child.kill()
        child.wait()
        with open(counter, "rb") as file:
            acknowledged = int.from_bytes(
                mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ), "little"
            )
        steps = steps_of(url, f"run{number}")
        assert steps == list(range(len(steps))), "a point is missing or appears twice"
        assert len(steps) in (acknowledged, acknowledged + 1)
    store = tachograph.open(url)
    statuses = {row["run_id"]: row["status"] for row in store.runs()}
    assert statuses == {f"run{number}": "lost" for number in range(5)}
    assert len(list(store.runs())) == 5
    store.close()


@pytest.mark.parametrize("kind", STORES)
def test_what_was_logged_is_read_while_the_training_goes_on(kind: str, tmp_path: Path) -> None:
    """A reader sees points at once, whatever the store has been given so far."""
    url = store_url(kind, tmp_path)
    run = tachograph.start_run(config={"backend": url})
    for step in range(100):
        run.log({"loss": 1.0}, step=step)
    assert steps_of(url, run.run_id) == list(range(100))
    run.finish()
    assert steps_of(url, run.run_id) == list(range(100))


def test_a_fork_records_into_the_same_run(tmp_path: Path) -> None:
    """A forked child is a writer of its own, and does not end the parent's run."""
    url = store_url("sqlite", tmp_path)
    run = tachograph.start_run(config={"backend": url})
    for step in range(50):
        run.log({"parent": 1.0}, step=step)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for step in range(50):
                run.log({"child": 1.0}, step=step)
            run.finish()
            recorder.close_all()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    for step in range(50, 100):
        run.log({"parent": 1.0}, step=step)
    store = tachograph.open(url)
    assert store.run(run.run_id).row["status"] == "running"
    store.close()
    run.finish()
    assert steps_of(url, run.run_id, "parent") == list(range(100))
    assert steps_of(url, run.run_id, "child") == list(range(50))


def _log_from_elsewhere(run: tachograph.Run, number: int) -> None:
    for step in range(200):
        run.log({f"m{number}": float(step)}, step=step)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_record_into_the_run_they_are_given(  # type: ignore[no-untyped-def]
    method: str, tmp_path: Path, monkeypatch
) -> None:
    """Workers of a pool get the run pickled; every point of all arrives once."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))  # spawned ones import this file
    url = store_url("sqlite", tmp_path)
    run = tachograph.start_run(config={"backend": url})
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_log_from_elsewhere, args=(run, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    run.finish()
    for number in range(3):
        assert steps_of(url, run.run_id, f"m{number}") == list(range(200))


MANY = """
import sys
import tachograph
config = {"backend": sys.argv[1], "record": {"exit_deadline": 100}}  # they share few cores
run = tachograph.start_run(run_id=sys.argv[2], config=config)
for step in range(300):
    run.log({"a": step, "b": -step}, step=step)
run.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_sixteen_processes_share_a_store(kind: str, tmp_path: Path) -> None:
    """16 processes that start at once on an absent store lose and double nothing."""
    url = store_url(kind, tmp_path)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, url, f"run{n}"], stderr=subprocess.PIPE, text=True
        )
        for n in range(16)
    ]
    for child in children:
        _, complaints = child.communicate(timeout=200)
        assert (child.returncode, complaints) == (0, "")
    store = tachograph.open(url)
    assert {row["status"] for row in store.runs()} == {"finished"}
    for number in range(16):
        assert list(store.series(f"run{number}", "b")["value"]) == [-float(s) for s in range(300)]
    store.close()


def test_a_store_that_cannot_be_made_costs_one_warning(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The training goes on, and what it logged waits where it can be kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "file").write_text("in the way")
    url = f"sqlite:///{tmp_path}/file/runs.sqlite"
    with pytest.warns(TachographWarning) as warned:
        run = tachograph.start_run(
            config={"backend": url, "record": {"exit_deadline": 0.5, "system": False}}
        )
        for step in range(100):
            run.log({"loss": 1.0}, step=step)
        run.finish()
    assert 1 <= len(warned) <= 2  # where the journal is; that the store cannot be written
    assert recorder.get_recorder(run.config).close(0.5) is False
    assert list((tmp_path / "state").rglob("*.journal"))


def test_a_store_deleted_in_mid_run_costs_one_warning(tmp_path: Path) -> None:
    """The training goes on and nothing raises."""
    url = store_url("sqlite", tmp_path / "gone")
    run = tachograph.start_run(config={"backend": url, "record": {"exit_deadline": 0.5}})
    run.log({"loss": 1.0}, step=0)
    recorder.get_recorder(run.config).flush(5)
    subprocess.run(["rm", "-rf", str(tmp_path / "gone")], check=True)
    with pytest.warns(TachographWarning) as warned:
        for step in range(1, 30):
            run.log({"loss": 1.0}, step=step)
            time.sleep(0.1)
        run.finish()
    assert len(warned) <= 2
    recorder.get_recorder(run.config).close(0.5)


def test_disabled_makes_everything_inert(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With TACHOGRAPH_DISABLED=1 no file appears and no call fails."""
    monkeypatch.setenv("TACHOGRAPH_DISABLED", "1")
    monkeypatch.chdir(tmp_path)
    with tachograph.start_run(project="p", params={"lr": 1}, tags=["t"]) as run:
        run.log({"loss": 1.0}, step=1)
        run.note("nothing")
        with run.child("trial") as child:
            child.log({"loss": 1.0})
        run.log_artifact(tmp_path)
    assert list(tmp_path.iterdir()) == []


SECRET = "ghp_" + "Zk3" * 12


@pytest.mark.parametrize("kind", STORES)
def test_planted_secrets_reach_no_byte_of_the_store(kind: str, tmp_path: Path) -> None:
    """Secrets in environment, arguments, parameters, notes, tags and errors are taken out."""
    url = store_url(kind, tmp_path / "store")
    code = (
        "import tachograph, sys, json\n"
        "run = tachograph.start_run(config={'backend': sys.argv[1]},\n"
        "    params=json.loads(sys.argv[2]), notes='use ' + sys.argv[3], tags={'t': sys.argv[3]})\n"
        "print(run.run_id)\n"
        "run.finish('failed', ValueError('bad token=' + sys.argv[3]))\n"
    )
    params = json.dumps({"api_key": "plain-looking-secret-77", "url": "https://me:pw-55-x@h/x"})
    done = subprocess.run(
        [sys.executable, "-c", code, url, params, SECRET, f"--token={SECRET}"],
        env=os.environ | {"GITHUB_TOKEN": SECRET, "SLURM_NOTE": f"token={SECRET}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    content = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert content
    if kind == "parquet":  # pages are compressed: look at the values
        store = tachograph.open(url)
        run_id = done.stdout.strip()
        content += str([store.run(run_id).params, store.run(run_id).events]).encode()
        content += str([dict(r) for r in store.backend.read(_everything("provenance"))]).encode()
        content += str([dict(r) for r in store.backend.read(_everything("params"))]).encode()
        content += str([dict(r) for r in store.backend.read(_everything("events"))]).encode()
        store.close()
    for secret in (SECRET, "plain-looking-secret-77", "pw-55-x"):
        assert secret.encode() not in content


def _everything(table: str):  # type: ignore[no-untyped-def]
    from tachograph.backends.base import Query

    return Query(table, raw=True)


def test_a_damaged_header_does_not_cost_the_journal(tmp_path: Path) -> None:
    """A journal that cannot say where it goes is sent to the store it is asked for, not deleted."""
    url = store_url("sqlite", tmp_path)
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))
    child = subprocess.Popen([sys.executable, "-c", TRAINING, url, "it", str(counter)])
    while int.from_bytes(counter.read_bytes(), "little") < 100:
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    (journal,) = (tmp_path / ".tachograph/journal").glob("*.journal")
    content = bytearray(journal.read_bytes())
    content[30] ^= 1
    journal.write_bytes(content)
    steps = steps_of(url, "it")
    assert steps == list(range(len(steps)))
    assert len(steps) >= 100


def test_a_writer_that_went_on_in_another_part_is_no_orphan(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Who listed the parts before a live writer cut one does not take its journal away."""
    monkeypatch.setattr(journal, "PART_BYTES", 4096)
    writer = journal.JournalWriter(tmp_path, uuid7(), {"sinks": ["memory://orphan"]})
    handle = writer.series(Series("it", ("loss",)))
    while writer.part == 0:
        writer.append_points(handle, 0, None, [1.0])
    with drain.orphan(tmp_path, writer.writer, [0]) as facts:
        assert facts is None
    writer.close()
    with drain.orphan(tmp_path, writer.writer, [0, 1]) as facts:
        assert facts is not None


DRAINER = """
import sys, time
from pathlib import Path
import tachograph
from tachograph.backends import parquet
parquet.ParquetBackend.batch_bytes = 20_000
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
store = tachograph.open(sys.argv[1])
print(len(store.series("it", "loss")))
"""


@pytest.mark.slow
def test_a_dead_journal_is_sent_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Processes that open a store at the same moment do not double what a dead one left."""
    url = store_url("parquet", tmp_path)
    training = (
        "import os, sys, tachograph\n"
        "run = tachograph.start_run(run_id='it', config={'backend': sys.argv[1]})\n"
        "for step in range(30_000):\n    run.log({'loss': 1.0}, step=step)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", training, url], check=False)
    start = time.time() + 2.0
    drainers = [
        subprocess.Popen(
            [sys.executable, "-c", DRAINER, url, str(start + 0.2 * n)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    for drainer in drainers:
        assert drainer.communicate(timeout=60) == ("30000\n", "")


def test_many_dead_journals_for_a_store_that_is_down_are_one_warning(tmp_path: Path) -> None:
    """Hundreds of workers leave as many; what a training hears is that the store is down."""
    (tmp_path / "file").write_text("in the way")
    url = f"sqlite:///{tmp_path}/file/runs.sqlite"
    for _ in range(3):
        dead = journal.JournalWriter(tmp_path / "journal", uuid7(), {"sinks": [url]})
        dead.append_points(dead.series(Series("it", ("loss",))), 0, None, [1.0])
        dead.close()
    with pytest.warns(TachographWarning, match="cannot be sent to") as warned:
        assert drain.drain_orphans(tmp_path / "journal") == []
    assert len(warned) == 1
    assert len(journal_reader.list_journals(tmp_path / "journal")) == 3


def test_a_store_that_is_down_holds_up_the_first_run_only(tmp_path: Path) -> None:
    """Folds and trials by the hundred must not each wait for a store that does not answer."""
    (tmp_path / "file").write_text("in the way")
    stores = [store_url("sqlite", tmp_path), f"sqlite:///{tmp_path}/file/runs.sqlite"]
    config = {"backend": stores, "record": {"exit_deadline": 5.0, "system": False}}
    with pytest.warns(TachographWarning, match="cannot be written"):
        run = tachograph.start_run(config=config)
        started = time.monotonic()
        for _ in range(4):
            run.child("fold").finish()
        run.finish()
        assert time.monotonic() - started < 5.0
    assert tachograph.open(stores[0]).run(run.run_id).status == "finished"
    recorder.get_recorder(run.config).close(0.5)
