"""Records gradients and hessians of one booster, and sees those of a user's objective.

Knows arrays and a run; where the arrays come from is for others to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy

from tachograph.callbacks.tensors_host import Meter, Numbers, histogram, key, pack
from tachograph.run import Run
from tachograph.tensor_records import STATISTICS, TensorKey
from tachograph.values import canonical_json

NAME = "objective"
"""What gradients and hessians are named: they are those of the objective, one for each row."""

Array = Any  # numpy.ndarray
See = Callable[[Any, int], None]
"""Takes what an objective returned, and the number of rows."""

_L2, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "nan", "inf"))


class GradientRecord:
    """Logs what all rows of one booster have, apart for each class or target.

    Parameters
    ----------
    run : Run
    context : dict
        Of all tensors: ``{"scope": "rank"}`` where this process holds a part of the rows.
    """

    def __init__(self, run: Run, context: dict[str, Any]) -> None:
        self._run = run
        self._context = context
        self._meter = Meter()
        self._keys: dict[Any, tuple[TensorKey, ...]] = {}

    def log(self, tables: dict[str, Array], name: str, step: int, histograms: bool) -> float:
        """Record tables (class, row) by kind.

        Returns
        -------
        float
            Seconds that the histograms took.
        """
        rows = [row for table in tables.values() for row in table]
        numbers = [self._meter.measure(row) for row in rows]
        started = perf_counter()
        pairs = [histogram(row) for row in rows] if histograms else None
        seconds = perf_counter() - started
        keys = self._keys_of(tables, name)
        self._run.log_statistics(keys, pack(numbers), step, histograms=pairs)
        if "gradient" in tables:
            norm = _norm(numbers[: len(tables["gradient"])])
            self._run.log({"gradient_norm": norm}, step)
        return seconds if histograms else 0.0

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
        self._see(found, arguments[-1].num_row())
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)


def tables_of(gradient: Any, hessian: Any, rows: int) -> dict[str, Array]:
    """What an objective returned as tables (class, row); empty where it is on another device."""
    if not isinstance(gradient, numpy.ndarray) or not isinstance(hessian, numpy.ndarray):
        return {}
    return {
        kind: numpy.ascontiguousarray(array.reshape(rows, -1).T)
        for kind, array in (("gradient", gradient), ("hessian", hessian))
    }
