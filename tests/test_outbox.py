"""Files for stores that may be away: kept at once, sent later, by whichever process comes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tachograph
from tachograph import recorder, registry
from tachograph.backends.base import Query, SupportsArtifacts
from tachograph.backends.sqlite import SQLiteBackend
from tachograph.delivery import outbox
from tachograph.delivery.freight import Freight
from tachograph.errors import StoreError, TachographWarning
from tachograph.journal import JournalWriter
from tachograph.journal_reader import list_journals
from tachograph.records import uuid7

Keep = Callable[..., str]


class FarStore(SQLiteBackend):
    """A store that may be away, at ``far:////path``."""

    away = False

    def __init__(self, url: str, *, create: bool) -> None:
        if self.away:
            raise StoreError("nobody is there")
        super().__init__(url.replace("far:", "sqlite:"), create=create)


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scheme is known, and it is there."""
    monkeypatch.setitem(registry.BUILTIN, "far", f"{__name__}:FarStore")  # type: ignore[arg-type]
    monkeypatch.setattr(FarStore, "away", False)


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    """Two such stores."""
    return f"far:///{tmp_path}/one/runs.sqlite", f"far:///{tmp_path}/two/runs.sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where journals lie."""
    return tmp_path / "journal"


@pytest.fixture
def keep(tmp_path: Path, folder: Path) -> Keep:
    """Keeps a file with some content for stores; gives its digest."""

    def keep(content: bytes, *urls: str, **more: int) -> str:
        file = tmp_path / "file"
        file.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        outbox.keep(folder, file, sha256, urls, **more)
        return sha256

    return keep


def content_in(url: str, sha256: str) -> bytes:
    """What a store has under a digest."""
    backend = registry.open_backend(url, create=True)
    try:
        assert isinstance(backend, SupportsArtifacts)
        with backend.open_artifact(sha256) as file:
            return file.read()
    finally:
        backend.close()


def left(folder: Path) -> list[str]:
    """Files in the outbox, without those that are locked."""
    paths = (folder / "outbox").rglob("*")
    return sorted(path.name for path in paths if path.is_file() and path.suffix != ".lock")


# ---------------------------------------------------------------------------- the outbox itself


def test_what_is_kept_arrives_everywhere_and_is_removed(
    keep: Keep, folder: Path, urls: tuple[str, str]
) -> None:
    """A store that is away gets it later, when the other has had it long since."""
    sha256 = keep(b"checkpoint", urls[0])
    assert keep(b"checkpoint", urls[1]) == sha256
    assert outbox.send(folder, urls[:1]) == {}
    assert content_in(urls[0], sha256) == b"checkpoint"
    assert outbox.waiting(folder) == [outbox.Parcel(sha256, 10, (urls[1],))]
    assert outbox.waiting(folder, urls[:1]) == []
    assert outbox.send(folder) == {}
    assert content_in(urls[1], sha256) == b"checkpoint"
    assert left(folder) == []


def test_a_file_that_is_overwritten_in_place_was_kept_as_it_was(
    keep: Keep, folder: Path, urls: tuple[str, str], tmp_path: Path
) -> None:
    """As frameworks do that write the latest checkpoint under one name."""
    sha256 = keep(b"step 100", urls[0])
    with (tmp_path / "file").open("r+b") as file:
        file.write(b"STEP 200")
    outbox.send(folder)
    assert content_in(urls[0], sha256) == b"step 100"


def test_a_file_that_changed_before_it_was_kept_is_refused(
    folder: Path, urls: tuple[str, str], tmp_path: Path
) -> None:
    """No content is ever sent under a digest that is not its own."""
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(StoreError, match="changed since"):
        outbox.keep(folder, tmp_path / "file", hashlib.sha256(b"one").hexdigest(), urls)
    assert outbox.waiting(folder) == []
    assert left(folder) == []


def test_a_store_that_fails_keeps_the_rest_for_later(
    keep: Keep, folder: Path, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is given, nothing is lost, and what was sent is not sent again."""
    first, second = keep(b"first", urls[0]), keep(b"second", urls[0])
    sent: list[str] = []
    put = FarStore.put_artifact

    def put_one(store: FarStore, path: Path, sha256: str) -> str:
        if sent:
            raise StoreError("cut off")
        sent.append(sha256)
        return put(store, path, sha256)

    monkeypatch.setattr(FarStore, "put_artifact", put_one)
    problems = outbox.send(folder)
    assert list(problems) == [urls[0]]
    assert "cut off" in str(problems[urls[0]])
    assert sent == [first]
    assert [parcel.sha256 for parcel in outbox.waiting(folder)] == [second]
    monkeypatch.setattr(FarStore, "put_artifact", put)
    outbox.send(folder)
    assert content_in(urls[0], second) == b"second"


def test_the_limit_is_kept(keep: Keep, folder: Path, urls: tuple[str, str]) -> None:
    """Counted over all that waits."""
    keep(bytes(600), urls[0], limit_bytes=1000)
    with pytest.raises(OSError, match="would wait"):
        keep(bytes(500), urls[0], limit_bytes=1000)
    keep(bytes(300), urls[0], limit_bytes=1000)
    assert sum(parcel.bytes for parcel in outbox.waiting(folder)) == 900


def test_content_that_somebody_deleted_does_not_stop_the_others(
    keep: Keep, folder: Path, urls: tuple[str, str]
) -> None:
    """What waits behind it is sent."""
    gone, there = keep(b"gone", urls[0]), keep(b"there", urls[0])
    next((folder / "outbox").rglob(gone)).unlink()
    assert outbox.send(folder) == {}
    assert content_in(urls[0], there) == b"there"


def test_what_nobody_needs_is_swept_up(
    keep: Keep, folder: Path, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be killed between keeping the content and saying who needs it."""
    kept, young = keep(b"kept", urls[1]), keep(b"young", urls[0])
    (folder / "outbox" / f"{young}.json").unlink()
    outbox.send(folder, urls[:1])
    assert young in left(folder)  # it may be on its way in
    for path in (folder / "outbox").glob("??/*"):
        os.utime(path, (1, 1))
    outbox.send(folder, urls[:1])
    assert left(folder) == [kept, f"{kept}.json"]


def test_threads_that_keep_and_send_the_same_lose_nothing(
    folder: Path, urls: tuple[str, str], tmp_path: Path
) -> None:
    """A file may be kept again at the very moment in which it is removed as sent."""
    content = b"the same"
    sha256 = hashlib.sha256(content).hexdigest()
    errors: list[BaseException] = []

    def keep_often(url: str) -> None:
        file = tmp_path / f"file-{hash(url)}"
        file.write_bytes(content)
        try:
            for _ in range(30):
                outbox.keep(folder, file, sha256, [url])
                assert url in outbox.waiting(folder)[0].urls or outbox.send(folder) == {}
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=keep_often, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert outbox.send(folder, wait=1.0) == {}
    assert errors == []
    assert outbox.send(folder) == {}
    assert outbox.waiting(folder) == []
    assert [content_in(url, sha256) for url in urls] == [content] * 2


KEEPER = """
import hashlib, sys
from pathlib import Path
from tachograph.delivery import outbox
from tachograph.delivery.freight import Freight
folder, file, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
number = 0
while True:
    content = f"{sys.argv[4]} {number % 50}".encode()
    file.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    outbox.keep(folder, file, sha256, [url])
    print(sha256, flush=True)
    number += 1
"""


def test_a_kill_loses_nothing_that_was_kept(
    folder: Path, urls: tuple[str, str], tmp_path: Path
) -> None:
    """Two processes are killed as they keep files; what they had kept arrives."""
    keepers = [
        subprocess.Popen(
            [sys.executable, "-c", KEEPER, folder, tmp_path / f"file{n}", urls[0], f"keeper {n}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    kept: set[str] = set()
    for keeper in keepers:
        assert keeper.stdout is not None
        kept |= {keeper.stdout.readline().strip() for _ in range(20)}
    for keeper in keepers:
        keeper.kill()
        kept |= {line for line in keeper.communicate()[0].split() if len(line) == 64}
    assert kept <= {parcel.sha256 for parcel in outbox.waiting(folder)}
    assert outbox.send(folder) == {}
    for sha256 in kept:
        assert content_in(urls[0], sha256).startswith(b"keeper")


# ---------------------------------------------------------------------------- with a run


def settings(tmp_path: Path, *urls: str, **more: object) -> dict[str, object]:
    """A configuration with these stores and a journal in the folder."""
    record = {"system": False, "exit_deadline": 5.0, "code": "allow"}  # it is a file too
    return {"backend": [*urls], "journal": str(tmp_path / "journal"), "record": record} | more


def artifacts_of(url: str, run_id: str) -> dict[str, dict[str, object]]:
    """Rows on the files of a run by path."""
    with tachograph.open(url) as store:
        return {row["path"]: row for row in store.run(run_id).artifacts}


def wait_until(done: Callable[[], bool]) -> None:
    """Return when that is so; a few seconds at most."""
    deadline = time.monotonic() + 8.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_of_a_run_arrives_while_the_run_goes_on(
    tmp_path: Path, urls: tuple[str, str]
) -> None:
    """Its row says no place, and readers find it by its digest; a local store has it at once."""
    local = f"sqlite:///{tmp_path}/local/runs.sqlite"
    (tmp_path / "model.bin").write_bytes(b"weights")
    run = tachograph.start_run(config=settings(tmp_path, local, urls[0]))
    run.log_artifact(tmp_path / "model.bin", kind="checkpoint")
    run.log_table("rows", [{"a": 1}])
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert content_in(local, sha256) == b"weights"
    wait_until(lambda: not outbox.waiting(tmp_path / "journal"))
    assert content_in(urls[0], sha256) == b"weights"
    run.finish()
    recorder.close_all()
    rows = artifacts_of(urls[0], run.run_id)
    assert str(rows["model.bin"]["uri"]).startswith("file://")  # in the local store
    assert content_in(urls[0], str(rows["rows.jsonl"]["sha256"])) == b'{"a": 1}\n'


def test_the_row_of_a_file_on_its_way_names_no_place(tmp_path: Path, urls: tuple[str, str]) -> None:
    """Not the file itself, which may change."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    with tachograph.start_run(config=settings(tmp_path, urls[0])) as run:
        run.log_artifact(tmp_path / "model.bin")
    recorder.close_all()
    row = artifacts_of(urls[0], run.run_id)["model.bin"]
    assert row["uri"] is None
    assert content_in(urls[0], str(row["sha256"])) == b"weights"


def test_the_end_of_a_process_waits_for_its_files(tmp_path: Path, urls: tuple[str, str]) -> None:
    """Also where it ends at once."""
    (tmp_path / "model.bin").write_bytes(b"weights" * 1_000_000)
    with tachograph.start_run(config=settings(tmp_path, urls[0])) as run:
        run.log_artifact(tmp_path / "model.bin")
    recorder.close_all()
    assert outbox.waiting(tmp_path / "journal") == []
    assert left(tmp_path / "journal") == []


def test_the_end_of_a_process_sends_what_its_workers_left(
    tmp_path: Path, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked workers end without sending, and nobody else may come for days."""
    monkeypatch.setattr(Freight, "step", lambda *_: None)  # it came by before
    folder = tmp_path / "journal"
    with tachograph.start_run(config=settings(tmp_path, urls[0])):
        worker = JournalWriter(folder, uuid7(), {"sinks": [urls[0]]})
        worker.append_rows("tags", [{"run_id": "r", "key": "of a worker", "changed_at": 1}])
        worker.close()
    recorder.close_all()
    assert list_journals(folder) == {}
    with contextlib.closing(registry.open_backend(urls[0])) as store:
        assert "of a worker" in store.read(Query("tags", raw=True))["key"]


def test_files_for_a_store_that_is_away_wait(
    tmp_path: Path,
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One warning, one line at the end; the next run sends records and files."""
    monkeypatch.setattr(FarStore, "away", True)
    (tmp_path / "model.bin").write_bytes(b"weights")
    with pytest.warns(TachographWarning) as said:
        with tachograph.start_run(config=settings(tmp_path, urls[0])) as run:
            run.log_artifact(tmp_path / "model.bin")
        recorder.close_all()
    assert len(said) == 1
    assert capfd.readouterr().err.count("\n") == 1
    assert len(outbox.waiting(tmp_path / "journal", urls[:1])) == 1
    monkeypatch.setattr(FarStore, "away", False)
    with tachograph.start_run(config=settings(tmp_path, urls[0])):
        wait_until(lambda: not outbox.waiting(tmp_path / "journal"))
    recorder.close_all()
    row = artifacts_of(urls[0], run.run_id)["model.bin"]
    assert content_in(urls[0], str(row["sha256"])) == b"weights"


def test_a_local_store_that_cannot_be_written_gets_its_files_later(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The training is told of it once, and of the command that sends the rest."""
    (tmp_path / "store").write_text("in the way")
    (tmp_path / "model.bin").write_bytes(b"weights")
    url = f"sqlite:///{tmp_path}/store/runs.sqlite"
    with pytest.warns(TachographWarning, match="cannot be written") as said:
        with tachograph.start_run(config=settings(tmp_path, url)) as run:
            run.log_artifact(tmp_path / "model.bin")
        recorder.close_all()
    assert len(said) == 1
    (command,) = re.findall("`(.*)`", capfd.readouterr().err)
    (tmp_path / "store").unlink()
    ours = command.replace("tachograph sync", f"{sys.executable} -m tachograph sync")
    subprocess.run(ours, shell=True, check=True, capture_output=True)
    assert outbox.waiting(tmp_path / "journal") == []
    row = artifacts_of(url, run.run_id)["model.bin"]
    assert content_in(url, str(row["sha256"])) == b"weights"


def test_without_room_there_is_one_warning_and_a_reference(
    tmp_path: Path, urls: tuple[str, str]
) -> None:
    """The training goes on, and the row says where the file lay."""
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(1 << 20))
    config = settings(tmp_path, urls[0], journal_limit=1 << 20)
    with (
        pytest.warns(TachographWarning, match="without its content") as said,
        tachograph.start_run(config=config) as run,
    ):
        run.log_artifact(tmp_path / "a")
        run.log_artifact(tmp_path / "b")
    assert len(said) == 1
    recorder.close_all()
    rows = artifacts_of(urls[0], run.run_id)
    assert [rows[name]["uri"] for name in "ab"] == [(tmp_path / name).as_uri() for name in "ab"]
