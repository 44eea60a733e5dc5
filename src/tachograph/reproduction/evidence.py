"""What two runs have measured, point by point, and where they first part."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tachograph.backends.base import Condition, Query
from tachograph.query import Store
from tachograph.reproduction.matching import Part, parts
from tachograph.table import Table

NOT_RESULTS = ("system/", "recording/", "time/")
"""Metrics of the machine, of recording and of durations: never the same twice."""

AS_THE_BUDGET_ALLOWS = ("gradient_norm", "trees/")
"""Metrics that are recorded at the steps that recording has time for: compared where both are."""

SAME, SAMPLED = "same", "same in a sample"
"""Of an outcome: every bit was compared, or those of a sample."""

Series = tuple[Part, str, str, int]
"""Part, metric, context (canonical JSON) and rank."""


@dataclass(frozen=True, slots=True)
class Departure:
    """The first point at which two runs are not the same.

    Attributes
    ----------
    part : tuple of str
        Where in the run; see `matching.Part`.
    metric, context : str
        The series; or the outcome (``outcome.weights``), with the context empty.
    step : int or None
    epoch : float or None
    first, second : float, str or None
        The values, or the digests of an outcome; None where there is no such point.
    norms : tuple of float or None
        Of an outcome the Euclidean norms of its numbers, where they are known.
    """

    part: Part
    metric: str
    context: str
    step: int | None
    epoch: float | None
    first: Any
    second: Any
    norms: tuple[float, float] | None = None

    @property
    def is_outcome(self) -> bool:
        """Whether it is what the training made, and no point of a metric."""
        return isinstance(self.first, str) or isinstance(self.second, str)


@dataclass(slots=True)
class Evidence:
    """How the results of two runs compare.

    Attributes
    ----------
    series, points : int
        How many of the original's were compared.
    equal_points : int
        Of them, bit for bit.
    only : tuple of list of str
        Series that only the first, and only the second run has.
    finals : dict
        Series to its last value in each of the two.
    outcomes : dict of str to str
        Outcome to 'same', 'same in a sample', 'different', or why it was not compared.
    departures : list of Departure
        The first of each series and outcome that differs, in the order of the original.
    ends : list of str
        Parts that have ended otherwise, such as a trial that was pruned, with how.
    """

    series: int = 0
    points: int = 0
    equal_points: int = 0
    only: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    finals: dict[Series, tuple[float, float]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    departures: list[Departure] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether everything that was compared is the same, and something was, in full."""
        compared = self.points or SAME in self.outcomes.values()
        return bool(compared) and not (self.departures or any(self.only) or self.ends)


def gather(store: Store, first: str, second: str) -> Evidence:
    """Compare the results of two runs and of their parts, which are matched by their places."""
    evidence = Evidence()
    places = parts(store, first), parts(store, second)
    timed: list[tuple[int, Departure]] = []
    for part in (part for part in places[0] if part in places[1]):
        ids = places[0][part], places[1][part]
        timed += _compare_series(evidence, part, _curves(store, ids[0]), _curves(store, ids[1]))
    for side, (own, other) in enumerate((places, places[::-1])):
        evidence.only[side].extend(_name(part) for part in own if part not in other)
    evidence.ends += _other_ends(store, *places)
    timed.sort(key=lambda found: (found[0], found[1].step or 0))
    evidence.departures = [departure for _, departure in timed]
    evidence.departures += _compare_outcomes(evidence, store, *places)
    return evidence


def _other_ends(
    store: Store, first: Mapping[Part, str], second: Mapping[Part, str]
) -> Iterator[str]:
    """Of the parts; the runs themselves are looked at where the verdict is made."""
    where = [Condition("run_id", "in", sorted({*first.values(), *second.values()}))]
    found = store.read(Query("runs", where, ["run_id", "status"]))
    status = dict(zip(found["run_id"], found["status"], strict=True))
    for part in (part for part in first if part and part in second):
        ends = status[first[part]], status[second[part]]
        if ends[0] != ends[1] and ends[0] != "running":  # which is all that is known of a lost one
            yield f"{_name(part)} ended as {ends[1]}, not as {ends[0]}"


# ---------------------------------------------------------------------------- points


Curves = Mapping[tuple[str, str, int], Table]


def _curves(store: Store, run_id: str) -> Curves:
    series = [row for row in store.metrics_of(run_id) if not row["name"].startswith(NOT_RESULTS)]
    return store.curves(run_id, series)


def _compare_series(
    evidence: Evidence, part: Part, first: Curves, second: Curves
) -> Iterator[tuple[int, Departure]]:
    """The first departure of each series, with the time at which the original was there."""
    for side, (own, other) in enumerate(((first, second), (second, first))):
        evidence.only[side].extend(
            _name(part, *key[:2])
            for key in own
            if key not in other and not key[0].startswith(AS_THE_BUDGET_ALLOWS)
        )
    for key in (key for key in first if key in second):
        one, two = first[key], second[key]
        if key[0].startswith(AS_THE_BUDGET_ALLOWS):
            one, two = _at_common_steps(one, two)
        evidence.series += 1
        evidence.points += len(one)
        place = _first_difference(one, two)
        evidence.equal_points += len(one) if place is None else min(place, len(one))
        if len(one) and len(two):
            evidence.finals[part, *key] = one["value"][-1], two["value"][-1]
        if place is not None:
            yield _departure(part, key, one, two, place)


def _at_common_steps(*tables: Table) -> tuple[Table, ...]:
    common = set.intersection(*(set(table["step"]) for table in tables))
    return tuple(table.filter(lambda row: row["step"] in common) for table in tables)


def _first_difference(one: Table, two: Table) -> int | None:
    """The place of the first point that is not the same in step and in every bit of its value."""
    if list(one["step"]) == list(two["step"]) and _bits(one["value"]) == _bits(two["value"]):
        return None
    rows = [zip(t["step"], map(_bits, ([v] for v in t["value"])), strict=True) for t in (one, two)]
    pairs = zip(*rows, strict=False)
    short = min(len(one), len(two))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), short)


def _bits(values: Iterable[float | None]) -> bytes:
    return array("d", [float("nan") if value is None else value for value in values]).tobytes()


def _departure(
    part: Part, key: tuple[str, str, int], one: Table, two: Table, place: int
) -> tuple[int, Departure]:
    columns = ("step", "epoch", "time", "value")
    rows = [
        {name: table[name][place] if place < len(table) else None for name in columns}
        for table in (one, two)
    ]
    last = one["time"][-1] if len(one) else 0
    time = rows[0]["time"] if rows[0]["time"] is not None else last
    known = rows[0] if place < len(one) else rows[1]
    if place < min(len(one), len(two)) and rows[0]["step"] != rows[1]["step"]:
        # One of them has no point where the other one, at the earlier step, has.
        lacks = _later(rows[0]["step"], rows[1]["step"])
        known, rows[lacks] = rows[1 - lacks], dict.fromkeys(columns)
    values = rows[0]["value"], rows[1]["value"]
    return time, Departure(part, key[0], key[1], known["step"], known["epoch"], *values)


def _later(first: int | None, second: int | None) -> int:
    """Which of two steps comes later; points without a step come last."""
    return int(first is not None and (second is None or second > first))


def _name(part: Part, metric: str = "", context: str = "") -> str:
    """A series, or a part, for a person."""
    pairs = ", ".join(f"{key}={value}" for key, value in json.loads(context or "{}").items())
    what = f"{metric} ({pairs})" if pairs else metric
    return " / ".join((*part, what) if what else part)


# ---------------------------------------------------------------------------- outcomes


def _compare_outcomes(
    evidence: Evidence, store: Store, first: Mapping[Part, str], second: Mapping[Part, str]
) -> Iterator[Departure]:
    found = _outcomes(store, first), _outcomes(store, second)
    for key in sorted(found[0].keys() | found[1].keys()):
        part, section = key
        documents = [side.get(key, {}) for side in found]
        digests = [document.get("digest") for document in documents]
        label = _name(part, section)
        samples = [document.get("digest_of") == "sample" for document in documents]
        if None in digests:
            lacks = documents[digests.index(None)]
            evidence.outcomes[label] = str(lacks.get("missing") or "not recorded in both")
            if part in first and part in second and key not in found[1]:
                evidence.only[0].append(label)
        elif samples[0] != samples[1]:
            evidence.outcomes[label] = "digests of a sample and of the whole"
        elif digests[0] == digests[1]:
            evidence.outcomes[label] = SAMPLED if samples[0] else SAME
        else:
            evidence.outcomes[label] = "different"
            name, digests = _first_part(section, documents, digests)
            yield Departure(part, name, "{}", None, None, digests[0], digests[1], _norms(documents))


def _first_part(
    section: str, documents: Sequence[Mapping[str, Any]], digests: list[Any]
) -> tuple[str, list[Any]]:
    """The first tensor that differs, where the documents name them, in the original's order."""
    parts = [document.get("parts") or {} for document in documents]
    for name, value in parts[0].items():
        values = [_digest(value), _digest(parts[1].get(name))]
        if values[0] != values[1]:
            return f"{section}.{name}", values
    return section, digests


def _norms(documents: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    first, second = (document.get("l2") for document in documents)
    return None if first is None or second is None else (first, second)


def _digest(value: Any) -> Any:
    return value.get("digest") if isinstance(value, Mapping) else value


def _outcomes(store: Store, places: Mapping[Part, str]) -> dict[tuple[Part, str], dict[str, Any]]:
    part_of = {run_id: part for part, run_id in places.items()}
    found = store.read(
        Query(
            "provenance",
            [
                Condition("run_id", "in", sorted(part_of)),
                Condition("section", "like", "outcome.%"),
            ],
            ["run_id", "section", "document"],
        )
    )
    return {
        (part_of[row["run_id"]], row["section"]): _mapping(json.loads(row["document"] or "{}"))
        for row in found
    }


def _mapping(document: Any) -> dict[str, Any]:
    return document if isinstance(document, dict) else {"missing": "the document is none"}
