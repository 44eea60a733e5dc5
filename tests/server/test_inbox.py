"""The inbox of a server: everything acknowledged is in the store once, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inbox_child import WRITERS, batch

from tachograph import host, registry
from tachograph.backends.base import Condition, Query
from tachograph.delivery.drain import Stores, send_journal
from tachograph.delivery.sink import Sink
from tachograph.errors import Busy, Full, Gap, StoreError, TachographWarning
from tachograph.journal import JournalWriter
from tachograph.journal_reader import list_journals
from tachograph.records import Batch, uuid7
from tachograph.server import commit, inbox, marks, tails
from tachograph.server.inbox import Inbox
from tachograph.testing import START, make_batch
from tachograph.wire.encoding import compress, encode

CHILD = Path(__file__).parent / "inbox_child.py"


@pytest.fixture(params=["sqlite", "parquet"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store will be."""
    return store_url(tmp_path / "store", request.param)


def store_url(path: Path, kind: str = "sqlite") -> str:
    """The URL of a store."""
    return f"sqlite:///{path}/runs.sqlite" if kind == "sqlite" else f"parquet:///{path}"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Inbox]]:
    """Starts an inbox in a folder of its own: ``started(url, …)``; closed after the test."""
    made: list[Inbox] = []

    def start(*urls: str, **options: int) -> Inbox:
        made.append(Inbox(urls, tmp_path / "server", **options))
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(OSError):
            one.close()


def send(to: Inbox, one: Batch) -> int:
    """Send a batch as a client does."""
    return to.receive(compress(encode(one)), one)


def stored(url: str, writer: str) -> list[int]:
    """The numbers of the points of a writer in a store, in the order of its steps."""
    backend = registry.open_backend(url)
    try:
        where = [Condition("writer", "=", writer)]
        found = backend.read(Query("metrics", where, ["seq", "value"], order=["seq"]))
        assert list(found["seq"]) == [int(value) for value in found["value"]]
        return list(found["seq"])
    finally:
        backend.close()


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something holds within some seconds; a store that is not there yet has time, too."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with contextlib.suppress(StoreError):
            if holds():
                return True
        time.sleep(0.05)
    return False


# ---------------------------------------------------------------------------- once


def test_batches_are_taken_once(started: Callable[..., Inbox], url: str) -> None:
    """A repeat and an overlap add nothing twice, a gap adds nothing; each is told what is next."""
    to = started(url)
    assert send(to, batch("w", 0, 10)) == 10
    assert send(to, batch("w", 0, 10)) == 10
    assert send(to, batch("w", 3, 6)) == 10
    assert send(to, batch("w", 5, 15)) == 15
    with pytest.raises(Gap) as caught:
        send(to, batch("w", 16, 20))
    assert (caught.value.writer, caught.value.expected) == ("w", 15)
    assert send(to, Batch("w", 99, 99)) == 15
    assert to.expected("w") == 15
    assert to.expected("stranger") == 0
    assert send(to, batch("v", 0, 3)) == 3
    assert to.flush(30)
    assert stored(url, "w") == [*range(15)]
    assert stored(url, "v") == [*range(3)]


def test_server_that_starts_again_goes_on_where_it_was(
    started: Callable[..., Inbox], url: str
) -> None:
    """Marks that are in memory no longer are the cursors of the store."""
    first = started(url)
    send(first, batch("w", 0, 10))
    first.close()
    again = started(url)
    assert again.known() == {}
    assert again.expected("w") == 10
    with pytest.raises(Gap):
        send(again, batch("w", 11, 12))
    assert send(again, batch("w", 8, 12)) == 12
    assert again.flush(30)
    assert stored(url, "w") == [*range(12)]


def test_numbers_that_hold_nothing_are_counted(started: Callable[..., Inbox], url: str) -> None:
    """A batch without a row moves the mark, also in the store."""
    to = started(url)
    assert send(to, Batch("w", 0, 7)) == 7
    assert send(to, batch("w", 7, 8)) == 8
    assert to.flush(30)
    assert stored(url, "w") == [7]


def test_many_senders_are_served_at_once(started: Callable[..., Inbox], url: str) -> None:
    """Twenty threads send for twenty writers, repeat and overlap; each gets what is its own."""
    to = started(url)

    def work(writer: str) -> None:
        for start in range(0, 50, 5):
            assert send(to, batch(writer, max(0, start - 3), start + 5)) == start + 5
            assert send(to, batch(writer, start, start + 5)) == start + 5

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(to.expected(f"w{n}") == 50 for n in range(20))
    assert to.flush(60)
    assert all(stored(url, f"w{n}") == [*range(50)] for n in range(20))


@pytest.mark.slow
def test_whatever_is_acknowledged_survives_kills(url: str, tmp_path: Path) -> None:
    """A server that is killed ten times while it acknowledges loses and doubles nothing."""
    folder, log = tmp_path / "server", tmp_path / "acknowledged"
    for kill in range(10):
        command = [sys.executable, str(CHILD), url, str(folder), str(log)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "receiving\n"
        time.sleep(0.15 + 0.05 * kill)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    acknowledged: dict[str, int] = {}
    for line in log.read_text().splitlines():
        writer, _, after = line.partition(" ")
        acknowledged[writer] = max(acknowledged.get(writer, 0), int(after))
    assert len(acknowledged) == WRITERS
    assert min(acknowledged.values()) > 50
    last = Inbox([url], folder)
    expected = {writer: last.expected(writer) for writer in acknowledged}
    last.close()
    for writer, after in acknowledged.items():
        assert expected[writer] >= after
        assert stored(url, writer) == [*range(expected[writer])]
    backend = registry.open_backend(url)
    events = backend.read(Query("events", columns=["writer", "seq"]))
    backend.close()
    found = sorted(zip(events["writer"], events["seq"], strict=True))
    assert found == sorted(
        (writer, seq) for writer, after in expected.items() for seq in range(0, after, 10)
    )


# ---------------------------------------------------------------------------- on the disk


class Disk:
    """What stands between the inbox and the disk: counts flushes, holds them up, lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushes = 0
        self.open = threading.Event()
        self.open.set()
        self.broken = False
        self._sync = host.sync_data
        monkeypatch.setattr(host, "sync_data", self.sync)

    def sync(self, descriptor: int) -> None:
        """As `host.sync_data`."""
        self.flushes += 1
        assert self.open.wait(10)
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk under the journal."""
    return Disk(monkeypatch)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do something in a thread; its result, or its error, comes into the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_nothing_is_acknowledged_before_it_is_on_the_disk(
    started: Callable[..., Inbox], tmp_path: Path, disk: Disk
) -> None:
    """Not the batch, not a repeat of it, not an overlap, not a gap or a question behind it."""
    to = started(store_url(tmp_path / "store", "parquet"))
    assert to.expected("w") == 0  # the store is made
    disk.open.clear()
    cases: list[Callable[[], object]] = [
        lambda: send(to, batch("w", 0, 10)),
        lambda: send(to, batch("w", 0, 10)),
        lambda: send(to, batch("w", 5, 12)),
        lambda: send(to, batch("w", 20, 30)),
        lambda: to.expected("w"),
    ]
    waiting = []
    for case in cases:
        waiting.append(in_thread(case))
        time.sleep(0.05)
    time.sleep(0.1)
    too_early = [results for _, results in waiting if results]
    known = to.known()
    disk.open.set()
    assert too_early == []
    assert known == {"w": 0}
    for thread, _ in waiting:
        thread.join(10)
    *numbers, gap, asked = [results[0] for _, results in waiting]
    assert numbers == [10, 10, 12]
    assert isinstance(gap, Gap)
    assert (gap.expected, asked) == (12, 12)
    assert to.known() == {"w": 12}


def test_one_flush_serves_all_that_wait(
    started: Callable[..., Inbox], tmp_path: Path, disk: Disk
) -> None:
    """Thirty requests that came while the disk was busy need one more flush, not thirty."""
    to = started(store_url(tmp_path / "store", "parquet"))
    send(to, batch("w", 0, 1))
    disk.open.clear()
    first = in_thread(lambda: send(to, batch("first", 0, 1)))
    time.sleep(0.1)
    before = disk.flushes
    others = [
        in_thread(lambda writer=writer: send(to, batch(writer, 0, 1)))  # type: ignore[misc]
        for writer in (f"w{n}" for n in range(30))
    ]
    time.sleep(0.3)
    disk.open.set()
    for thread, results in [first, *others]:
        thread.join(10)
        assert results == [1]
    assert disk.flushes - before <= 3


def test_flush_that_fails_acknowledges_nothing_and_is_made_good(
    started: Callable[..., Inbox], url: str, disk: Disk
) -> None:
    """The mark goes back, so the client sends again; and in the store it is there once."""
    to = started(url)
    assert send(to, batch("w", 0, 5)) == 5
    disk.broken = True
    with pytest.raises(Full, match="Input/output error"):
        send(to, batch("w", 5, 9))
    with pytest.raises(Full):
        send(to, batch("v", 0, 9))
    disk.broken = False
    assert (to.expected("w"), to.expected("v")) == (5, 0)
    assert send(to, batch("w", 5, 7)) == 7  # cut elsewhere this time
    assert send(to, batch("w", 7, 12)) == 12
    assert send(to, batch("v", 0, 9)) == 9
    assert to.flush(30)
    assert stored(url, "w") == [*range(12)]
    assert stored(url, "v") == [*range(9)]


def test_request_that_waits_hears_of_a_flush_that_failed_before_its_turn(
    disk: Disk,
) -> None:
    """A later flush that succeeds does not bring back what an earlier one has lost."""
    lock, undone = threading.Lock(), []
    written, sound = [10], [True]

    def sync() -> None:
        if not sound[0]:
            raise OSError(errno.EIO, "lost")

    group = commit.GroupCommit(lock, sync, lambda: written[0], undone.append)
    group.wait(5, 0)
    assert group.durable == 10
    sound[0], written[0] = False, 20
    with pytest.raises(OSError, match="lost"):
        group.wait(15, 0)
    assert (undone, group.failures) == ([10], 1)
    sound[0], written[0] = True, 30
    group.wait(30, 1)
    with pytest.raises(OSError, match="failed to take"):
        group.wait(15, 0)


def test_closed_part_of_the_journal_is_flushed_too(
    started: Callable[..., Inbox],
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part that was full between writing and flushing is on the disk with the next flush."""
    monkeypatch.setattr("tachograph.journal.PART_BYTES", 2000)
    flushed = []
    monkeypatch.setattr(host, "sync_file", lambda path: flushed.append(Path(path).name))
    to = started(store_url(tmp_path / "store", "parquet"))
    for start in range(0, 2000, 100):
        send(to, batch("w", start, start + 100))
    names = [name.rpartition("-")[2] for name in flushed]
    assert len(names) > 3
    assert names == [f"{part:06d}.journal" for part in range(len(names))]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit that a write runs into")
def test_full_disk_is_said_and_nothing_is_half_taken(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """As soon as there is room the same batch is taken, once."""
    import resource

    url = store_url(tmp_path / "store", "parquet")
    to = started(url)
    send(to, batch("w", 0, 5))
    (journal,) = (tmp_path / "server" / "journal").glob("*.journal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 100, limits[1]))
        with pytest.raises(Full):
            send(to, batch("w", 5, 2000))
        assert to.known() == {"w": 5}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert send(to, batch("w", 5, 2000)) == 2000
    assert to.flush(30)
    assert stored(url, "w") == [*range(2000)]


def test_server_is_busy_when_too_much_waits(
    started: Callable[..., Inbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the store has a limit; when the store is back there is room again."""
    for module in ("journal", "server.inbox"):
        monkeypatch.setattr(f"tachograph.{module}.PART_BYTES", 10_000)
    url = store_url(tmp_path / "store", "parquet")
    to = started(url, journal_limit=30_000)
    sent = 0
    with pytest.raises(Busy, match="wait for a store") as caught:
        while sent < 100_000:
            sent = send(to, batch("w", sent, sent + 200))
    assert caught.value.retry_after > 1
    assert not isinstance(caught.value, Full)
    assert 1000 < sent < 100_000
    assert to.flush(30)
    assert eventually(lambda: send(to, batch("w", sent, sent + 1)) == sent + 1)
    assert to.flush(30)
    assert stored(url, "w") == [*range(sent + 1)]


# ---------------------------------------------------------------------------- starting


def leave(folder: Path, sinks: list[str], *batches: Batch) -> None:
    """Leave a journal as a server does that was killed."""
    writer = JournalWriter(folder / "journal", uuid7(), {"sinks": sinks})
    for one in batches:
        writer.append_received(compress(encode(one)))
    writer.discard("killed")


def test_what_an_earlier_server_acknowledged_comes_first(
    started: Callable[..., Inbox], url: str, tmp_path: Path
) -> None:
    """Else its clients would be told of a gap. They go into the stores of today."""
    leave(tmp_path / "server", ["sqlite:////gone/x.sqlite"], batch("w", 0, 7), batch("w", 7, 9))
    to = started(url)
    assert to.expected("w") == 9
    assert send(to, batch("w", 9, 10)) == 10
    assert to.flush(30)
    assert stored(url, "w") == [*range(10)]
    assert len(list((tmp_path / "server" / "journal").glob("*.journal"))) == 1


def test_server_is_busy_until_the_first_store_has_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, takes nothing, and begins by itself when the store can be written."""
    monkeypatch.setattr(inbox, "_START_SECONDS", 0.2)
    folder, store = tmp_path / "server", tmp_path / "store"
    leave(folder, [], batch("w", 0, 7))
    store.write_text("no folder: no store can be here")
    with pytest.warns(TachographWarning, match="cannot be sent to"):
        to = Inbox([store_url(store)], folder)
    try:
        for ask in (lambda: to.expected("w"), lambda: send(to, batch("w", 0, 7))):
            with pytest.raises(Busy, match="earlier one received"):
                ask()
        assert [*to.tails({})] == []
        assert to.behind
        assert not to.flush(0.1)
        store.unlink()
        assert eventually(lambda: to.expected("w") == 7)
        assert not to.behind
    finally:
        to.close()


def test_folder_belongs_to_one_server(started: Callable[..., Inbox], url: str) -> None:
    """The second one is told which process has it."""
    one = started(url)
    with pytest.raises(StoreError, match=f"process {os.getpid()} on "):
        started(url)
    one.close()
    assert started(url).expected("w") == 0


def test_inbox_that_ends_takes_nothing(started: Callable[..., Inbox], url: str) -> None:
    """A late request is told to come again; what was acknowledged is in the store."""
    to = started(url)
    send(to, batch("w", 0, 3))
    to.close()
    with pytest.raises(Busy, match="ends"):
        send(to, batch("w", 3, 4))
    assert stored(url, "w") == [0, 1, 2]


# ---------------------------------------------------------------------------- several stores


def test_several_stores_get_the_same(started: Callable[..., Inbox], tmp_path: Path) -> None:
    """Each at its own pace."""
    urls = store_url(tmp_path / "a"), store_url(tmp_path / "b", "parquet")
    to = started(*urls)
    for start in range(0, 30, 10):
        send(to, batch("w", start, start + 10))
    assert to.flush(30)
    assert [stored(url, "w") for url in urls] == [[*range(30)]] * 2


def test_store_that_was_added_later_stops_nobody(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """It lacks the beginning of a writer: it is told how that comes in, and gets what is new."""
    first, second = store_url(tmp_path / "a"), store_url(tmp_path / "b", "parquet")
    alone = started(first)
    send(alone, batch("old", 0, 5))
    alone.close()
    both = started(first, second)
    send(both, batch("old", 5, 8))
    send(both, batch("new", 0, 4))
    with pytest.warns(TachographWarning, match=r"was added later.*`tachograph copy`"):
        assert both.flush(30)
    assert stored(first, "old") == [*range(8)]
    assert stored(first, "new") == stored(second, "new") == [*range(4)]
    assert stored(second, "old") == []


def test_what_a_killed_server_left_for_two_stores_comes_into_both(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """Also where the second one lacks the beginning of a writer."""
    first, second = store_url(tmp_path / "a"), store_url(tmp_path / "b", "parquet")
    alone = started(first)
    send(alone, batch("old", 0, 5))
    alone.close()
    leave(tmp_path / "server", [first, second], batch("old", 5, 8), batch("new", 0, 4))
    with pytest.warns(TachographWarning, match="was added later"):
        both = started(first, second)
    assert both.expected("old") == 8
    assert stored(first, "old") == [*range(8)]
    assert stored(second, "new") == [*range(4)]


def test_second_store_that_is_away_does_not_hold_up_the_start(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """The first one's cursors count; what the other lacks stays for it."""
    first, second = store_url(tmp_path / "a"), store_url(tmp_path / "b")
    (tmp_path / "b").write_text("no folder")
    leave(tmp_path / "server", [first, second], batch("w", 0, 5))
    with pytest.warns(TachographWarning, match="cannot be sent to"):
        to = started(first, second)
        assert send(to, batch("w", 5, 6)) == 6
        (tmp_path / "b").unlink()
        assert eventually(lambda: stored(second, "w") == [*range(6)])
    assert to.flush(30)
    assert stored(first, "w") == stored(second, "w") == [*range(6)]


def test_store_beside_the_first_waits_for_what_lies_in_other_journals(tmp_path: Path) -> None:
    """It leaves nothing out as long as the beginning may still come from there."""
    url, folder = store_url(tmp_path / "store"), tmp_path / "server" / "journal"
    leave(tmp_path / "server", [], batch("w", 0, 5))
    (earlier,) = list_journals(folder)
    own = JournalWriter(folder, uuid7(), {})
    own.append_received(compress(encode(batch("w", 5, 8))))
    waiting = Sink(url, folder, own.writer, own.now_us, is_copy=True)
    with pytest.warns(TachographWarning, match="Gap"):
        waiting.step(seal=True)
    assert waiting.confirmed == 0
    with Stores() as stores:
        send_journal(folder, earlier, [url], stores)
    later = Sink(url, folder, own.writer, own.now_us, is_copy=True)
    later.step(seal=True)
    assert stored(url, "w") == [*range(8)]
    later.close()
    own.close()


# ---------------------------------------------------------------------------- readers and clients


def test_tails_are_what_the_store_does_not_have_yet(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """Readers see a batch as soon as it is taken, and none twice; the journal is read once."""
    to = started(store_url(tmp_path / "store", "parquet"))
    seen = to.version
    send(to, batch("w", 0, 5))
    assert to.version != seen
    assert sum(one.points for one in to.tails({})) == 5
    send(to, batch("w", 3, 9))
    send(to, batch("v", 0, 2))

    def held() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for one in to.tails({}):
            for block in one.blocks:
                found.setdefault(one.writer, []).extend(block.seqs())
        return found

    assert held() == {"w": [*range(9)], "v": [0, 1]}
    send(to, batch("w", 9, 10))
    assert held() == {"w": [*range(10)], "v": [0, 1]}
    assert to.flush(30)
    assert held() == {}
    send(to, batch("w", 10, 11))
    assert held() == {"w": [10]}
    assert not to.behind


def test_tail_that_grows_too_long_is_let_go(
    started: Callable[..., Inbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded while the store is away; readers are told, and it comes back."""
    monkeypatch.setattr(tails, "MOST_BYTES", 10_000)
    to = started(store_url(tmp_path / "store", "parquet"))
    send(to, batch("w", 0, 100))
    assert sum(one.points for one in to.tails({})) == 100
    send(to, batch("w", 100, 500))
    assert [*to.tails({})] == []
    assert to.behind
    assert [*to.tails({})] == []
    assert to.flush(30)
    assert not to.behind
    assert [*to.tails({})] == []
    send(to, batch("w", 500, 600))
    assert sum(one.points for one in to.tails({})) == 100


def test_known_marks_are_those_that_the_store_lacks(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """What is in the store, its cursors say."""
    to = started(store_url(tmp_path / "store", "parquet"))
    send(to, batch("w", 0, 2))
    send(to, batch("w", 2, 5))
    assert to.known() == {"w": 5}
    assert to.flush(30)
    assert to.known() == {}
    send(to, batch("v", 0, 1))
    assert to.known() == {"v": 1}


def test_marks_of_many_writers_are_let_go(
    started: Callable[..., Inbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store has them; there they are found again."""
    monkeypatch.setattr(marks, "KEPT", 10)
    to = started(store_url(tmp_path / "store"))
    to._marks._look_at = 10  # made before the limit was
    for n in range(30):
        send(to, batch(f"w{n}", 0, 2))
        if n == 19:
            assert to.flush(30)
    assert len(to._marks._marks) < 25
    assert all(to.expected(f"w{n}") == 2 for n in range(30))


def test_marks_have_a_limit_while_the_store_is_away() -> None:
    """Writers that nobody knows cannot fill the memory."""
    held = marks.Marks()
    held._look_at = 0
    for n in range(5):
        held.advance(f"w{n}", marks.Mark(0), 1, n + 1, 0)
    held.drop(3)
    assert set(held.ahead(9, 0)) == {"w3", "w4"}
    held._look_at = 0
    marks.MOST, most = 2, marks.MOST
    try:
        with pytest.raises(Busy, match="wait for the store"):
            held.drop(3)
    finally:
        marks.MOST = most


def test_heartbeats_of_quiet_writers_reach_the_store(
    started: Callable[..., Inbox], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest one, without a record in the journal for each request."""
    monkeypatch.setattr(inbox, "_BEAT_SECONDS", 0.0)
    to = started(url)
    row = {"pid": 7, "heartbeat_at": START}
    send(to, make_batch("w", 0, writers=[row]))
    send(to, Batch("stranger", 0, 0, heartbeat=START))
    assert to.heartbeats() == []  # of a writer that nobody knows nothing is kept
    for second in range(50):
        send(to, Batch("w", 1, 1, heartbeat=START + second))

    def heartbeats() -> dict[str, int]:
        to.flush(30)
        backend = registry.open_backend(url)
        rows = backend.read(Query("writers", columns=["writer", "heartbeat_at"]))
        backend.close()
        return dict(zip(rows["writer"], rows["heartbeat_at"], strict=True))

    assert eventually(lambda: heartbeats()["w"] == START + 49)


def test_interval_grows_with_the_number_of_senders(
    started: Callable[..., Inbox], tmp_path: Path
) -> None:
    """A thousand clients are asked to send less often than ten."""
    to = started(store_url(tmp_path / "store"))
    send(to, batch("w", 0, 1))
    assert to.interval == 1.0
    for n in range(600):
        to._activity.note(f"w{n}")
    assert to.interval == pytest.approx(3.0, abs=0.1)
    for n in range(20_000):
        to._activity.note(f"v{n}")
    assert to.interval == 30.0
