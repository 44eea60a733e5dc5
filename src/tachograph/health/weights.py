"""Weights that do not change, and updates that are too large or too small for them."""

from __future__ import annotations

import re
from typing import Any

from tachograph.health.findings import Finding, listed, middle, shown
from tachograph.health.steps import Sheet, TensorStep

_NUMBER = re.compile(r"_?(\d+)")


class FrozenWeights:
    """A layer has never changed although it is meant to be trained.

    Either it has gradients and is not updated: then the optimizer does not have it. Or it has no
    gradient while layers of the same stack before it are trained, as `net.2` between `net.0` and
    `net.4`. First layers, most of a stack, biases and norms without gradient are taken for frozen
    on purpose, as in fine-tuning a backbone or adapters.

    Parameters
    ----------
    records : int
        Records in a row without a change, in which other weights did change.
    """

    name = "frozen_weights"
    _NEGLIGIBLE = 1e-3  # of the median gradient: below it a step may round to nothing

    def __init__(self, records: int) -> None:
        self._wanted = records
        self._first: dict[str, Any] = {}  # moments of tensors that have not changed yet
        self._same: dict[str, int] = {}
        self._changed: set[str] = set()
        self._records = 0
        self._has_gradients = False
        self._told: set[str] = set()

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        weights, gradients = step.sheets.get("weight"), step.sheets.get("gradient")
        self._has_gradients = self._has_gradients or gradients is not None
        if weights is None or not self._compare(weights):
            return None
        if not self._has_gradients or self._records < self._wanted:
            return None
        names = self._without_update(gradients) if gradients is not None else []
        why = "has gradients but never changes: is it in the optimizer?"
        if not names and self._records == self._wanted:
            names = self._without_gradient(gradients)
            why = "never changes, although layers of its stack before it do"
        if not names:
            return None
        self._told.update(names)
        message = f"{shown(names)} {why} ({self._records} records up to step {step.step})"
        evidence = listed(names) | {"threshold": self._wanted, "records": self._records}
        return Finding(self.name, "warning", message, step.step, evidence)

    def _compare(self, weights: Sheet) -> bool:
        """Note which weights have changed; whether any has."""
        index, moments = weights.layout.index, weights.moments
        for name in weights.layout.named(weights.layout.is_matrix):
            if name not in self._changed and name not in self._first:
                self._first[name] = moments[index[name]].copy()
                self._same[name] = 0
        for name in [name for name in self._first if name in index]:
            row, first = moments[index[name]], self._first[name]
            if (row == first).all():
                self._same[name] += 1
            else:
                del self._first[name], self._same[name]
                self._changed.add(name)
        self._records += bool(self._changed)
        return bool(self._changed)

    def _without_update(self, gradients: Sheet) -> list[str]:
        index, rms = gradients.layout.index, gradients.rms
        trained = [float(rms[index[name]]) for name in self._changed if name in index]
        least = self._NEGLIGIBLE * middle(trained) if trained else 0.0
        return [
            name
            for name, same in self._same.items()
            if same >= self._wanted and name not in self._told
            if name in index and rms[index[name]] > least
        ]

    def _without_gradient(self, gradients: Sheet | None) -> list[str]:
        index = gradients.layout.index if gradients is not None else {}
        still = {name for name in self._first if name not in index and name not in self._told}
        stacks: dict[str, list[str]] = {}
        for name in still | self._changed:
            stacks.setdefault(_NUMBER.sub("", name), []).append(name)
        found: list[str] = []
        for stack in stacks.values():
            ordered = sorted(stack, key=_place)
            trained = [at for at, name in enumerate(ordered) if name in self._changed]
            frozen = [name for name in ordered[trained[0] :] if name in still] if trained else []
            if 2 * len([name for name in stack if name in still]) <= len(stack):
                found += frozen
        return found


class LargeUpdates:
    """Updates are so large beside the weights that a step undoes what was learned.

    The L2 norm of the update over that of the weight is about 1e-3 in healthy trainings
    (Karpathy, CS231n notes on learning; You et al. 2017, LARS), and up to 0.15 in the first steps
    of those whose learning rate is just not too high. A learning rate a hundred times too high
    begins with 0.4 and more, and soon has weights so large that the ratio falls: so two records
    count, or one that is twice over. The median of the weight matrices is looked at, without
    those that began at zero or are not updated.

    Parameters
    ----------
    ratio : float
        Of update to weight.
    """

    name = "update_ratio_high"
    _IN_A_ROW = 2
    _AT_ONCE = 2.0

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._records = 0
        self._from_zero: set[str] = set()

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        ratios = _ratios(step)
        if ratios is None:
            return None
        # The first update of a weight that was zero is the weight itself.
        self._from_zero.update(name for name, ratio in ratios.items() if abs(ratio - 1) < 1e-4)
        kept = {n: ratio for n, ratio in ratios.items() if ratio > 0 and n not in self._from_zero}
        value = middle(kept.values()) if kept else 0.0
        self._records = self._records + 1 if value > self._ratio else 0
        if self._records < self._IN_A_ROW and value < self._AT_ONCE * self._ratio:
            return None
        names = sorted((n for n, r in kept.items() if r > self._ratio), key=lambda n: -kept[n])
        message = (
            f"updates are {value:.2g} of the weights at step {step.step}, most in {shown(names)}; "
            "about 0.001 is healthy: is the learning rate too high?"
        )
        evidence = listed(names) | {"value": value, "threshold": self._ratio}
        return Finding(self.name, "warning", message, step.step, evidence)


class SmallUpdates:
    """Updates have been so small from the start that nothing can be learned.

    Looks at the first records only: later a small update is what a decayed learning rate or a
    converged training makes.

    Parameters
    ----------
    ratio : float
        Of update to weight, which one weight matrix must reach once.
    """

    name = "update_ratio_low"
    _RECORDS = 30

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._records = 0
        self._largest = 0.0

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        if self._records >= self._RECORDS or not (found := _ratios(step)):
            return None
        self._records += 1
        self._largest = max(self._largest, *found.values())
        if self._records < self._RECORDS or self._largest >= self._ratio:
            return None
        message = (
            f"updates are at most {self._largest:.1e} of the weights up to step {step.step}; "
            "about 1e-3 is healthy: is the learning rate too low?"
        )
        evidence = listed([*found]) | {"value": self._largest, "threshold": self._ratio}
        return Finding(self.name, "warning", message, step.step, evidence)


def _ratios(step: TensorStep) -> dict[str, float] | None:
    """Update over weight of each weight matrix; None where the step does not have both."""
    updates, weights = step.sheets.get("update"), step.sheets.get("weight")
    if updates is None or weights is None:
        return None
    here, there = updates.layout.shared(weights.layout)
    kept = updates.layout.is_matrix[here] & (weights.l2[there] > 0)
    here, there = here[kept], there[kept]
    names = [updates.layout.names[at] for at in here.tolist()]
    return dict(zip(names, (updates.l2[here] / weights.l2[there]).tolist(), strict=True))


def _place(name: str) -> list[int]:
    """The numbers in a name: where a layer stands in its stack."""
    return [int(number) for number in _NUMBER.findall(name)]
