"""What a store must be able to do: write a batch, read a table, close.

Abilities beyond that are protocols of their own; a reader asks with `isinstance`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, runtime_checkable

from tachograph.errors import QueryError
from tachograph.records import TABLES, Batch, Row
from tachograph.table import Table

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "like"]
OPERATORS: tuple[str, ...] = ("=", "!=", "<", "<=", ">", ">=", "in", "like")


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a column with a constant.

    `in` takes a sequence; `like` is SQL's, with `%` and `_`, case-sensitive. A NULL column
    satisfies only `=` with None; `!=` with None means 'is not NULL'.
    """

    column: str
    operator: Operator
    value: Any


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows of one table to read.

    Attributes
    ----------
    table : str
        A name in `records.TABLES`, or `all_metrics` (every attempt), or `cursors`
        (columns writer and next: what this store expects from each writer it knows).
    where : sequence of Condition
        All must hold.
    columns : sequence of str or None
        Which columns, in order. None is every column of the table's spec.
    order : sequence of str
        Columns to sort by; a leading '-' sorts descending. NULLs come last either way. Without
        one, points of a series, rows of a tensor and events of a run come, of each writer, as they
        were recorded.
    limit : int or None
        At most this many rows.
    raw : bool
        False reads the view that users see: the latest change of each key, no deleted rows,
        nothing of deleted runs, the latest attempt's points, one summary per series over its
        writers. True reads all that the store holds: every attempt, tombstones, one summary
        per writer. In raw `runs` a NULL means 'not changed' where the store keeps changes
        apart; merging raw rows by key in order of (changed_at, writer, seq) gives the view.
    span : str or None
        A column: instead of rows comes one row per combination of `columns`, which then have to
        be given, with the columns `SPAN` more: the least and the greatest value of this column,
        which are NULL where it has none, and the number of rows.
    """

    table: str
    where: Sequence[Condition] = ()
    columns: Sequence[str] | None = None
    order: Sequence[str] = ()
    limit: int | None = None
    raw: bool = False
    span: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the answer."""
        columns = table_columns(self.table) if self.columns is None else self.columns
        return tuple(columns) if self.span is None else (*columns, *SPAN)

    def check(self) -> None:
        """Raise QueryError where the query names a table, column or operator that is not."""
        known = table_columns(self.table)
        named = [condition.column for condition in self.where]
        named += [name.removeprefix("-") for name in self.order]
        named += list(self.columns or ())
        if self.span is not None:
            named.append(self.span)
            self._check_span()
        for name in named:
            if name not in known:
                raise QueryError(
                    f"table {self.table!r} has no column {name!r}; it has: {', '.join(known)}"
                )
        for condition in self.where:
            if condition.operator not in OPERATORS:
                raise QueryError(f"unknown operator {condition.operator!r}")

    def _check_span(self) -> None:
        if not self.columns or set(self.columns) & set(SPAN):
            raise QueryError(f"a query with a span names its columns, none of them {SPAN}")
        if hidden := {name.removeprefix("-") for name in self.order} - set(self.columns):
            raise QueryError(f"a query with a span is sorted by its columns, not {sorted(hidden)}")


SPAN = ("first", "last", "count")
"""Columns that a query with a span has more."""


def table_columns(table: str) -> tuple[str, ...]:
    """Columns of a table that can be queried."""
    if table == "cursors":
        return ("writer", "next")
    spec = TABLES.get("metrics" if table == "all_metrics" else table)
    if spec is None:
        tables = ", ".join([*TABLES, "all_metrics", "cursors"])
        raise QueryError(f"there is no table {table!r}; there are: {tables}")
    return tuple(spec.columns)


class Backend(Protocol):
    """A store.

    A backend is made by its class with ``(url, *, create)``: `url` is absolute, `create` makes
    an absent store, otherwise StoreNotFound is raised. It is used by one thread at a time;
    several processes may each hold one on the same store.

    Attributes
    ----------
    url : str
        Where the store is, absolute, without secrets.
    first_interval, longest_interval : float
        Seconds after which the first batch of a writer should be written, and at most between
        later ones; intervals double in between. Equal for a store that takes small batches.
    batch_bytes : int
        Journal bytes that make a full batch, which is written without waiting.
    """

    url: str
    first_interval: float
    longest_interval: float
    batch_bytes: int

    def write(self, batch: Batch) -> int:
        """Store a batch and return the sequence number expected next from its writer.

        Durable when it returns: a power cut does not undo it. What was written before is left
        out, so a repeat or an overlap changes nothing. Keeps the table `summaries` up to date
        for the points of the batch, and the writer's `heartbeat_at` where the batch has one.

        Raises
        ------
        Gap
            The batch starts behind the record expected next; nothing was written.
        StoreError
            Nothing was written, for example on a full disk; the same batch may be tried again.
        """
        ...

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        ...

    def close(self) -> None:
        """Release files and connections. A second call does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the answer to one SELECT may take.

    Attributes
    ----------
    rows : int
        No more are fetched.
    bytes : int
        Of memory, about; an answer that needs more is a QueryError.
    """

    rows: int
    bytes: int

    def take(self, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The first rows; they are asked for one by one, because few may be huge."""
        taken, room = [], self.bytes
        for row in itertools.islice(rows, self.rows):
            room -= sum(len(value) for value in row if isinstance(value, str | bytes))
            if room < 0:
                raise QueryError(f"the answer has more than {self.bytes} bytes of text")
            taken.append(row)
        return taken


@runtime_checkable
class SupportsSQL(Protocol):
    """A store that answers SQL over the tables' views, read only."""

    def sql(
        self, text: str, parameters: Sequence[Any] = (), *, bounds: Bounds | None = None
    ) -> Table:
        """Run one SELECT; QueryError for anything that would write, or a mistake in it."""
        ...


@runtime_checkable
class SupportsTurns(Protocol):
    """A store that one process at a time writes to; `write` raises Locked where that takes long.

    Attributes
    ----------
    turn_seconds : float
        How long to wait for others that write; may be set.
    """

    turn_seconds: float


@runtime_checkable
class SupportsInterrupt(Protocol):
    """A store whose reading can be cut short."""

    def interrupt(self) -> None:
        """Make `read` or `sql` fail that runs in another thread; without one, do nothing."""
        ...


@runtime_checkable
class SupportsArtifacts(Protocol):
    """A store that keeps files by content."""

    def put_artifact(self, path: Path, sha256: str) -> str:
        """Copy a file in, once per content, checked by its digest; return its URI."""
        ...

    def open_artifact(self, sha256: str) -> BinaryIO:
        """Open a kept file for reading; StoreNotFound where there is none."""
        ...

    def list_artifacts(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of every kept file."""
        ...


@dataclass(frozen=True, slots=True)
class Garbage:
    """What `gc` found: deleted runs still in the store, files nobody refers to, their bytes."""

    runs: tuple[str, ...]
    points: int
    artifacts: tuple[str, ...]
    bytes: int


@runtime_checkable
class SupportsGC(Protocol):
    """A store that can free what deletes have hidden."""

    def gc(self, *, dry_run: bool = True) -> Garbage:
        """Find, and unless `dry_run` free, the rows and files of deleted runs."""
        ...


@runtime_checkable
class SupportsCompact(Protocol):
    """A store whose many small files can be merged."""

    def compact(self, *, grace_seconds: float = 3600.0) -> int:
        """Merge the parts of keyed tables; return how many files were replaced."""
        ...


@runtime_checkable
class SupportsListing(Protocol):
    """A store that filters, sorts and counts runs itself, as a server does for its clients."""

    def list_runs(
        self,
        where: str | None,
        sort: Sequence[str],
        columns: Sequence[str] | None,
        children: bool,
        limit: int | None,
        lost: bool,
    ) -> Table:
        """The runs, as `Store.runs` gives them; QueryError for a filter that cannot be."""
        ...


@runtime_checkable
class SupportsReduction(Protocol):
    """A store that gives a series reduced to about so many points."""

    def reduced_series(self, where: Sequence[Condition], attempts: str, points: int) -> Table:
        """Least and greatest point of each stretch of a series, with the columns of a point.

        Parameters
        ----------
        where : sequence of Condition
            They choose one series: run_id, name, context, rank.
        attempts : 'latest' or 'all'
        points : int
            At most this many, from 2.
        """
        ...


@runtime_checkable
class SupportsDigests(Protocol):
    """A store that works out the digest of a table itself, without sending it."""

    def digest(self, table: str, where: Sequence[Condition], without: Sequence[str]) -> str:
        """What `digests.digest_table` gives."""
        ...


@runtime_checkable
class SupportsFollow(Protocol):
    """A store that tells what is added to a run as it comes."""

    def follow(
        self,
        run_id: str,
        cursor: str | None = None,
        *,
        names: Sequence[str] = (),
        last: int | None = None,
    ) -> Iterator[tuple[str, str, Row]]:
        """Yield cursor, kind and row of each new thing, and wait for more, until the run has ended.

        Kinds are 'point' (a row of `metrics`), 'event' (of `events`) and 'status' (of `runs`).

        Parameters
        ----------
        run_id : str
        cursor : str, optional
            Go on behind what another iterator yielded with it.
        names : sequence of str
            Of points only those of these metrics; by default all.
        last : int, optional
            Without a cursor, begin with the last so many points rather than with the run.
        """
        ...


@runtime_checkable
class SupportsAbout(Protocol):
    """A store that says what it is, as a server does."""

    def about(self) -> Mapping[str, Any]:
        """Versions, limits and what the token may do, as docs/reference/protocol.md has them.

        And `time`, the clock of the server in µs, to the second.
        """
        ...
