"""Gradients that vanish towards the first layers, explode, or do not reach a layer at all."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from tachograph.health.findings import Finding, Streaks, listed, middle, shown
from tachograph.health.steps import Sheet, TensorStep


class VanishingGradient:
    """Gradients of the first layers are far smaller than those of the last ones.

    Compares the median root mean square of the first third of the weight matrices with that of
    the last third; zeros are left out, so that an embedding or a dead unit does not count. In a
    network of sigmoids each layer divides the gradient by four or more (Hochreiter 1991; Bengio
    et al. 1994; Glorot and Bengio 2010), while residual networks stay within some tens.

    Parameters
    ----------
    share : float
        Of the last layers' gradient, below which that of the first ones has vanished.
    patience : int
        Records in a row.
    """

    name = "vanishing_gradient"
    _FEWEST = 4  # matrices

    def __init__(self, share: float, patience: int) -> None:
        self._share = share
        self._patience = patience
        self._records = 0

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        sheet = step.sheets.get("gradient")
        if sheet is None:
            return None
        rows = sheet.layout.is_matrix.nonzero()[0]
        third = len(rows) // 3 or 1
        if len(rows) < self._FEWEST:
            return None
        first, last = _median(sheet.rms[rows[:third]]), _median(sheet.rms[rows[-third:]])
        self._records = self._records + 1 if 0 < first < self._share * last else 0
        if self._records < self._patience:
            return None
        names = [sheet.layout.names[at] for at in rows[:third].tolist()]
        end = sheet.layout.names[rows[-1]]
        message = (
            f"gradients vanish towards the first layers: {first:.1e} in {shown(names)}, "
            f"{last:.1e} towards '{end}', {self._records} records in a row up to step {step.step}"
        )
        values = {"value": first / last, "first_rms": first, "last_rms": last}
        evidence = listed(names) | values | {"threshold": self._share, "last_tensor": end}
        return Finding(self.name, "warning", message, step.step, evidence)


class ExplodingGradient:
    """The norm of all gradients is far above its usual value, again and again.

    The usual value is the median of the last hundred norms, and not less than that of the first
    twenty, so that a training whose gradients have become small may have larger ones again. One
    or two outliers are common, and clipping takes care of them (Pascanu et al. 2013).

    Parameters
    ----------
    factor : float
        Times the usual value.
    """

    name = "exploding_gradient"
    _FIRST = 20
    _IN_A_ROW = 3

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._early: list[float] = []
        self._last: deque[float] = deque(maxlen=100)
        self._records = 0

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        sheet = step.sheets.get("gradient")
        if sheet is None:
            return None
        return self.add(step.step, math.sqrt(float((sheet.l2 * sheet.l2).sum())))

    def add(self, step: int | None, norm: float) -> Finding | None:
        """Take the norm of all gradients at one step, a finite one."""
        if len(self._early) < self._FIRST:
            self._early.append(norm)
            self._last.append(norm)
            return None
        usual = max(middle(self._last), middle(self._early))
        if not 0 < self._factor * usual < norm:
            self._records = 0
            self._last.append(norm)
            return None
        self._records += 1
        if self._records < self._IN_A_ROW:
            return None
        message = f"gradients explode: their norm is {norm:.3g} at step {step}, usually {usual:.3g}"
        evidence = {"value": norm, "usual": usual, "threshold": self._factor}
        return Finding(self.name, "warning", message, step, evidence)


class DeadUnits:
    """The gradient of a layer is exactly zero, or that of nearly all its units.

    A rectifier whose input is negative for all samples passes no gradient and never recovers
    (Maas et al. 2013; Lu et al. 2019, Dying ReLU). A layer counts where its whole weight has no
    gradient; its units are counted by the bias, one element each, where weight and bias agree.
    Layers on both sides of a dead one get no gradient either, so all are named together.

    Parameters
    ----------
    share : float
        Of the units.
    patience : int
        Records in a row.
    """

    name = "dead_units"
    _FEWEST = 8  # units, below which all may rest by chance

    def __init__(self, share: float, patience: int) -> None:
        self._share = share
        self._streaks = Streaks(patience)
        self._weights: set[str] = set()

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""
        if (weights := step.sheets.get("weight")) is not None and not self._weights:
            self._weights.update(weights.layout.names)
        sheet = step.sheets.get("gradient")
        if sheet is None or not (sheet.l2 > 0).any():  # nothing is left to learn
            return None
        sparse = (sheet.zero_share >= self._share) & sheet.layout.is_matrix
        so = [name for name in sheet.layout.named(sparse) if self._is_dead(sheet, name)]
        names = self._streaks.add(so, sheet.layout.index)
        if not names:
            return None
        share = float(sheet.zero_share[sheet.layout.index[names[0]]])
        what = "no gradient reaches" if share == 1 else f"{share:.0%} of the units are dead in"
        message = f"{what} {shown(names)}: exactly zero in every record up to step {step.step}"
        evidence = listed(names) | {"value": share, "threshold": self._share}
        return Finding(self.name, "warning", message, step.step, evidence)

    def _is_dead(self, sheet: Sheet, name: str) -> bool:
        """Whether that is a layer of the model all of whose units, or nearly all, are dead."""
        if name not in self._weights:
            return False
        share = sheet.zero_share[sheet.layout.index[name]]
        if share == 1:
            return True
        bias = self._bias_of(sheet, name)
        if bias is None or sheet.layout.sizes[bias] < self._FEWEST:
            return False
        return bool(sheet.zero_share[bias] >= self._share)

    @staticmethod
    def _bias_of(sheet: Sheet, name: str) -> int | None:
        """Row of the bias beside a weight: `fc.bias` for `fc.weight`, `dense/bias` for Keras."""
        module = name[: max(name.rfind("."), name.rfind("/")) + 1]
        return sheet.layout.index.get(f"{module}bias")


def _median(values: Any) -> float:
    """The median of the values that are finite; NaN where there are none."""
    finite = values[abs(values) < math.inf]
    return float(middle(finite.tolist())) if len(finite) else math.nan
