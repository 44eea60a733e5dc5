"""Digests of what a table says, equal on every store that says the same.

A row's digest is the SHA-256 of its canonical JSON; a table's is their sum modulo 2**256, so the
order in which a store gives its rows does not matter, and a row that is there twice does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tachograph.backends.base import Condition, Query, SupportsDigests, table_columns
from tachograph.reading.listing import Reader
from tachograph.records import TABLES

DIGESTED = (
    *("runs", "attempts", "params", "tags", "provenance", "artifacts", "events"),
    *("all_metrics", "tensors", "summaries"),
)
"""Tables about runs that are compared."""

_CHANGE = {"changed_at", "writer", "seq", "deleted"}
_LEFT_OUT = {
    "runs": {"deleted"},  # of those that users see it is 0 or, where nobody said, NULL
    # When a summary was changed is the store's business, and the last digits of a mean depend
    # on how the points came in batches.
    "summaries": _CHANGE | {"mean"},
}
_MODULUS = 1 << 256


def digest_table(
    reader: Reader,
    table: str,
    where: Sequence[Condition] = (),
    *,
    without: Iterable[str] = (),
) -> str:
    """The digest of the rows of a table that users see, as 64 hexadecimal digits.

    Parameters
    ----------
    reader
        A backend or store; one that works out digests itself is asked for it.
    table : str
        A name in `records.TABLES`, or ``all_metrics``.
    where : sequence of Condition
        Only these rows.
    without : iterable of str
        Columns to leave out.
    """
    if isinstance(reader, SupportsDigests):
        return reader.digest(table, where, [*without])
    omitted = _LEFT_OUT.get(table, set()) | set(without)
    columns = [name for name in table_columns(table) if name not in omitted]
    found = reader.read(Query(table, where, columns))
    rows = zip(*(_plain(table, name, found[name]) for name in columns), strict=True)
    return f"{sum(map(_digest, rows)) % _MODULUS:064x}"


def add_digests(digests: Iterable[str]) -> str:
    """The digest of all rows together, from the digests of parts of a table."""
    return f"{sum(int(digest, 16) for digest in digests) % _MODULUS:064x}"


def _plain(table: str, column: str, values: Sequence[Any]) -> Sequence[Any]:
    """Floats as floats and without the sign of zero, which not every store keeps."""
    if TABLES["metrics" if table == "all_metrics" else table].columns[column] != "float":
        return values
    return [None if value is None else value + 0.0 for value in values]


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _digest(row: tuple[Any, ...]) -> int:
    text = _encode(row).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest(), "big")
