"""The store of a server as one reader sees it: complete, bounded, and what the token covers.

Knows stores and what was received; knows no route.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tachograph import host
from tachograph.backends.base import Backend, Query, SupportsInterrupt
from tachograph.errors import StoreError, TooLarge
from tachograph.merge import matches, select
from tachograph.query import Store
from tachograph.reading.live import Cursors, LiveReader
from tachograph.records import RELAY, Batch
from tachograph.server.scopes import Narrowed
from tachograph.table import Table

if TYPE_CHECKING:
    from tachograph.server.inbox import Inbox
    from tachograph.server.tokens import Grant


class Served:
    """The store as one reader sees it, for one request. A Backend that cannot be written.

    Parameters
    ----------
    backend : Backend
        The store.
    inbox : Inbox
    flush : callable
        Brings what was received into the store.
    rows : int
        Most rows of one answer.
    grant : Grant, optional
        Whose token asks; by default all is seen.

    Attributes
    ----------
    backend : Backend
        The store itself.
    store : Store
        This as a reader has it.
    live : LiveReader
        The store with what was received, of all runs.
    marks : mapping of writer to int
        Up to which record of a writer there is everything here, where the store's cursor may say
        less. To be looked at after reading.
    is_late : bool
        It was cut short.
    """

    def __init__(
        self,
        backend: Backend,
        inbox: Inbox,
        flush: Callable[[], None],
        rows: int,
        grant: Grant | None,
    ) -> None:
        self.backend = backend
        self.url = backend.url
        self.first_interval = backend.first_interval
        self.longest_interval = backend.longest_interval
        self.batch_bytes = backend.batch_bytes
        self.is_late = False
        self.marks: Mapping[str, int] = dict(inbox.known())  # before the tails, which may have more
        self._inbox = inbox
        self._flush = flush
        self._rows = rows
        self.live = LiveReader(backend, self._tails)
        self._beating = LiveReader(backend, self._tails_and_heartbeats)
        self._read = self._complete
        if grant is not None and not grant.covers_all:
            # Below the bound: how much there is of other projects must not matter.
            self._read = Narrowed(self._complete, grant.projects or ()).read
        self.store = Store(self, is_alive=is_alive)

    def read(self, query: Query) -> Table:
        """Read rows.

        Raises
        ------
        QueryError
            There is no such table, column or operator.
        TooLarge
            There are more rows than an answer has.
        """
        query.check()
        most = self._rows + 1
        if query.limit is None or query.limit > most:
            query = replace(query, limit=most)
        found = self._read(query)
        if len(found) == most:
            raise TooLarge(
                f"the answer has more than {self._rows} rows of {query.table!r}; ask for less:"
                " with conditions, a 'limit', or of a series for 'points'"
            )
        return found

    def write(self, batch: Batch) -> int:
        """Refuse: what is written goes through the inbox."""
        raise StoreError("a reader of a server does not write")

    def close(self) -> None:
        """Nothing: it is given back."""

    @property
    def records(self) -> int:
        """The number behind the last record of any writer."""
        found = self._cursors(Query("cursors", columns=["next"]))["next"]
        return max(found, default=0)

    def cut_short(self) -> None:
        """Make what reads now fail, and whatever is asked after it."""
        self.is_late = True
        if isinstance(self.backend, SupportsInterrupt):
            self.backend.interrupt()

    # ------------------------------------------------------------------ inside

    def _complete(self, query: Query) -> Table:
        if self.is_late:
            raise StoreError("cut short")
        if query.table == "cursors":
            return self._cursors(query)
        if query.raw and self._may_be_on_its_way(query):  # that is read from the store alone
            self._flush()
        return (self._beating if query.table == "writers" else self.live).read(query)

    def _tails(self, cursors: Mapping[str, int]) -> Iterable[Batch]:
        behind = self._inbox.behind
        batches = self._inbox.tails(cursors)
        if behind or self._inbox.behind:  # too much to be held: there is what the store has
            self.marks = {}
        return batches

    def _tails_and_heartbeats(self, cursors: Mapping[str, int]) -> Iterable[Batch]:
        return [*self._tails(cursors), *self._inbox.heartbeats()]

    def _may_be_on_its_way(self, query: Query) -> bool:
        """Whether some of the rows may be received, and not in the store."""
        named = [condition for condition in query.where if condition.column == "writer"]
        known = self._inbox.known()
        writers = [one for one in known if all(matches({"writer": one}, c) for c in named)]
        stored = Cursors(self.backend).of(writers)
        return any(known[writer] > stored.get(writer, 0) for writer in writers)

    def _cursors(self, query: Query) -> Table:
        """What the server expects next, not what its store does: the rest is on its way."""
        known = self._inbox.known()  # first: what is in the store by then is not among it
        stored = self.backend.read(replace(query, columns=None, order=(), limit=None))
        expected = dict(zip(stored["writer"], stored["next"], strict=True))
        expected = {one: next_ for one, next_ in expected.items() if not one.startswith(RELAY)}
        for writer, next_ in known.items():
            expected[writer] = max(next_, expected.get(writer, 0))
        rows = [{"writer": writer, "next": next_} for writer, next_ in expected.items()]
        return select(query, rows)


def is_alive(writer: Mapping[str, Any]) -> bool | None:
    """Whether a process still runs; None where it is not one of this machine.

    Machines with the same name are told apart: those who send to a server are many.
    """
    return host.is_alive(writer) if writer.get("boot_id") == host.boot_id() else None
