"""Following a run on a server: server-sent events, and a new connection where one ends.

Knows the events of docs/reference/protocol.md; `remote_http` knows how to ask.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.backends.remote_errors import Closed, Patience
from tachograph.backends.remote_http import Connection
from tachograph.errors import AccessDenied, StoreError, StoreNotFound, StoreTooNew
from tachograph.records import Row

FOLLOWING = Patience(connect=5.0, silence=45.0, total=86_400.0)
"""A comment comes each 15 seconds; after a day there is a new connection."""

AWAY_SECONDS = 300.0
"""How long a server may be away before whoever follows is told."""

_PAUSE = 0.5  # before a new connection; doubles
_LONGEST_PAUSE = 15.0
_FINAL = (AccessDenied, Closed, StoreNotFound, StoreTooNew)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; a comment has the kind 'comment' and nothing else."""

    id: str
    kind: str
    data: str

    def row(self) -> Row:
        """What it says; StoreError where it is no JSON object."""
        try:
            found = json.loads(self.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(f"the event {self.id!r} holds no row: {self.data[:80]!r}")
        if found.get("epoch") in ("inf", "-inf"):
            found["epoch"] = float(found["epoch"])
        return found


class RemoteFollowing:
    """Hears from a server what is added to a run."""

    _connection: Connection

    def follow(
        self,
        run_id: str,
        cursor: str | None = None,
        *,
        names: Sequence[str] = (),
        last: int | None = None,
    ) -> Iterator[tuple[str, str, Row]]:
        """Yield cursor, kind and row of each new thing, and wait for more, until the run has ended.

        A connection that ends is made anew, behind the last thing that came. The parameters are
        those of `base.SupportsFollow`.

        Raises
        ------
        RunNotFound
            There is no such run.
        StoreError
            The server cannot be reached: at first, or for `AWAY_SECONDS`.
        """
        heard: float | None = None
        pause = _PAUSE
        while True:
            try:
                for event in self._events(run_id, cursor, {"name": names, "last": last}):
                    heard, pause = time.monotonic(), _PAUSE
                    if event.kind == "end":
                        return
                    if event.kind != "comment":
                        cursor = event.id
                        yield event.id, event.kind, event.row()
            except _FINAL:
                raise
            except StoreError:
                if heard is None or time.monotonic() - heard > AWAY_SECONDS:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _events(self, run_id: str, cursor: str | None, asked: Mapping[str, Any]) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        params = {name: value for name, value in asked.items() if value not in (None, ())}
        with self._connection.stream(
            "GET", f"/runs/{run_id}/follow", patience=FOLLOWING, headers=headers, params=params
        ) as answer:
            yield Event("", "comment", "")  # it is there, even if it has nothing to say
            yield from parse_events(answer.iter_bytes())


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events, as the HTML standard has them, and comments."""
    fields: dict[str, list[str]] = {}
    for line in _lines(chunks):
        if not line:
            if "data" in fields:
                event_id, kind = fields.get("id", [""])[-1], fields.get("event", ["message"])[-1]
                yield Event(event_id, kind, "\n".join(fields["data"]))
            fields = {}
        elif line.startswith(":"):
            yield Event("", "comment", "")
        else:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines that end with a line feed; text inside JSON may hold what else ends lines."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
