"""Laws of sending later: all arrives once, a bad journal stops no other, a repeat finds nothing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tachograph
from tachograph import host, registry
from tachograph.backends.base import Backend, Query
from tachograph.backends.memory import MemoryBackend
from tachograph.cli import main
from tachograph.delivery import outbox, patience
from tachograph.delivery.drain import alone
from tachograph.delivery.patience import write_patiently
from tachograph.errors import Busy, ConfigError, Full
from tachograph.journal import JournalWriter, part_path
from tachograph.reading import portions
from tachograph.records import Batch, Series, now_us, uuid7
from tachograph.testing.builders import dump
from tachograph.transfer.syncing import Verdict, local_store, send_files, send_journals, send_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where journals lie."""
    return tmp_path / "journal"


def store_in(folder: Path, name: str = "runs") -> str:
    """The URL of an SQLite store."""
    return f"sqlite:///{folder}/{name}.sqlite"


def record(
    folder: Path, *urls: str, points: int = 3, facts: dict[str, object] | None = None
) -> str:
    """The journal of a process that has recorded a run and is gone; returns its writer."""
    writer = leave_open(folder, *urls, points=points, facts=facts)
    writer.close()
    return writer.writer


def leave_open(
    folder: Path, *urls: str, points: int = 3, facts: dict[str, object] | None = None
) -> JournalWriter:
    """The journal of a process that still runs."""
    writer = JournalWriter(folder, uuid7(), {"sinks": urls, **(facts or {})})
    run = {"run_id": writer.writer, "root_id": writer.writer, "status": "running"}
    change = {"changed_at": now_us(), "started_at": now_us()}
    writer.append_rows("runs", [run | change])
    writer.append_rows("attempts", [run | change | {"attempt": 1, "root_id": None}])
    handle = writer.series(Series(writer.writer, ("loss",)))
    for step in range(points):
        writer.append_points(handle, step, None, [step / 2])
    return writer


def steps(url: str) -> dict[str, list[int]]:
    """The steps that a store has of each run, in order."""
    backend = registry.open_backend(url)
    found: dict[str, list[int]] = {}
    for row in backend.read(Query("metrics", order=["seq"])):
        found.setdefault(row["run_id"], []).append(row["step"])
    backend.close()
    return found


def outcomes(verdicts: list[Verdict]) -> dict[str, str]:
    """Writer to what became of its journal."""
    return {verdict.writer: verdict.outcome for verdict in verdicts}


# ---------------------------------------------------------------------------- journals


def test_what_is_left_behind_is_sent_once(folder: Path, tmp_path: Path) -> None:
    """Journals of several processes, one for two stores; a repeat finds nothing."""
    one, two = store_in(tmp_path, "one"), store_in(tmp_path, "two")
    first, second = record(folder, one), record(folder, one, two, points=5)
    seen: list[tuple[str, int, int]] = []
    verdicts = send_journals(folder, lambda *told: seen.append(told))
    assert outcomes(verdicts) == {first: "sent", second: "sent"}
    assert {verdict.writer: verdict.records for verdict in verdicts}[second] >= 2 * 5
    assert steps(one) == {first: [0, 1, 2], second: [0, 1, 2, 3, 4]}
    assert steps(two) == {second: [0, 1, 2, 3, 4]}
    assert seen == sorted(seen)
    assert seen[-1][1] == seen[-1][2] == sum(v.bytes * len(v.stores) for v in verdicts)
    assert send_journals(folder) == []
    with tachograph.open(one) as store:
        assert set(store.runs()["status"]) == {"lost"}


def test_one_bad_journal_stops_no_other(folder: Path, tmp_path: Path) -> None:
    """A store that cannot be made, and a header that is damaged, are named; the rest is sent."""
    (tmp_path / "file").touch()
    good, bad = store_in(tmp_path), f"sqlite:///{tmp_path}/file/runs.sqlite"
    first, both, last = record(folder, good), record(folder, bad, good), record(folder, good)
    damaged = record(folder, good)
    with part_path(folder, damaged, 0).open("r+b") as file:
        file.seek(20)
        file.write(b"\xff" * 40)
    verdicts = {verdict.writer: verdict for verdict in send_journals(folder)}
    assert outcomes([*verdicts.values()]) == {
        first: "sent",
        both: "waiting",
        last: "sent",
        damaged: "waiting",
    }
    assert bad in verdicts[both].problem
    assert "does not say where it goes" in verdicts[damaged].problem
    assert set(steps(good)) == {first, both, last}, "the other store of the bad one has it too"
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    assert outcomes(send_journals(folder)) == {both: "sent", damaged: "waiting"}
    assert steps(bad) == {both: [0, 1, 2]}
    assert {run: len(found) for run, found in steps(good).items()} == {first: 3, both: 3, last: 3}


def test_who_still_runs_sends_for_himself(folder: Path, tmp_path: Path) -> None:
    """Journals of live processes and of other machines are counted and left alone."""
    url = store_in(tmp_path)
    process = {"host": host.host_name(), "pid": os.getpid(), "boot_id": host.boot_id()}
    here = leave_open(folder, url, facts=process)
    there = leave_open(folder, url, facts=process | {"host": "elsewhere"})
    gone = record(folder, url)
    verdicts = send_journals(folder)
    assert outcomes(verdicts) == {here.writer: "running", there.writer: "elsewhere", gone: "sent"}
    assert all(verdict.bytes > 100 for verdict in verdicts)
    assert set(steps(url)) == {gone}
    here.close()
    there.close()


def test_journals_are_sent_by_one_process_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process sends now is waiting, and says why."""
    writer = record(folder, store_in(tmp_path))
    monkeypatch.setattr("tachograph.transfer.syncing.LOCK_SECONDS", 0.0)
    with alone(folder, 0.0) as is_alone:
        assert is_alone
        (verdict,) = send_journals(folder)
    assert (verdict.writer, verdict.outcome) == (writer, "waiting")
    assert "another process" in verdict.problem
    assert outcomes(send_journals(folder)) == {writer: "sent"}


def test_interrupted_sending_goes_on(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C after any piece of it leaves everything consistent; the next one finishes."""
    url = store_in(tmp_path)
    writers = {record(folder, url) for _ in range(3)}

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            send_journals(folder, interrupt)
    assert set(outcomes(send_journals(folder))) == writers
    assert steps(url) == {writer: [0, 1, 2] for writer in writers}


def test_whoever_has_time_waits_for_a_busy_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is at its limit is asked again when it said; not for ever."""

    class Limited(MemoryBackend):
        left = 3
        answer: type[Busy] = Busy

        def write(self, batch: Batch) -> int:
            if self.left:
                self.left -= 1
                raise self.answer("the token's share is used up", 0.01)
            return super().write(batch)

    backend = Limited("memory://busy", create=True)
    assert write_patiently(backend, Batch("w", 0, 5)) == 5
    backend.left = 10_000
    with pytest.raises(Busy):
        write_patiently(backend, Batch("w", 5, 6), longest=0.05)
    assert patience.LONGEST > 60
    backend.left, backend.answer = 1, Full
    with pytest.raises(Full):
        write_patiently(backend, Batch("w", 5, 6))


# ---------------------------------------------------------------------------- files


def test_files_of_the_outbox_are_sent(folder: Path, tmp_path: Path) -> None:
    """A file for two stores, of which one is not there yet, then is."""
    (tmp_path / "file").touch()
    (tmp_path / "model.bin").write_bytes(b"weights" * 1000)
    sha256 = hashlib.sha256(b"weights" * 1000).hexdigest()
    good, bad = store_in(tmp_path), f"sqlite:///{tmp_path}/file/runs.sqlite"
    folder.mkdir()
    outbox.keep(folder, tmp_path / "model.bin", sha256, [good, bad])
    seen: list[tuple[str, int, int]] = []
    report = send_files(folder, lambda *told: seen.append(told))
    assert (report.sent, report.bytes) == (1, 7000)
    assert (report.waiting, report.waiting_bytes) == (1, 7000)
    assert [url for url, _ in report.problems] == [bad]
    assert seen == [("files", 7000, 14000)]
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    assert send_files(folder).problems == ()
    assert send_files(folder) == type(report)()
    for url in (good, bad):
        with tachograph.open(url) as store, store.open_artifact(sha256) as file:
            assert file.read() == b"weights" * 1000


# ---------------------------------------------------------------------------- stores


def test_only_what_is_missing_travels_to_another_store(folder: Path, tmp_path: Path) -> None:
    """A repeat sends nothing; what came since is all that a later one sends; files go along."""
    source, target = store_in(tmp_path, "here"), store_in(tmp_path, "there")
    (tmp_path / "file").write_bytes(b"x" * 100)
    config = {"backend": source, "record": {"system": False}}
    with tachograph.start_run(name="first", config=config) as run:
        run.log({"loss": 1.0}, step=0)
        run.log_artifact(tmp_path / "file")
    first = send_store(source, target)
    assert first.runs == 1
    assert first.points > 0
    with tachograph.open(target) as store:
        assert store.open_artifact(hashlib.sha256(b"x" * 100).hexdigest()).read() == b"x" * 100
    again = send_store(source, target)
    assert (again.runs, again.records, again.points, again.artifacts) == (1, 0, 0, 0)
    record(folder, source, points=7)
    send_journals(folder)
    later = send_store(source, target)
    assert (later.runs, later.points) == (2, 7)
    assert dump_of(target) == dump_of(source)


def dump_of(url: str) -> object:
    """All that a store holds."""
    backend = registry.open_backend(url)
    try:
        return dump(backend)
    finally:
        backend.close()


def test_interrupted_copy_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two pages loses nothing and doubles nothing."""
    monkeypatch.setattr(portions, "PAGE", 20)
    source, target = store_in(tmp_path, "here"), store_in(tmp_path, "there")
    for _ in range(3):
        record(folder, source, points=30)
    send_journals(folder)

    def interrupt(what: str, done: int, total: int) -> None:
        if 0 < done < total:
            raise KeyboardInterrupt

    for _ in range(50):
        try:
            send_store(source, target, interrupt)
        except KeyboardInterrupt:
            continue
        break
    assert dump_of(target) == dump_of(source)


def test_a_run_that_is_recorded_and_edited_meanwhile_is_no_mistake(
    folder: Path, tmp_path: Path
) -> None:
    """The target may have edits of its own, the source a run that goes on."""
    source, target = store_in(tmp_path, "here"), store_in(tmp_path, "there")
    config = {"backend": source, "record": {"system": False}}
    with tachograph.start_run(name="first", config=config) as run:
        run.log({"loss": 1.0}, step=0)
        tachograph.start_run(name="other", config=config).finish()  # waits until all is stored
        send_store(source, target)
        with tachograph.open(target) as store:
            store.tag(run.run_id, reviewed="yes")
        run.log({"loss": 0.5}, step=1)
    assert send_store(source, target).runs == 2
    with tachograph.open(target) as store:
        assert list(store.series(run.run_id, "loss")["value"]) == [1.0, 0.5]
        assert store.run(run.run_id).tags["reviewed"] == "yes"


def test_which_store_is_sent(tmp_path: Path) -> None:
    """The first that lies on this machine, never to itself."""
    here, server = store_in(tmp_path), "https://tachograph.lab.example:8765"
    assert local_store((server, here), server) == here
    with pytest.raises(ConfigError, match="not on this machine"):
        local_store((server,), "sqlite:////elsewhere.sqlite")
    with pytest.raises(ConfigError, match="to itself"):
        local_store((here,), here)


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder with a config file, where a training was killed: its record is in its journal."""
    (tmp_path / "tachograph.toml").write_text('project = "p"\nbackend = "parquet:///runs"\n')
    script = """
        import os, signal, tachograph
        run = tachograph.start_run(name="killed")
        for step in range(100):
            run.log({"loss": 1.0 / (step + 1)}, step=step)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, check=False)
    return tmp_path


def test_sync_says_what_it_did(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a person and for a program; the second time there is nothing to do."""
    monkeypatch.chdir(killed)
    target = store_in(killed, "target")
    assert main(["sync", "--to", target, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["sent"]) == 1
    assert document["journals"][0]["outcome"] == "sent"
    assert document["journals"][0]["records"] > 100
    assert document["copied"]["points"] >= 100
    assert main(["sync", "--to", target]) == 0
    out = capsys.readouterr().out
    assert "nothing is left behind" in out
    assert f"{target} has all of parquet:///{killed}/runs already (1 run)" in out
    assert len(steps(target)) == 1


def test_sync_says_what_waits(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target that cannot be used: one line, how much stays here, and a status."""
    monkeypatch.chdir(killed)
    (killed / "file").touch()
    assert main(["sync", "--to", f"sqlite:///{killed}/file/t.sqlite"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"the 1 runs in parquet:///{killed}/runs stay there" in err
    blocker = record(killed / "runs/.tachograph/journal", f"sqlite:///{killed}/file/t.sqlite")
    assert main(["sync"]) == 1
    out = capsys.readouterr().out
    assert f"the journal of {blocker} cannot be sent" in out
    assert "B wait" in out


def test_interrupting_sync_says_how_to_go_on(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status of an interrupt, and no traceback."""
    monkeypatch.chdir(killed)

    def interrupt(self: Backend, batch: Batch) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tachograph.backends.parquet.ParquetBackend.write", interrupt)
        assert main(["sync"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert main(["sync", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sent"]) == 1
    assert os.listdir(killed / "runs/.tachograph/journal") == []
