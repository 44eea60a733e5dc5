"""What is new of a run since a client looked last: every point and event once, in order.

The cursor says what was seen, so that nobody has to remember it: of each writer, up to which
record. All records of a writer before its mark are visible; so what lies between the two is new,
also to another server, later. Knows a store as `served` has it; knows no HTTP.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from tachograph.backends.base import Condition, Query
from tachograph.errors import WireError
from tachograph.reading.live import Cursors
from tachograph.records import Row
from tachograph.server.served import Served
from tachograph.wire.tables import to_json

MOST_ROWS = 5_000
"""About so many rows are looked at in one go; a client that has much to catch up asks again."""

_FIRST_RECORDS = 1_000
_MOST_RECORDS = 1 << 40
_CURSOR = re.compile(r"1-[0-9a-f]{8}(-[0-9a-f]{16}:\d{1,18}(\.\d{1,9})?)*")
_NOTHING = "0" * 8
_KINDS = {"metrics": "point", "events": "event"}

Found = tuple[int, str, str, Row]
"""Record, kind, name and row."""


@dataclass(frozen=True, slots=True)
class News:
    """One new thing.

    Attributes
    ----------
    cursor : str
        What a client has seen that has seen it.
    kind : 'point', 'event' or 'status'
    row : Row
        Of `metrics`, `events` or `runs`.
    """

    cursor: str
    kind: str
    row: Row


@dataclass(slots=True)
class Position:
    """How far a client is.

    Attributes
    ----------
    status : str
        Tells the row of the run that it saw last.
    seen : dict of str to (int, int)
        What stands for a writer, to the next record, and how many of its rows were seen.
    records : int
        How many records of a writer to look at next: more where they hold little of the run.
    """

    status: str = _NOTHING
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    records: int = _FIRST_RECORDS

    @classmethod
    def parse(cls, cursor: str) -> Position:
        """Undo `cursor`; WireError where it is none."""
        if not cursor:
            return cls()
        if not _CURSOR.fullmatch(cursor):
            raise WireError(f"{cursor!r:.80} is no cursor of this server")
        _, status, *entries = cursor.split("-")
        seen = {}
        for entry in entries:
            writer, _, place = entry.partition(":")
            record, _, rows = place.partition(".")
            seen[writer] = int(record), int(rows or 0)
        return cls(status, seen)

    @property
    def cursor(self) -> str:
        """This as text without spaces, some 30 characters a writer."""
        places = (
            f"-{writer}:{record}" + (f".{rows}" if rows else "")
            for writer, (record, rows) in sorted(self.seen.items())
        )
        return f"1-{self.status}{''.join(places)}"


@dataclass(slots=True)
class Look:
    """What one look at a run found.

    Attributes
    ----------
    news : list of News
    position : Position
        Behind them.
    status : str
        Of the run, as it is shown.
    more : bool
        There is more to be seen now.
    """

    news: list[News]
    position: Position
    status: str
    more: bool


def look(served: Served, run_id: str, since: Position, names: Sequence[str] = ()) -> Look:
    """See what is new since a position, which stays as it is.

    Parameters
    ----------
    served : Served
    run_id : str
    since : Position
    names : sequence of str
        Of points only those of these metrics; by default all.

    Raises
    ------
    RunNotFound
        The run is not there any more.
    """
    row = served.store.row(run_id)
    news: list[News] = []
    position = replace(since, seen=dict(since.seen))
    first = position.status == _NOTHING
    if first:
        news += _status(row, position)
    stored = Cursors(served.backend)
    for writer in sorted(served.live.writers_of(run_id)):
        rows_of = functools.partial(rows_between, served, run_id, writer, names)
        for fresh in _records(served, writer, stored, position, rows_of):
            news += fresh
            if len(news) >= MOST_ROWS:
                return Look(news, position, row["status"], more=True)
    if not first:
        news += _status(row, position)
    return Look(news, position, row["status"], more=False)


def key_of(writer: str) -> str:
    """What stands for a writer in a cursor."""
    return hashlib.blake2b(writer.encode(), digest_size=8).hexdigest()


def _records(
    served: Served,
    writer: str,
    stored: Cursors,
    position: Position,
    rows_of: Callable[[int, int], list[Found]],
) -> Iterator[list[News]]:
    """What is new of a writer, some records at a time."""
    key = key_of(writer)
    behind = stored.get(writer, 0)
    while True:
        start, rows_seen = position.seen.get(key, (0, 0))
        end = min(start + position.records, max(behind, served.marks.get(writer, 0)))
        if start >= end:
            return
        rows = rows_of(start, end)
        # The mark may have turned out to say more than could be read.
        if end > max(behind, served.marks.get(writer, 0)):
            return
        if len(rows) > MOST_ROWS and position.records > 1:
            position.records = max(1, position.records // 4)
            continue
        if len(rows) < MOST_ROWS // 4:
            position.records = min(2 * position.records, _MOST_RECORDS)
        yield [*_news(rows, start, rows_seen, key, position)]
        position.seen[key] = end, 0


def rows_between(
    served: Served, run_id: str, writer: str, names: Sequence[str], start: int, end: int
) -> list[Found]:
    """What there is from a record to before another, in an order that is the same each time."""
    found = []
    for table, kind in _KINDS.items():
        where = [
            Condition("run_id", "=", run_id),
            Condition("writer", "=", writer),
            Condition("seq", ">=", start),
            Condition("seq", "<", end),
        ]
        if names and table == "metrics":
            where.append(Condition("name", "in", names))
        for row in served.read(Query(table, where, limit=MOST_ROWS + 1)):
            found.append((row["seq"], kind, row.get("name", ""), row))
    return sorted(found, key=itemgetter(0, 1, 2))


def _news(rows: list[Found], start: int, skip: int, key: str, position: Position) -> Iterator[News]:
    record, count = start, 0
    for seq, kind, _, row in rows:
        record, count = seq, (count + 1 if seq == record else 1)
        if seq == start and count <= skip:
            continue
        position.seen[key] = record, count
        yield News(position.cursor, kind, row)


def _status(row: Row, position: Position) -> list[News]:
    digest = hashlib.blake2b(to_json(row), digest_size=4).hexdigest()
    if digest == position.status:
        return []
    position.status = digest
    return [News(position.cursor, "status", row)]


def as_event(news: News) -> str:
    """One of the server-sent events (HTML standard, 9.2)."""
    row = news.row
    if row.get("epoch") in (math.inf, -math.inf):
        row = {**row, "epoch": str(row["epoch"])}  # JSON has no number for it
    return f"id: {news.cursor}\nevent: {news.kind}\ndata: {to_json(row).decode()}\n\n"
