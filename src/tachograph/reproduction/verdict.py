"""What the comparison of two runs means: exact, statistical or different, and why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.comparing.causes import PACKAGES
from tachograph.query import Store
from tachograph.reproduction.evidence import (
    AS_THE_BUDGET_ALLOWS,
    SAME,
    Departure,
    Evidence,
    Series,
)
from tachograph.reproduction.matching import Part, parts, reproductions
from tachograph.values import plain

EXACT, STATISTICAL, DIFFERENT, FAILED = "exact", "statistical", "different", "failed"
TOLERANCE = 1e-6
"""How far apart, as a share of the larger one, two last values may be."""

ENDING = "ending"
"""Area of the change that one run ended otherwise than the other."""

LEAST_RUNS = 3
"""So many runs of a group make a spread."""

_NAMED = 20  # of each kind, in the document
_FEW = 3  # outcomes, in a sentence
_STATE = re.compile(r"seeds\.(?!generators\.)([^.]+)\.(.*state.*|initial_seed)")  # of a library
_FAILURES = ("failed", "interrupted", "lost", "running")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing in which the two runs differ: see `comparison.Difference.changes`."""

    area: str
    path: str
    first: Any
    second: Any

    @property
    def is_given(self) -> bool:
        """Whether it is an argument: what the data became may follow from it."""
        return self.path.startswith(("argv.arguments", "argv.seeds", "arguments."))

    @property
    def is_param(self) -> bool:
        """Whether it is a parameter, as the program or its framework has told it."""
        return self.path.startswith("params.")

    @property
    def generator(self) -> str | None:
        """The library whose generator began in another state, such as ``numpy``."""
        found = _STATE.fullmatch(self.path)
        return found[1] if found else None

    @property
    def is_lacking(self) -> bool:
        """Whether it is a package that only one of the two environments has."""
        return self.path.startswith(PACKAGES) and None in (self.first, self.second)

    @property
    def rank(self) -> int:
        """How far from the beginning it lies, if it is a cause: what has the lowest was first.

        How the runs ended, where nothing else sets them apart; then code, arguments, and seeds,
        which follow from nothing else; then data and environment. Other parameters come after
        these, because the same code may have got them from there. The generator of a library
        is nearly last: it is in another state in each process that does not seed it, used or
        not; and packages that only one has are last.
        """
        if self.area == "other" or self.is_lacking:
            return 8 if self.area == "other" else 7
        seeds = self.is_param and self.area == "seed"
        last = 6 if self.generator else 5 if self.is_param else 4
        order = (self.area == ENDING, self.area == "code", self.is_given, seeds)
        return order.index(True) if any(order) else last


@dataclass(frozen=True, slots=True)
class Final:
    """The last values of a series, and whether they are near enough.

    Attributes
    ----------
    metric, context : str
    rank : int
    first, second : float
    spread : tuple of float or None
        Least and greatest last value of the group's runs, where there are enough.
    agrees : bool
        Whether the second is within the tolerance of the first, or within the spread.
    """

    part: Part
    metric: str
    context: str
    rank: int
    first: float
    second: float
    spread: tuple[float, float] | None
    agrees: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run was reproduced.

    Attributes
    ----------
    verdict : {'exact', 'statistical', 'different', 'failed'}
    original, reproduction : str
        Ids of the two runs.
    reason : str
        One line for a person.
    evidence : Evidence
    finals : list of Final
        Of the series that are not the same throughout.
    changes : list of Change
        What differs in provenance, the likeliest cause first.
    group : list of str
        The runs that the spread comes from.
    changed_line : str or None
        The first line of code that differs.
    lacks : sequence of str
        What the original's record does not tell of its data and seeds, in sentences.
    """

    verdict: str
    original: str
    reproduction: str
    reason: str
    evidence: Evidence
    finals: list[Final]
    changes: list[Change]
    group: list[str]
    changed_line: str | None = None
    lacks: Sequence[str] = ()

    @property
    def departure(self) -> Departure | None:
        """Where the runs first part."""
        return self.evidence.departures[0] if self.evidence.departures else None

    @property
    def cause(self) -> Change | None:
        """What most likely explains that they part; None where nothing that counts differs."""
        first = self.changes[0] if self.changes else None
        if self.verdict == EXACT or first is None or first.area == "other":
            return None
        return first

    @property
    def doubt(self) -> str | None:
        """Why the cause may be another one, or is not known; None where there is no doubt."""
        cause = self.cause
        if self.verdict == EXACT or (cause and not (cause.generator or cause.is_lacking)):
            return None
        found = dict.fromkeys(change.generator for change in self.changes if change.generator)
        known = " ".join(self.lacks)
        names = [name for name in found if name and not re.search(rf"\b{name}\b", known)]
        perhaps = [f"{' and '.join(names)}, which began in another state"] if names else []
        if lacking := sum(change.is_lacking for change in self.changes):
            perhaps.append(f"one of {lacking} packages that only one of the environments has")
        why = [*self.lacks, *([f"perhaps {', or '.join(perhaps)}"] if perhaps else [])]
        return "; ".join(why) or "nothing that was recorded differs"

    def document(self) -> dict[str, Any]:
        """What the record keeps of it, under the section `reproduction`."""
        evidence = self.evidence
        return {
            "of": self.original,
            "verdict": self.verdict,
            "reason": self.reason,
            "series": evidence.series,
            "points": evidence.points,
            "equal_points": evidence.equal_points,
            "only_in_original": evidence.only[0][:_NAMED],
            "only_in_reproduction": evidence.only[1][:_NAMED],
            "outcomes": evidence.outcomes,
            "first_departure": None if self.departure is None else _plain(self.departure),
            "finals": [_plain(final) for final in self.finals[:_NAMED]],
            "cause": None if self.cause is None else _plain(self.cause),
            "doubt": self.doubt,
            "changed_line": self.changed_line,
            "changes": [_plain(change) for change in self.changes[:_NAMED]],
            "group": self.group,
        }


def _plain(value: Any) -> dict[str, Any]:
    return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}


def judge(
    store: Store,
    original: str,
    reproduction: str,
    evidence: Evidence,
    changes: Sequence[Change],
    tolerance: float = TOLERANCE,
    changed_line: str | None = None,
    lacks: Sequence[str] = (),
) -> Verdict:
    """Say what the evidence means.

    Parameters
    ----------
    store : Store
        For the status of the runs, and for the other runs of their group.
    original, reproduction : str
        Ids.
    evidence : Evidence
    changes : sequence of Change
        What differs in provenance.
    tolerance : float, default 1e-6
        See `TOLERANCE`.
    changed_line : str, optional
    lacks : sequence of str, optional
        See `Verdict`.
    """
    group = _group(store, original)
    finals = _finals(store, evidence, group, tolerance)
    ends = [store.row(run)["status"] for run in (original, reproduction)]
    verdict, reason = _decide(ends, evidence, finals, tolerance)
    if verdict == DIFFERENT and _went_on(ends, evidence):
        changes = [Change(ENDING, "status", *ends), *changes]
    return Verdict(
        verdict,
        original,
        reproduction,
        reason,
        evidence,
        finals,
        sorted(changes, key=lambda change: change.rank),
        group,
        changed_line,
        lacks,
    )


def _decide(
    ends: Sequence[str], evidence: Evidence, finals: Sequence[Final], tolerance: float
) -> tuple[str, str]:
    if ends[0] == "running":
        return FAILED, "the original has not ended yet"
    failed = ends[1] in _FAILURES or ends[0] == "failed"  # who was stopped may have done well
    if ends[0] != ends[1] and failed:
        return FAILED, f"the reproduction ended as {ends[1]}, the original as {ends[0]}"
    if evidence.is_exact:
        return EXACT, _exactly(evidence)
    if _went_on(ends, evidence):
        return DIFFERENT, (
            f"the original ended as {ends[0]}, and the reproduction went on; up to there"
            f" {_points(evidence.points)} the same bit for bit"
        )
    if only := [name for side in evidence.only for name in side]:
        return DIFFERENT, f"only one of the runs has {only[0]}"
    if evidence.ends:
        return DIFFERENT, evidence.ends[0]
    if not evidence.points and not evidence.outcomes:
        return FAILED, "the runs have recorded no results that could be compared"
    far = [final for final in finals if not final.agrees]
    if far:  # what is recorded whenever there is time for it is told last
        worst = min(far, key=lambda final: final.metric.startswith(AS_THE_BUDGET_ALLOWS))
        name = " / ".join((*worst.part, worst.metric))
        return DIFFERENT, f"{name} ends at {worst.second!r}, not at {worst.first!r}"
    if why := _beyond_metrics(evidence, finals, tolerance):
        return DIFFERENT, why
    return STATISTICAL, _nearly(finals, evidence)


def _went_on(ends: Sequence[str], evidence: Evidence) -> bool:
    """Whether the reproduction has all that the original had when it was stopped, and more."""
    return (
        ends[0] != ends[1]
        and 0 < evidence.points == evidence.equal_points
        and not evidence.only[0]
        and all(departure.first is None for departure in evidence.departures)
    )


def _points(count: int) -> str:
    return "its point is" if count == 1 else f"all its {count:,} points are"


def _beyond_metrics(evidence: Evidence, finals: Sequence[Final], tolerance: float) -> str | None:
    """Why runs whose last values are near enough are different all the same."""
    compared = {(final.part, final.metric, final.context) for final in finals}
    for departure in evidence.departures:
        place = (departure.part, departure.metric, departure.context)
        if not departure.is_outcome and place not in compared:
            return f"only one of the runs has points of {departure.metric}"
        if departure.is_outcome and not (evidence.points or departure.norms):
            return f"{departure.metric} is not the same"
        if departure.norms and not _is_near(*departure.norms, tolerance):
            return f"every metric ends near enough, but {departure.metric} is not the same"
    return None


def _exactly(evidence: Evidence) -> str:
    same = [name for name, state in evidence.outcomes.items() if state == SAME]
    things = [f"{len(same)} digests of what was made"] if len(same) > _FEW else same
    rest = [f"{name}: {state}" for name, state in evidence.outcomes.items() if state != SAME]
    metrics = "1 metric" if evidence.series == 1 else f"{evidence.series} metrics"
    count = "the point" if evidence.points == 1 else f"all {evidence.points:,} points"
    words = [f"{count} of {metrics}"] * bool(evidence.points)
    are = "are" if evidence.points > 1 or len([*words, *same]) > 1 else "is"
    return "; ".join([f"{' and '.join([*words, *things])} {are} the same bit for bit", *rest])


def _nearly(finals: Sequence[Final], evidence: Evidence) -> str:
    if not finals:
        return "every metric is the same bit for bit; what the training made is not"
    within = "the tolerance"
    if any(final.spread for final in finals):
        within = "the spread of the group's runs, or the tolerance"
    same = f"{evidence.equal_points:,} of {evidence.points:,} points"
    return f"every metric ends within {within}; {same} come before the curves part"


# ---------------------------------------------------------------------------- last values


def _finals(
    store: Store, evidence: Evidence, group: Sequence[str], tolerance: float
) -> list[Final]:
    differ = {(d.part, d.metric, d.context) for d in evidence.departures}
    chosen = [key for key in evidence.finals if key[:3] in differ]
    spreads = _spreads(store, group, chosen) if len(group) >= LEAST_RUNS else {}
    order = {(d.part, d.metric, d.context): n for n, d in enumerate(evidence.departures)}
    return [
        _final(key, *evidence.finals[key], spreads.get(key), tolerance)
        for key in sorted(chosen, key=lambda key: order[key[:3]])
    ]


def _final(
    key: Series, first: float, second: float, spread: tuple[float, float] | None, tolerance: float
) -> Final:
    near = _is_near(first, second, tolerance)
    inside = spread is not None and spread[0] <= second <= spread[1]
    return Final(*key, first, second, spread, near or inside)


def _is_near(first: float, second: float, tolerance: float) -> bool:
    if first == second or (math.isnan(first) and math.isnan(second)):
        return True
    if not (math.isfinite(first) and math.isfinite(second)):
        return False
    return abs(first - second) <= tolerance * max(abs(first), abs(second))


def _group(store: Store, original: str) -> list[str]:
    """Runs that differ from the original in nothing but the seed, itself too; no reproductions."""
    group = store.row(original)["group_id"]
    if group is None:
        return []
    again = reproductions(store)
    found = store.runs(f"group_id = {json.dumps(group)} and status = 'finished'", children=True)
    return [run_id for run_id in found["run_id"] if run_id not in again]


def _spreads(
    store: Store, group: Sequence[str], keys: Sequence[Series]
) -> Mapping[Series, tuple[float, float]]:
    """Least and greatest last value of each series over the group's runs; numbers alone."""
    values: dict[Series, dict[str, float]] = {}
    wanted = {key[0] for key in keys}
    for run in group:
        for part, run_id in parts(store, run).items():
            if part in wanted:
                for row in store.metrics_of(run_id):
                    key = (part, row["name"], row["context"], row["rank"])
                    if row["last"] is not None and math.isfinite(row["last"]):
                        values.setdefault(key, {})[run] = row["last"]  # of the latest attempt
    return {
        key: (min(values[key].values()), max(values[key].values()))
        for key in keys
        if len(values.get(key, ())) >= LEAST_RUNS
    }
