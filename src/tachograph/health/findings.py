"""What a rule finds: a line for a person, and its evidence for a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMED = 10  # names in the evidence; a model has thousands


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a training.

    Attributes
    ----------
    rule : str
        Its key in the table ``[health]`` of the configuration.
    level : {'warning', 'error'}
        An error is certain to have spoilt the model.
    message : str
        One line for a person.
    step : int or None
        Where it was found.
    evidence : mapping
        What JSON can say: names, values, the threshold.
    """

    rule: str
    level: str
    message: str
    step: int | None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """The column `data` of the event."""
        return {"rule": self.rule, "step": self.step, **self.evidence}


def listed(names: Sequence[str]) -> dict[str, Any]:
    """Evidence that names the first tensor, the number of them, and some more."""
    return {"tensor": names[0], "tensors": len(names), "names": list(names[:_NAMED])}


def shown(names: Sequence[str]) -> str:
    """Names in a message: the first, and how many more."""
    more = len(names) - 1
    return f"'{names[0]}'" + (f" and {more} more" if more else "")


def middle(values: Iterable[float]) -> float:
    """The median, of two in the middle the upper one."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


class Streaks:
    """Counts for how many records in a row something has been so with each of some names."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._counts: dict[str, int] = {}
        self._told: set[str] = set()

    def add(self, so: Sequence[str], present: Iterable[str]) -> list[str]:
        """Count a record; return those that it has been long enough so with, each once.

        Parameters
        ----------
        so : sequence of str
            With these it is so.
        present : iterable of str
            All that the record has; of others nothing is known.
        """
        before = self._counts
        if before:
            gone = set(present).difference(so)
            self._counts = {name: n for name, n in before.items() if name not in gone}
        for name in so:
            self._counts[name] = before.get(name, 0) + 1
        ripe = [
            name for name in so if self._counts[name] >= self._patience and name not in self._told
        ]
        self._told.update(ripe)
        return ripe
