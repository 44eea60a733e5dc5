"""Proves by digests that runs are the same in two stores.

A store that works out digests itself, as a server does, sends nothing else, and is never asked
for more at once than fits into memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from tachograph.backends.base import Backend
from tachograph.errors import StoreError
from tachograph.reading import portions
from tachograph.reading.digests import DIGESTED, add_digests, digest_table
from tachograph.records import TABLES
from tachograph.table import Table


def prove(source: Backend, destination: Backend, run_ids: Sequence[str], records: int) -> Table:
    """The digests of each table in both stores, of these runs alone.

    Parameters
    ----------
    source, destination : Backend
    run_ids : sequence of str
        Which runs, with all that belongs to them.
    records : int
        As many as the longest writer of the source has.

    Returns
    -------
    Table
        table, source, destination.

    Raises
    ------
    StoreError
        They differ.
    """
    keyed = [[portions.one_of("run_id", some)] for some in portions.chunks(run_ids)]
    weight = portions.weights(source, "run_id", run_ids)
    growing = list(portions.of_runs(run_ids, weight, records))

    def digest(store: Backend, table: str) -> str:
        parts = keyed if table in TABLES and not TABLES[table].grows else growing
        # A copy of chosen runs has writers of its own, so they are left out.
        return add_digests(digest_table(store, table, part, without=["writer"]) for part in parts)

    here = [digest(source, table) for table in DIGESTED]
    there = [digest(destination, table) for table in DIGESTED]
    digests = Table({"table": DIGESTED, "source": here, "destination": there})
    if differing := [row["table"] for row in digests if row["source"] != row["destination"]]:
        raise StoreError(
            f"{destination.url} differs from {source.url} in {', '.join(differing)}:"
            " either the source was written meanwhile (copy again), or the destination had"
            " changes of its own to the same runs"
        )
    return digests
