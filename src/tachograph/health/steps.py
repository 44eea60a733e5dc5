"""The tensors of one step, kind by kind, as arrays that rules compute with.

The one file of this folder that knows how statistics are packed. Needs numpy, as all that
records statistics of tensors does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tachograph.tensors.records import STATISTICS, TensorKey

Array = Any  # numpy.ndarray; numpy is an optional library

_L2, _ZEROS, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "zeros", "nan", "inf"))
_REMEMBERED = 256  # sparse gradients have other shapes at each step


class Layout:
    """Which tensors a sheet has, in the order of the model.

    Attributes
    ----------
    names : tuple of str
    sizes : array of int64
        Numbers of elements.
    is_matrix : array of bool
        Whether it has two dimensions or more, as weights have and biases have not.
    index : mapping of str to int
    """

    def __init__(self, names: tuple[str, ...], sizes: Array, is_matrix: Array) -> None:
        self.names = names
        self.sizes = sizes
        self.is_matrix = is_matrix
        self.index = {name: at for at, name in reversed([*enumerate(names)])}
        self._shared: dict[int, tuple[Layout, Array, Array]] = {}

    @classmethod
    def of(cls, keys: Sequence[TensorKey]) -> Layout:
        """The layout of tensors in this order."""
        import numpy as np

        shapes = [key.logical_shape or key.shape for key in keys]
        return cls(
            tuple(key.name for key in keys),
            np.array([key.size for key in keys], np.int64),
            np.array([len(shape) >= 2 for shape in shapes], np.bool_),
        )

    def joined(self, other: Layout) -> Layout:
        """The tensors of both."""
        import numpy as np

        sizes = np.concatenate([self.sizes, other.sizes])
        is_matrix = np.concatenate([self.is_matrix, other.is_matrix])
        return Layout(self.names + other.names, sizes, is_matrix)

    def shared(self, other: Layout) -> tuple[Array, Array]:
        """Where the tensors that both have stand here, and there."""
        found = self._shared.get(id(other))
        if found is None:
            import numpy as np

            both = [name for name in self.index if name in other.index]
            here = np.array([self.index[name] for name in both], np.intp)
            there = np.array([other.index[name] for name in both], np.intp)
            if len(self._shared) >= _REMEMBERED:
                self._shared.clear()
            found = self._shared[id(other)] = (other, here, there)
        return found[1], found[2]

    def named(self, mask: Array) -> list[str]:
        """Names where `mask` holds."""
        return [self.names[at] for at in mask.nonzero()[0].tolist()]


@dataclass
class Sheet:
    """Statistics of all tensors of one kind at one step.

    Attributes
    ----------
    layout : Layout
    numbers : array of float64, shape (tensors, statistics)
        NaN where there is no finite value to tell a moment of.
    """

    layout: Layout
    numbers: Array

    @property
    def l2(self) -> Array:
        """L2 norm of each tensor."""
        return self.numbers[:, _L2]

    @property
    def moments(self) -> Array:
        """All that tells whether a tensor has changed: mean to number of zeros."""
        return self.numbers[:, : _ZEROS + 1]

    @cached_property
    def zero_share(self) -> Array:
        """Share of elements that are exactly zero; of an empty tensor none."""
        return self.numbers[:, _ZEROS] / self.layout.sizes.clip(1)

    @cached_property
    def rms(self) -> Array:
        """Root mean square of the elements that are not zero; NaN where all are.

        In an embedding most rows have no gradient, and behind a rectifier many units.
        """
        count = self.layout.sizes - self.numbers[:, _ZEROS]
        mean_square = self.l2 * self.l2 / count  # 0 / 0 where there is none
        return mean_square**0.5

    @cached_property
    def not_finite(self) -> Array:
        """Number of NaN and infinities in each tensor."""
        return self.numbers[:, _NAN] + self.numbers[:, _INF]

    @property
    def nans(self) -> Array:
        """Number of NaN in each tensor."""
        return self.numbers[:, _NAN]


@dataclass
class TensorStep:
    """What was recorded of tensors at one step, by kind."""

    step: int | None
    sheets: dict[str, Sheet]

    @property
    def is_sound(self) -> bool:
        """Whether no tensor has a NaN or an infinity."""
        return not any(sheet.not_finite.any() for sheet in self.sheets.values())


class Assembler:
    """Puts the tensors of a step together, which are recorded kind by kind.

    Gradients after clipping are left out: they are those before it, once more.
    """

    def __init__(self) -> None:
        self._pending: TensorStep | None = None
        self._splits: dict[int, tuple[Any, list[tuple[str, Any, Layout]]]] = {}
        self._joined: dict[tuple[int, int], tuple[Layout, Layout, Layout]] = {}

    def add(
        self, tensors: Sequence[TensorKey], step: int | None, numbers: Array
    ) -> TensorStep | None:
        """Take tensors of a step; return the step before, if it is complete with that.

        Parameters
        ----------
        tensors : sequence of TensorKey
            The same object for the same tensors, as far as there is one.
        step : int or None
        numbers : array of float64, shape (tensors, statistics)
        """
        done = None
        if self._pending is None or step is None or step != self._pending.step:
            done, self._pending = self._pending, TensorStep(step, {})
        sheets = self._pending.sheets
        for kind, rows, layout in self._split(tensors):
            sheet = Sheet(layout, numbers[rows])
            earlier = sheets.get(kind)
            sheets[kind] = sheet if earlier is None else self._join(earlier, sheet)
        return done

    def flush(self) -> TensorStep | None:
        """The step that is not known to be complete."""
        done, self._pending = self._pending, None
        return done

    @property
    def waits(self) -> bool:
        """Whether there is such a step."""
        return self._pending is not None

    def _split(self, tensors: Sequence[TensorKey]) -> list[tuple[str, Any, Layout]]:
        """Kinds, their rows and layouts; by identity, since a hash takes longer than the rules."""
        found = self._splits.get(id(tensors))
        if found is None:
            if len(self._splits) >= _REMEMBERED:
                self._splits.clear()
                self._joined.clear()
            found = self._splits[id(tensors)] = (tensors, list(_by_kind(tensors)))
        return found[1]

    def _join(self, one: Sheet, other: Sheet) -> Sheet:
        import numpy as np

        mark = id(one.layout), id(other.layout)
        found = self._joined.get(mark)
        if found is None:
            found = one.layout, other.layout, one.layout.joined(other.layout)
            self._joined[mark] = found
        return Sheet(found[2], np.concatenate([one.numbers, other.numbers]))


def _by_kind(tensors: Sequence[TensorKey]) -> Iterator[tuple[str, Any, Layout]]:
    rows: dict[str, list[int]] = {}
    for at, key in enumerate(tensors):
        if '"stage"' not in key.context:
            rows.setdefault(key.kind, []).append(at)
    for kind, chosen in rows.items():
        whole = len(chosen) == len(tensors)
        yield kind, slice(None) if whole else chosen, Layout.of([tensors[at] for at in chosen])


def from_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[TensorKey, ...], Array]:
    """Keys and numbers from rows of the table `tensors`, all of one step."""
    import numpy as np

    numbers = np.array([[row.get(name) for name in STATISTICS] for row in rows], np.float64)
    counts = numbers[:, _ZEROS:]
    counts[counts != counts] = 0  # what nobody counted
    return tuple(map(_key, rows)), numbers


def _key(row: Mapping[str, Any]) -> TensorKey:
    return TensorKey(
        row["name"],
        row["kind"],
        _shape(row, "shape") or (),
        row.get("dtype") or "",
        row.get("size") or 0,
        row.get("context") or "{}",
        _shape(row, "logical_shape"),
    )


def _shape(row: Mapping[str, Any], column: str) -> tuple[int, ...] | None:
    value = row.get(column)
    value = json.loads(value) if isinstance(value, str) else value
    return None if value is None else tuple(value)


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows of the table `tensors` have in common that belong together."""
    return row["run_id"], row["rank"] or 0, row["attempt"] or 1, row["step"]


def from_bytes(numbers: memoryview) -> Array:
    """The numbers of `Assembler.add`, as the journal packs them."""
    import numpy as np

    return np.frombuffer(numbers, "<f8").reshape(-1, len(STATISTICS))
