"""Records gradients and hessians of one booster, and sees those of a user's objective.

Knows arrays and a run; where the arrays come from is for others to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy

from tachograph.callbacks import tensors_snapshot
from tachograph.callbacks.tensors_host import Meter, Numbers, histogram, key, pack
from tachograph.callbacks.tensors_pace import Plan
from tachograph.run import Run
from tachograph.tensor_records import STATISTICS, TensorKey
from tachograph.values import canonical_json

NAME = "objective"
"""What gradients and hessians are named: they are those of the objective, one for each row."""

Array = Any  # numpy.ndarray
See = Callable[[Any, Any], None]
"""Takes what an objective returned, and the DMatrix that it was called with."""

_L2, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "nan", "inf"))


class GradientRecord:
    """Logs what all rows of one booster have, apart for each class or target.

    Parameters
    ----------
    run : Run
    context : dict
        Of all tensors: ``{"scope": "rank"}`` where this process holds a part of the rows.
    keeps_snapshots : bool
        Whether the arrays themselves are kept too, where it is planned.
    """

    def __init__(self, run: Run, context: dict[str, Any], keeps_snapshots: bool) -> None:
        self._run = run
        self._context = context
        self._keeps_snapshots = keeps_snapshots
        self._meter = Meter()
        self._keys: dict[Any, tuple[TensorKey, ...]] = {}

    def log(
        self, tables: dict[str, Array], name: str, step: int, plan: Plan
    ) -> tuple[float, float]:
        """Record tables (class, row) by kind.

        Returns
        -------
        (float, float)
            Seconds that histograms and a snapshot took.
        """
        rows = [row for table in tables.values() for row in table]
        numbers = [self._meter.measure(row) for row in rows]
        started = perf_counter()
        pairs = [histogram(row) for row in rows] if plan.histograms else None
        measured = perf_counter()
        snapshot_seconds = 0.0
        if plan.snapshot and self._keeps_snapshots:
            written = tensors_snapshot.save(self._run, tables, "gradients", step)
            snapshot_seconds = perf_counter() - measured + written
        self._run.log_statistics(self._keys_of(tables, name), pack(numbers), step, histograms=pairs)
        if "gradient" in tables:
            norm = _norm(numbers[: len(tables["gradient"])])
            self._run.log({"gradient_norm": norm}, step)
        return measured - started if pairs else 0.0, snapshot_seconds

    def _keys_of(self, tables: dict[str, Array], name: str) -> tuple[TensorKey, ...]:
        mark = tuple((kind, table.shape, table.dtype) for kind, table in tables.items())
        known = self._keys.get(mark)
        if known is None:
            known = self._keys[mark] = tuple(
                key(name, kind, row, canonical_json(self._context | class_context(number, table)))
                for kind, table in tables.items()
                for number, row in enumerate(table)
            )
        return known


def class_context(number: int, classes: Sequence[Any]) -> dict[str, Any]:
    """What sets apart one class or target; nothing where there is one only."""
    return {"class": number} if len(classes) > 1 else {}


def _norm(numbers: Sequence[Numbers]) -> float:
    """The norm of several gradients together; those of `numbers` are of finite values only."""
    if any(one[_NAN] for one in numbers):
        return math.nan
    if any(one[_INF] for one in numbers):
        return math.inf
    return math.hypot(*(one[_L2] for one in numbers))


# ---------------------------------------------------------------------------- objectives


class Tap:
    """A user's objective that shows what it returns, and is that objective in all else.

    It passes for an instance of the same class, because XGBoost asks for that.
    """

    def __init__(self, objective: Any, see: See) -> None:
        self._objective = objective
        self._see = see

    __class__ = property(lambda self: type(self._objective))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        found = self._objective(*arguments, **keywords)
        self._see(found, arguments[-1] if arguments else None)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)


def tables_of(found: Any, matrix: Any) -> dict[str, Array]:
    """What an objective returned, as tables (class, row); empty where it is not numpy's."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        return {}
    if not all(isinstance(array, numpy.ndarray) for array in found):
        return {}
    rows = matrix.num_row()
    return {
        kind: numpy.ascontiguousarray(array.reshape(rows, -1).T)
        for kind, array in zip(("gradient", "hessian"), found, strict=True)
    }
