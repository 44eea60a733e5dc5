"""NaN and infinities: in tensors, and in metrics.

A NaN spreads through a network in one step (IEEE 754 gives NaN for every operation on one), so the
first tensor and step tell where it came from.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from tachograph.health.findings import Finding, listed
from tachograph.health.names import is_loss
from tachograph.health.steps import Sheet, TensorStep
from tachograph.records import NO_STEP, MetricBlock

RULE = "nan"
SCALED_RECORDS = 10
"""Records in a row with infinite gradients that mixed precision explains.

A scaler of gradients (Micikevicius et al. 2018, Mixed precision training) starts high on purpose,
leaves out the steps whose gradients overflow, and halves its scale each time."""
METRIC_POINTS = 3
"""Points in a row; some metrics are undefined now and then, as a precision without positives."""

_MOST_NAMES = 10_000
_KINDS = ("activation", "gradient", "hessian", "update", "weight")
"""In the order in which a step makes them."""


class TensorsNotFinite:
    """A weight or an update is not finite, or gradients keep being so."""

    name = RULE

    def __init__(self) -> None:
        self._since: tuple[int | None, str, str] | None = None  # step, kind, tensor
        self._records = 0

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        if step.is_sound:
            if step.sheets.keys() & {"gradient", "weight", "update"}:
                self._since, self._records = None, 0
            return None
        bad = {kind: sheet for kind, sheet in step.sheets.items() if sheet.not_finite.any()}
        kind = min(bad, key=_KINDS.index)
        names = bad[kind].layout.named(bad[kind].not_finite > 0)
        self._since = self._since or (step.step, kind, names[0])
        self._records += 1
        spoilt = bad.keys() & {"weight", "update"}
        if not spoilt and self._records < SCALED_RECORDS:
            return None
        return self._finding(step, bad, self._since)

    def _finding(
        self, step: TensorStep, bad: dict[str, Sheet], since: tuple[int | None, str, str]
    ) -> Finding:
        kind = "weight" if "weight" in bad else next(iter(bad))
        sheet = bad[kind]
        names = sheet.layout.named(sheet.not_finite > 0)
        what = "NaN" if sheet.nans.any() else "infinite values"
        first_step, first_kind, first = since
        message = (
            f"{what} in {len(names)} of {len(sheet.layout.names)} {kind}s at step {step.step}, "
            f"first seen in the {first_kind} of '{first}' at step {first_step}"
        )
        evidence: dict[str, Any] = {
            **listed(names),
            "kind": kind,
            "first_tensor": first,
            "first_kind": first_kind,
            "first_step": first_step,
            "records": self._records,
            "not_finite": int(sheet.not_finite.sum()),
        }
        return Finding(RULE, "error", message, step.step, evidence)


class MetricsNotFinite:
    """A loss is not finite, or another metric that was so before is no more."""

    name = RULE

    def __init__(self) -> None:
        self._sound: set[tuple[str, str]] = set()  # that have had a finite value
        self._streaks: dict[tuple[str, str], int] = {}

    def look(self, block: MetricBlock) -> Finding | None:
        """Look at some points of one series."""
        context, found = block.series.context, None
        if len(self._sound) >= _MOST_NAMES:  # names that never come back
            self._sound.clear()
            self._streaks.clear()
        for at, name in enumerate(block.series.names):
            if name.startswith("gradient_norm"):  # told of by the gradients themselves
                continue
            mark = name, context
            if may_be_infinite(block, at):
                found = found or self._examine(block, at, mark)
            elif mark not in self._sound or mark in self._streaks:
                self._sound.add(mark)
                self._streaks.pop(mark, None)
        return found

    def _examine(self, block: MetricBlock, at: int, mark: tuple[str, str]) -> Finding | None:
        name, context = mark
        enough = 1 if is_loss(name) else METRIC_POINTS
        for step, value in column(block, at):
            if math.isfinite(value):
                self._sound.add(mark)
                self._streaks.pop(mark, None)
                continue
            self._streaks[mark] = self._streaks.get(mark, 0) + 1
            if self._streaks[mark] == enough and (enough == 1 or mark in self._sound):
                shown_value = "NaN" if math.isnan(value) else "infinite"
                message = f"'{name}' is {shown_value} at step {step}"
                evidence = {"metric": name, "context": context, "value": str(value)}
                level = "error" if enough == 1 else "warning"
                return Finding(RULE, level, message, step, evidence)
        return None


def column(block: MetricBlock, at: int) -> list[tuple[int | None, float]]:
    """Step and value of each point of one metric."""
    after = 8 * (len(block.series.names) - at - 1)
    layout = f"<16xq{8 + 8 * at}xd{after}x"
    points: list[tuple[int | None, float]] = list(struct.iter_unpack(layout, block.data))
    if any(step == NO_STEP for step, _ in points):
        return [(None if step == NO_STEP else step, value) for step, value in points]
    return points


def finite_column(block: MetricBlock, at: int) -> list[tuple[int | None, float]]:
    """The same without NaN and infinities."""
    points = column(block, at)
    if may_be_infinite(block, at):
        return [point for point in points if math.isfinite(point[1])]
    return points


def may_be_infinite(block: MetricBlock, at: int) -> bool:
    """Whether one metric may have a NaN or an infinity among its values.

    Its upper byte is 7f or ff then, and else only of a number over 1e303: so no value has to be
    unpacked.
    """
    upper = block.data[39 + 8 * at :: block.row_bytes]
    return b"\x7f" in upper or b"\xff" in upper
