"""One hash of 64 bits per row of data, by which equal rows of two data sets are found.

Equal rows have equal hashes in whatever container and numeric type they lie. Two other rows have
the same hash with a chance of less than one in 10^18. Reads a chunk at a time, keeps no reference
to the data, and of many rows only hashes below a limit: a sample that is the same in all data sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tachograph.provenance.row_parts import Part, Picked
from tachograph.provenance.row_sources import part_of
from tachograph.provenance.row_values import NotHashed, factors, mix, numpy

KEPT = 1 << 20
"""About so many hashes are kept of data with more rows."""

READ_BYTES = 1 << 30
"""Larger data are not read; a core takes about a second for as much."""

_MOST_COLUMNS = 1 << 22
_SAMPLE = 512


@dataclass(frozen=True, slots=True)
class RowHashes:
    """The rows of some data, as far as they can be told apart.

    Attributes
    ----------
    rows : int
        All rows.
    hashes : numpy.ndarray of uint64
        Distinct hashes, ascending, not above `limit`.
    counts : numpy.ndarray of uint32
        How many rows have each.
    limit : int
        2^64 - 1 where all were kept.
    bits : float
        About how much a row tells: the entropy of each column's values, in bits.
    """

    rows: int
    hashes: Any
    counts: Any
    limit: int
    bits: float

    @property
    def is_exact(self) -> bool:
        """Whether all rows are there."""
        return self.limit == _ALL

    @property
    def distinct(self) -> int:
        """Distinct rows; an estimate where not all are there."""
        return min(self.rows, round(len(self.hashes) / self._share))

    @property
    def repeated(self) -> float:
        """The share of rows that another row is equal to."""
        counted = int(self.counts.sum())
        return int(self.counts[self.counts > 1].sum()) / counted if counted else 0.0

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        return int(self.hashes.nbytes + self.counts.nbytes)

    @property
    def digest(self) -> str:
        """The same for data of the same rows, in whatever order."""
        hasher = hashlib.sha256(f"{self.rows}\0{self.limit}\0".encode())
        hasher.update(self.hashes.tobytes() + self.counts.tobytes())
        return hasher.hexdigest()

    @property
    def _share(self) -> float:
        return (self.limit + 1) / (_ALL + 1)

    def rows_among(self, others: RowHashes) -> tuple[int, bool]:
        """How many of these rows are among others, and whether that is exact."""
        np = numpy()
        limit = min(self.limit, others.limit)
        below = int(np.searchsorted(self.hashes, np.uint64(limit), side="right"))
        mine = self.hashes[:below]
        places = np.searchsorted(others.hashes, mine)
        places[places == len(others.hashes)] = 0
        found = others.hashes[places] == mine if len(others.hashes) else np.zeros(below, bool)
        count = int(self.counts[:below][found].sum())
        if limit == _ALL:
            return count, True
        return min(self.rows, round(count * (_ALL + 1) / (limit + 1))), False


_ALL = (1 << 64) - 1


def hash_rows(data: Any) -> RowHashes:
    """Hash the features of each row.

    Takes about a second of a core and 64 MB of memory for 1 GB.

    Parameters
    ----------
    data : any
        See `row_sources.part_of`.

    Returns
    -------
    RowHashes

    Raises
    ------
    NotHashed
        The text says why: it is a stream, lies on a device, is too large, …
    """
    part = _readable(data)
    limit = _limit(part.rows)
    return _counted(part.rows, _below(part, limit), limit, _bits(part))


def hash_parts(data: Any, parts: Iterable[Any]) -> list[RowHashes]:
    """As `hash_rows`, of several parts of the rows, which are read once.

    Parameters
    ----------
    data : any
    parts : iterable of arrays
        The numbers of the rows of each part, or for all rows whether they belong to it.
    """
    np = numpy()
    whole = _readable(data)
    hashes = _below(whole, _ALL)
    found = []
    for part in parts:
        numbers = np.arange(whole.rows)[np.asarray(part)]
        picked = Picked(whole, numbers)
        if not picked.rows:
            raise NotHashed("it is empty")
        limit = _limit(picked.rows)
        own = hashes[numbers]
        found.append(_counted(picked.rows, own[own <= np.uint64(limit)], limit, _bits(picked)))
    return found


def _readable(data: Any) -> Part:
    part = part_of(data)
    if part.rows * part.row_bytes > READ_BYTES or part.width > _MOST_COLUMNS:
        raise NotHashed(f"reading more than {READ_BYTES >> 30} GiB would take too long")
    if not part.rows or not part.width:
        raise NotHashed("it is empty")
    return part


def _limit(rows: int) -> int:
    return _ALL if rows <= KEPT else (KEPT << 64) // rows


def _counted(rows: int, hashes: Any, limit: int, bits: float) -> RowHashes:
    distinct, counts = numpy().unique(hashes, return_counts=True)
    return RowHashes(rows, distinct, counts.astype("u4"), limit, bits)


def _below(part: Part, limit: int) -> Any:
    """The hashes of all rows that are not above the limit, in order of the rows."""
    np = numpy()
    width = factors(part.width, 1)[0]  # rows of other widths are other rows
    kept = []
    for start in range(0, part.rows, part.chunk):
        sums = part.sums(slice(start, min(part.rows, start + part.chunk)), 0)
        hashes = mix(mix(sums + width))
        kept.append(hashes if limit == _ALL else hashes[hashes <= np.uint64(limit)])
    return np.concatenate(kept)


def _bits(part: Part) -> float:
    """What `RowHashes.bits` says, from rows that are spread evenly."""
    np = numpy()
    rows = np.unique(np.linspace(0, part.rows - 1, _SAMPLE).astype("i8"))
    return part.bits(rows)
