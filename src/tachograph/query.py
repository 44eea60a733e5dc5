"""A store for readers: runs, series, tensors, documents, SQL; and small edits.

Knows no medium and no way to show things. Everything read is merged with what reachable
journals still hold.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from tachograph.backends.base import (
    Backend,
    Condition,
    Garbage,
    Query,
    SupportsArtifacts,
    SupportsGC,
    SupportsListing,
    SupportsSQL,
)
from tachograph.errors import QueryError, RunNotFound, StoreError, StoreNotFound
from tachograph.reading import listing, point_query
from tachograph.reading.digests import digest_table
from tachograph.reading.edits import Editor
from tachograph.reading.listing import IsAlive, Listing
from tachograph.reading.live import LiveReader, Tails
from tachograph.reading.lookup import RunId, family_of, resolve_run
from tachograph.reading.run_record import RunRecord
from tachograph.records import TABLES, Row, join_special
from tachograph.table import Table
from tachograph.tensors import query as tensor_query


def open_store(url: str | None = None, *, config: Any = None, create: bool = False) -> Store:
    """Open a store to read it.

    What journals on this machine hold for the store is read too; what processes left there that
    are gone is brought into the store first.

    Parameters
    ----------
    url : str, optional
        ``sqlite:///runs.sqlite``, ``parquet:///runs``, or a path; by default the first store of
        the configuration.
    config : path or mapping, optional
        As in `load_config`.
    create : bool, default False
        Make the store where there is none.

    Raises
    ------
    StoreNotFound
        There is no store, and `create` is false.
    ConfigError
        The URL or the configuration is not usable.
    """
    from tachograph import config as configuration
    from tachograph import host, registry
    from tachograph.delivery import drain

    loaded = configuration.load_config(config)
    address = registry.resolve_url(url or loaded.backend[0], Path.cwd())
    configured = address in loaded.backend
    urls = loaded.backend if configured else (address,)
    folder = registry.journal_folder(urls, loaded.journal if configured else None)
    waiting = bool(
        drain.writers_for(folder, address)
    )  # for a store that is perhaps about to be made
    if waiting and registry.is_far(address):  # where it is away, nobody waits for it twice
        with contextlib.suppress(StoreNotFound):
            registry.open_backend(address).close()
    drain.drain_orphans(folder, (address,))
    backend = registry.open_backend(address, create=create or waiting)
    return Store(
        backend,
        tails=functools.partial(drain.pending_batches, folder, backend.url),
        is_alive=host.is_alive,
    )


class Store:
    """A store, as a reader sees it. A context manager; use it from one thread at a time.

    Parameters
    ----------
    backend : Backend
        Where the records are; closed with the store.
    tails : callable, optional
        Gives the batches in reachable journals that the backend does not have yet.
    is_alive : callable, optional
        Tells from a row of `writers` whether its process still runs, None where it cannot.

    Notes
    -----
    `run` is anywhere a run id, the beginning or end of one, a unique name, ``latest``, or
    ``@2`` for the second latest.
    """

    def __init__(
        self, backend: Backend, tails: Tails | None = None, is_alive: IsAlive | None = None
    ) -> None:
        self.backend = backend
        self._reader = LiveReader(backend, tails)
        self._is_alive = is_alive
        self._editor = Editor(self._reader)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.backend.url

    def read(self, query: Query) -> Table:
        """Rows of one table, as `Backend.read`, with the tails of journals merged in."""
        return self._reader.read(query)

    def close(self) -> None:
        """Close the backend. A second call does nothing."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ runs

    def runs(
        self,
        where: str | None = None,
        sort: str | Sequence[str] = "-started_at",
        columns: Sequence[str] | None = None,
        children: bool = False,
        limit: int | None = None,
        lost: bool = True,
    ) -> Table:
        """List runs, one row each.

        Parameters
        ----------
        where : str, optional
            A filter, such as ``metrics.val_loss < 0.1``; see `tachograph.reading.filters`.
        sort : str or sequence of str
            Names of the filter language; a leading '-' sorts descending. By default newest first.
        columns : sequence of str, optional
            Names of the filter language; by default all columns of a run.
        children : bool, default False
            Also trials, folds, steps and other parts.
        limit : int, optional
            At most this many.
        lost : bool, default True
            Show as lost what never ended and whose process is gone.

        Examples
        --------
        >>> store.runs("metrics.val_loss < 0.1 and params.lr > 1e-4",
        ...            columns=["name", "metrics.val_loss.min", "params.lr"])  # doctest: +SKIP
        """
        backend = self.backend
        if isinstance(backend, SupportsListing) and not self._reader.has_tail():
            return backend.list_runs(where, _texts(sort), columns, children, limit, lost)
        request = Listing(where, sort, columns, children, limit, lost)
        return listing.list_runs(self._reader, request, self._is_alive)

    def resolve(self, run: str) -> RunId:
        """The id of a run; RunNotFound, listing candidates, where none or several fit."""
        return resolve_run(self._reader, run)

    def run(self, run: str) -> RunRecord:
        """One run with everything that is known about it, read when asked for."""
        return RunRecord(self, self.resolve(run))

    def has_run(self, run_id: str) -> bool:
        """Whether there is a run of exactly that id."""
        return len(self.read(Query("runs", [Condition("run_id", "=", run_id)], ["run_id"]))) > 0

    def row(self, run: str) -> Row:
        """The columns of a run, with the status it is shown with."""
        run_id = self.resolve(run)
        found = self.read(Query("runs", [Condition("run_id", "=", run_id)]))
        if not len(found):
            raise RunNotFound(f"there is no run {run_id} any more")
        return next(iter(listing.show_lost(self._reader, found, self._is_alive)))

    def children(self, run: str) -> Table:
        """The runs whose parent this is, in order of their start."""
        where = [Condition("parent_id", "=", self.resolve(run))]
        columns = listing.DEFAULT_COLUMNS
        found = self.read(Query("runs", where, columns, order=["started_at", "run_id"]))
        return listing.show_lost(self._reader, found, self._is_alive)

    # ------------------------------------------------------------------ points

    def metrics_of(self, run: str) -> Table:
        """What series a run has: name, context, rank, attempt, and their summaries."""
        columns = "name context rank attempt last special last_step last_time min max mean count"
        where = [Condition("run_id", "=", self.resolve(run))]
        order = ("name", "context", "rank", "attempt")
        found = self.read(Query("summaries", where, columns.split(), order)).to_pydict()
        special = found.pop("special")
        found["last"] = [*map(join_special, found["last"], special)]
        return Table(found)

    def series(
        self,
        run: str,
        name: str,
        *,
        context: Mapping[str, Any] | str | None = None,
        rank: int | Literal["all"] | None = None,
        attempts: Literal["latest", "all"] = "latest",
        points: int | None = None,
    ) -> Table:
        """The points of a metric, by step, then by time.

        Parameters
        ----------
        run, name : str
            Which run, which metric.
        context : mapping or canonical JSON text, optional
            Such as ``{"phase": "test"}``: the context equal to it, or the only one that has
            these keys. By default the empty context, or the only one there is.
        rank : int or 'all', optional
            Of which rank; 'all' adds a column. By default the lowest that has the metric.
        attempts : 'latest' or 'all'
            Of a resumed run, what the latest attempt did not replace, or everything, with a
            column.
        points : int, optional
            At most so many, from 2, chosen so that a drawing of them looks like one of all: the
            first, the last, and of each stretch the least, the greatest and what is no finite
            number; see `tachograph.reading.reduction`. By default all.

        Returns
        -------
        Table
            step, epoch, time (µs), value (float; NaN, infinities and -0.0 are exact).

        Raises
        ------
        QueryError
            The run has no such metric, or it is in several contexts; the message lists them.
        """
        where = point_query.find_series(self._reader, self.resolve(run), name, context, rank)
        return point_query.read_points(self._reader, where, attempts, points)

    def curves(
        self, run: str, series: Iterable[Mapping[str, Any]], points: int | None = None
    ) -> dict[tuple[str, str, int], Table]:
        """Several series of a run, in few questions to the store.

        Parameters
        ----------
        run : str
            Which run.
        series : iterable of mapping
            Rows of `metrics_of`.
        points : int, optional
            At most so many of each, as in `series`.

        Returns
        -------
        dict
            Name, context and rank to the columns of `series`.
        """
        counts: Counter[tuple[str, str, int]] = Counter()
        for row in series:
            counts[row["name"], row["context"], row["rank"]] += row["count"]
        return point_query.read_curves(self._reader, self.resolve(run), counts, points)

    # ------------------------------------------------------------------ tensors

    def tensors(
        self,
        run: str,
        kind: str | Sequence[str] | None = None,
        name: str | Sequence[str] | None = None,
        step: int | range | Literal["last"] | None = None,
        *,
        context: Mapping[str, Any] | None = None,
        ranks: int | Literal["merge", "all"] = "merge",
        attempts: Literal["latest", "all"] = "latest",
        children: bool | None = None,
        histograms: bool = False,
        columns: Sequence[str] | None = None,
    ) -> Table:
        """Statistics of weights, gradients, updates and activations, one row per tensor and step.

        Parameters
        ----------
        run : str
            Which run.
        kind : str or sequence of str, optional
            'weight', 'gradient', 'hessian', 'update' or 'activation'; by default all.
        name : str or sequence of str, optional
            Names, or patterns with ``*`` (or ``%``) for any text, such as ``encoder.*``.
        step : int, range or 'last', optional
            One step, those of a range, or of each tensor the last one; by default all.
        context : mapping, optional
            Only rows whose context has these keys with these values: ``{"stage": "clipped"}``.
        ranks : 'merge', 'all' or int, default 'merge'
            'merge' makes one row of the shards that ranks hold of a tensor, at the steps where
            none is missing; 'all' gives what each rank recorded, a number that of one rank.
        attempts : 'latest' or 'all'
            Of a resumed run, what the latest attempt did not replace, or everything.
        children : bool, optional
            Also the tensors of its parts (True), never (False), or by default where it has none
            of its own: a trial has those of the trainings in it, a study those of its trials.
        histograms : bool, default False
            A column more: pairs of bin and count; see `tachograph.tensors.histograms`.
        columns : sequence of str, optional
            Only these; quicker where there are many rows.

        Returns
        -------
        Table
            Columns of the table `tensors`, shapes as tuples; `shards`, how many rows were merged
            into one; `update_ratio`, of a weight the l2 of its update by that of itself. Sorted
            by run and step; the tensors of a step are in the order of the model.

        Raises
        ------
        QueryError
            Nothing fits; the message says what there is.
        """
        chosen = tensor_query.COLUMNS if columns is None else tuple(columns)
        extra = ("histogram",) if histograms and "histogram" not in chosen else ()
        wanted = tensor_query.Wanted(
            self._with_tensors(self.resolve(run), children),
            _texts(kind),
            _texts(name),
            step,
            context or {},
            ranks,
            attempts,
            (*chosen, *extra),
        )
        return tensor_query.find(self.read, wanted)

    def tensors_of(self, run: str, *, children: bool | None = None) -> Table:
        """What tensors a run has: run_id, name, kind, context, first_step, last_step, steps."""
        run_ids = self._with_tensors(self.resolve(run), children)
        return tensor_query.index(self.read, tensor_query.Wanted(run_ids))

    def _with_tensors(self, run_id: str, children: bool | None) -> list[str]:
        """The run, its parts too, or those where it has no tensors itself."""
        if children is None:
            own = [Condition("run_id", "=", run_id)]
            children = not len(self.read(Query("tensors", own, ["run_id"], limit=1)))
        return family_of(self._reader, [run_id]) if children else [run_id]

    # ------------------------------------------------------------------ documents

    def params(self, run: str) -> Table:
        """Parameters: path, value (decoded from JSON), source."""
        found = self._of(run, "params", ("path", "value", "source"), "path").to_pydict()
        found["value"] = [None if text is None else json.loads(text) for text in found["value"]]
        return Table(found)

    def tags(self, run: str) -> Table:
        """Tags: key, value."""
        return self._of(run, "tags", ("key", "value"), "key")

    def attempts(self, run: str) -> Table:
        """Tries at a run."""
        return self._of(run, "attempts", _public("attempts"), "attempt")

    def events(self, run: str) -> Table:
        """What happened, in order of time."""
        return self._of(run, "events", (*_public("events"), "writer", "seq"), "time", "seq")

    def artifacts(self, run: str) -> Table:
        """Files and references to files."""
        return self._of(run, "artifacts", _public("artifacts"), "path")

    def provenance(self, run: str) -> Table:
        """Documents: section, document (decoded from JSON), digest."""
        columns = ("section", "document", "digest")
        found = self._of(run, "provenance", columns, "section").to_pydict()
        found["document"] = [json.loads(text or "null") for text in found["document"]]
        return Table(found)

    def _of(self, run: str, table: str, columns: Sequence[str], *order: str) -> Table:
        where = [Condition("run_id", "=", self.resolve(run))]
        return self.read(Query(table, where, columns, order))

    def open_artifact(self, sha256: str) -> BinaryIO:
        """Open a file that the store keeps, by its digest."""
        if not isinstance(self.backend, SupportsArtifacts):
            raise StoreError(f"{self.url} keeps no files")
        return self.backend.open_artifact(sha256)

    def sql(self, text: str, parameters: Sequence[Any] = ()) -> Table:
        """Run one SELECT over the tables in the store; journals are not seen by it.

        Raises
        ------
        QueryError
            The text would write, or has a mistake, or the store answers no SQL.
        """
        if not isinstance(self.backend, SupportsSQL):
            raise QueryError(f"{self.url} answers no SQL")
        return self.backend.sql(text, parameters)

    def digest(
        self, table: str, where: Sequence[Condition] = (), without: Sequence[str] = ()
    ) -> str:
        """A digest of the rows of a table, whatever their order; see `digests.digest_table`."""
        reader = self._reader if self._reader.has_tail() else self.backend
        return digest_table(reader, table, where, without=without)

    # ------------------------------------------------------------------ edits

    def edit(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Write rows as a writer of its own: changes of keyed tables, or events.

        `writer`, `seq`, `changed_at` and missing columns are filled in. A row with
        ``deleted=1`` deletes its key.
        """
        self._editor.write(rows)

    def tag(self, run: str, /, **tags: str | None) -> None:
        """Set tags; None takes one away."""
        self._editor.tag(self.resolve(run), tags)

    def note(self, run: str, text: str) -> None:
        """Add a note to the events of a run."""
        self._editor.note(self.resolve(run), text)

    def update(self, run: str, **columns: str) -> None:
        """Change name, project, description, hypothesis or verdict of a run."""
        self._editor.update(self.resolve(run), columns)

    def delete(self, *runs: str) -> list[str]:
        """Hide runs with all their descendants and points; return their ids. `gc` frees them."""
        return self._editor.delete([self.resolve(run) for run in runs])

    def gc(self, *, dry_run: bool = True) -> Garbage:
        """Find, and unless `dry_run` free, what deleted runs still take."""
        if not isinstance(self.backend, SupportsGC):
            raise StoreError(f"{self.url} cannot free what is deleted")
        return self.backend.gc(dry_run=dry_run)


def _public(table: str) -> tuple[str, ...]:
    hidden = ("run_id", *listing.BOOKKEEPING)
    return tuple(name for name in TABLES[table].columns if name not in hidden)


def _texts(wanted: str | Sequence[str] | None) -> Sequence[str]:
    return (wanted,) if isinstance(wanted, str) else wanted or ()
