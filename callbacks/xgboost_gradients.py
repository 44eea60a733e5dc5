"""Records gradients and hessians of one booster, and sees those of a user's objective.

Knows arrays and a run; where the arrays come from is for others to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy

from tachograph.callbacks import tensors_snapshot
from tachograph.callbacks.tensors_host import Meter, Numbers, histogram, key, pack
from tachograph.callbacks.tensors_pace import Plan
from tachograph.run import Run
from tachograph.tensors.records import STATISTICS, Pairs, TensorKey
from tachograph.values import canonical_json

NAME = "objective"
"""What gradients and hessians are named: they are those of the objective, one for each row."""

Array = Any  # numpy.ndarray
Tables = dict[str, Array]
"""By kind, such as 'gradient': what each class or target and row has."""

See = Callable[[Any, Any], None]
"""Takes what an objective returned, and the DMatrix that it was called with."""

_L2, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "nan", "inf"))


@dataclass(frozen=True)
class _Measured:
    """What was found of some tables, and the seconds that it took."""

    name: str
    step: int
    keys: tuple[TensorKey, ...]
    numbers: list[Numbers]
    pairs: Sequence[Pairs] | None
    snapshot: Tables
    seconds: float
    histogram_seconds: float


class Seconds(NamedTuple):
    """What records took, part by part."""

    moments: float = 0.0
    histograms: float = 0.0
    snapshot: float = 0.0

    def and_more(self, other: Seconds) -> Seconds:
        """Both together."""
        return Seconds(*(mine + more for mine, more in zip(self, other, strict=True)))


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
        self._beside: ThreadPoolExecutor | None = None
        self._pending: list[Future[_Measured]] = []

    def record(
        self, compute: Callable[[], Tables], name: str, step: int, plan: Plan, *, beside: bool
    ) -> None:
        """Measure tables, and log them when `collect` is called.

        Parameters
        ----------
        compute : callable
            Gives the tables.
        name : str
        step : int
        plan : Plan
        beside : bool
            Do it in another thread, while the booster is at work; the tables must not change.
        """
        if beside:
            self._beside = self._beside or ThreadPoolExecutor(1, "tachograph-gradients")
            future = self._beside.submit(self._measure, compute, name, step, plan)
        else:
            future = Future()
            future.set_result(self._measure(compute, name, step, plan))
        self._pending.append(future)

    def _measure(
        self, compute: Callable[[], Tables], name: str, step: int, plan: Plan
    ) -> _Measured:
        started = perf_counter()
        tables = compute()
        rows = [row for table in tables.values() for row in table]
        numbers = [self._meter.measure(row) for row in rows]
        measured = perf_counter()
        pairs = [histogram(row) for row in rows] if plan.histograms else None
        return _Measured(
            name,
            step,
            self._keys_of(tables, name),
            numbers,
            pairs,
            tables if plan.snapshot and self._keeps_snapshots else {},
            measured - started,
            perf_counter() - measured if pairs else 0.0,
        )

    def collect(self, *, wait: bool = False) -> Seconds:
        """Log what is measured, or with `wait` all; tell what that has taken."""
        total = Seconds()
        while self._pending and (wait or self._pending[0].done()):
            total = total.and_more(self._log(self._pending.pop(0).result()))
        return total

    def close(self) -> None:
        """Log all, and let the other thread end."""
        self.collect(wait=True)
        if self._beside is not None:
            self._beside.shutdown(wait=False)

    def _log(self, found: _Measured) -> Seconds:
        started = perf_counter()
        written = 0.0
        if found.snapshot:
            written = tensors_snapshot.save(self._run, found.snapshot, "gradients", found.step)
            written += perf_counter() - started
        self._run.log_statistics(
            found.keys, pack(found.numbers), found.step, histograms=found.pairs
        )
        gradients = zip(found.keys, found.numbers, strict=True)
        of_gradients = [numbers for key_, numbers in gradients if key_.kind == "gradient"]
        if of_gradients:
            self._run.log({"gradient_norm": _norm(of_gradients)}, found.step)
        return Seconds(found.seconds, found.histogram_seconds, written)

    def _keys_of(self, tables: Tables, name: str) -> tuple[TensorKey, ...]:
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


def tables_of(found: Any, matrix: Any) -> Tables:
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
