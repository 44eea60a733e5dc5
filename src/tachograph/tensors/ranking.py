"""Which tensors of a step a person should look at first, and why.

An order for looking, not a verdict: the thresholds only decide what gets a remark. Pure functions
over rows; knows what the statistics mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.records import Row
from tachograph.table import Table

USUAL_RATIO = 1e-3
"""About where the update of a weight by the weight lies in trainings that go well."""

SMALL_RATIO, LARGE_RATIO = 1e-6, 0.1
"""Outside of these an update is remarked upon."""

FAR = 1e3
"""How many times smaller or larger than its peers a gradient is when that is remarked upon."""

_COMPARED = ("gradient", "hessian", "update")  # with their peers; also those that may not be 0
_FEW = 3  # below that there are no peers

Peers = dict[tuple[Any, ...], float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How urgent it is to look at a tensor: by level, then by distance in powers of ten."""

    level: int
    distance: float
    remark: str = ""


def worst_first(rows: Table) -> Table:
    """Rows with a column `remark`, in this order.

    1. Those with NaN or infinities, the larger share of them first.
    2. Gradients, hessians, updates and activations that are zero everywhere.
    3. Gradients that are `FAR` smaller or larger than their peers, and updates below
       `SMALL_RATIO` or above `LARGE_RATIO` of their weight; the farthest first.
    4. All others: gradients by how many powers of ten the size of their values is from that of
       their peers, weights by how far the ratio of their update is from `USUAL_RATIO`. The size is
       the root of the mean square, the peers are those of the same run, kind, context and step,
       and what counts of them is their median.

    Parameters
    ----------
    rows : Table
        Of `Store.tensors`, with size, l2, zeros, nan, inf and update_ratio.
    """
    listed = list(rows)
    judged = judge(listed)
    order = sorted(range(len(listed)), key=lambda at: (-judged[at].level, -judged[at].distance))
    found = [listed[at] | {"remark": judged[at].remark} for at in order]
    return Table.from_rows(found, (*rows.columns, "remark"))


def with_remarks(rows: Table) -> Table:
    """Rows as they are, with the column `remark` of `worst_first`."""
    remarks = [judgement.remark for judgement in judge(list(rows))]
    return Table({name: rows[name] for name in rows.columns} | {"remark": remarks})


def judge(rows: Sequence[Row]) -> list[Judgement]:
    """What is to be said of each row."""
    peers = _peers(rows)
    return [_judge(row, peers) for row in rows]


def _judge(row: Row, peers: Peers) -> Judgement:
    size, nan, inf = row["size"] or 0, row["nan"] or 0, row["inf"] or 0
    if nan or inf:
        counts = [f"{n:,} {name}" for n, name in ((nan, "NaN"), (inf, "Inf")) if n]
        return Judgement(3, (nan + inf) / max(size, 1), f"{' and '.join(counts)} of {size:,}")
    if size and row["zeros"] == size and row["kind"] in (*_COMPARED, "activation"):
        return Judgement(2, 0.0, "zero everywhere")
    if row["kind"] == "weight":
        return _judge_ratio(row["update_ratio"])
    return _judge_size(_size(row), peers.get(_group(row)))


def _judge_ratio(ratio: float | None) -> Judgement:
    if not ratio:
        return Judgement(0, 0.0)
    distance = abs(math.log10(ratio / USUAL_RATIO))
    if SMALL_RATIO <= ratio <= LARGE_RATIO:
        return Judgement(0, distance)
    change = f"{ratio:.0%}" if ratio > LARGE_RATIO else f"{ratio:.1e}"
    return Judgement(1, distance, f"update is {change} of it")


def _judge_size(size: float | None, usual: float | None) -> Judgement:
    if not size or not usual:
        return Judgement(0, 0.0)
    distance = math.log10(size / usual)
    if abs(distance) < math.log10(FAR):
        return Judgement(0, abs(distance))
    times = f"{float(f'{10 ** abs(distance):.1e}'):,.0f}"
    than = "below" if distance < 0 else "above"
    return Judgement(1, abs(distance), f"{times} × {than} peers")


def _peers(rows: Sequence[Row]) -> Peers:
    """The median size of the values of each group that has peers."""
    sizes: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["kind"] in _COMPARED and (size := _size(row)):
            sizes.setdefault(_group(row), []).append(size)
    return {group: statistics.median(s) for group, s in sizes.items() if len(s) >= _FEW}


def _group(row: Row) -> tuple[Any, ...]:
    return row["run_id"], row["kind"], row["context"], row["step"]


def _size(row: Row) -> float | None:
    """The root of the mean square of the finite values."""
    finite = (row["size"] or 0) - (row["nan"] or 0) - (row["inf"] or 0)
    return row["l2"] / math.sqrt(finite) if row["l2"] is not None and finite > 0 else None
