"""The level of reproduction that a run's record allows, and what keeps it from a stronger one.

Levels, the strongest first: ``exact`` (bit for bit), ``statistical`` (the same within the spread of
seeds), ``methodological`` (the method can be followed), ``conceptual`` (only the idea is known).
`docs/explanation/reproducibility.md` defines them, and says what none of them can promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tachograph.levels.code import code
from tachograph.levels.kin import Kin, kin_of
from tachograph.levels.pieces import (
    METHODOLOGICAL,
    Finding,
    configuration,
    data,
    environment,
    hardware,
)
from tachograph.levels.seeds import processes, sampler, seeds
from tachograph.query import Store
from tachograph.reading.run_record import RunRecord
from tachograph.reproduction.matching import reproductions
from tachograph.values import mapping

LEVELS = ("exact", "statistical", "methodological", "conceptual")
"""From the strongest to the weakest."""

SHAPE_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What comes of a document in the place of another: anyone may record a section of any name."""

_REPRODUCTIONS = 100  # that are looked at
_ALONE = Kin()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reproduction of the run has shown.

    Attributes
    ----------
    verdict : str
        'exact', 'statistical', 'different' or 'failed'.
    run_id : str
        The run that was the reproduction.
    cause : str or None
        What most likely explains that it gave other results, such as a change of the code.
    """

    verdict: str
    run_id: str
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Reproducibility:
    """How far a run can be reproduced from its record.

    Attributes
    ----------
    level : str
        The strongest of `LEVELS` that the record allows.
    verified : Verdict or None
        The best reproduction that gave the same results, exactly or statistically.
    findings : tuple of Finding
        What is missing, what limits the level most first, and notes last.
    """

    level: str
    verified: Verdict | None
    findings: tuple[Finding, ...]

    @property
    def missing(self) -> tuple[Finding, ...]:
        """The findings that keep the record from allowing ``exact``."""
        return tuple(finding for finding in self.findings if finding.limits_to is not None)


def assess(record: RunRecord, store: Store, kin: Kin | None = None) -> Reproducibility:
    """How far a run can be reproduced, with the reproductions of it that are in its store.

    Parameters
    ----------
    record : RunRecord
    store : Store
        Where the run is; asked for reproductions of it, and for the runs above and inside it.
    kin : Kin, optional
        What `kin_of` gives, where it is known.
    """
    kin = kin_of(record, store) if kin is None else kin
    framework = str(record.row["framework"] or "")
    verdicts = _verdicts(store, record.run_id)
    return reproducibility(
        documents_of(record, kin), record.params, framework=framework, verdicts=verdicts, kin=kin
    )


def documents_of(record: RunRecord, kin: Kin) -> dict[str, Any]:
    """The documents of a run; those on data of its parts, where it has none itself."""
    documents = record.provenance
    if any(section.startswith("data.") for section in documents):
        return documents
    return documents | dict(kin.data)


def reproducibility(
    documents: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    framework: str = "",
    verdicts: tuple[Verdict, ...] = (),
    kin: Kin = _ALONE,
) -> Reproducibility:
    """How far a run can be reproduced from what is known of it.

    Parameters
    ----------
    documents : mapping
        Section to document, as `RunRecord.provenance` has them.
    params : mapping
        Dotted path to value.
    framework : str, default ''
        Its name and version, as the run has it: which random generators the training draws from.
    verdicts : tuple of Verdict
        Of reproductions of the run.
    kin : Kin
        What the runs above and inside it tell.
    """
    known = {section: doc for section, doc in documents.items() if isinstance(doc, Mapping)}
    found = [
        *_guarded("code", lambda: code(known, params)),
        *_guarded("data", lambda: _data(known, kin)),
        *_guarded("configuration", lambda: configuration(known)),
        *_guarded("environment", lambda: environment(known)),
        *_guarded("seed", lambda: _seeds(known, params, framework, kin)),
        *_guarded("hardware", lambda: hardware(known)),
        *_contradictions(verdicts),
    ]
    found.sort(key=lambda finding: -_rank(finding.limits_to))
    level = found[0].limits_to if found and found[0].limits_to else LEVELS[0]
    return Reproducibility(level, _best(verdicts), tuple(found))


def _data(known: Mapping[str, Any], kin: Kin) -> Iterable[Finding]:
    """Of the run's data and of that of its parts; the same is said of many trials once."""
    found = (
        [] if kin.data and not any(name.startswith("data.") for name in known) else [*data(known)]
    )
    for section, document in kin.data:
        found += data({section: document})
    return dict.fromkeys(found)


def _seeds(
    known: Mapping[str, Any], params: Mapping[str, Any], framework: str, kin: Kin
) -> Iterable[Finding]:
    frameworks = (framework, *kin.frameworks)
    yield from seeds({**kin.documents, **known}, {**kin.params, **params}, frameworks)
    yield from dict.fromkeys(found for study in kin.studies for found in sampler(*study))
    yield from processes(kin.processes)


def _guarded(area: str, find: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What is found in an area; that its documents have a shape of their own, where they do."""
    try:
        return list(find())
    except SHAPE_ERRORS as error:
        what = f"what is recorded cannot be read: {type(error).__name__}: {error}"
        remedy = "record facts of your own in sections with names of your own"
        return [Finding(area, METHODOLOGICAL, what, remedy)]


def _rank(level: str | None) -> int:
    """0 for what limits nothing, and more the weaker a level is."""
    return 0 if level is None else LEVELS.index(level)


def _best(verdicts: tuple[Verdict, ...]) -> Verdict | None:
    same = [verdict for verdict in verdicts if verdict.verdict in LEVELS[:2]]
    return min(same, key=lambda verdict: LEVELS.index(verdict.verdict), default=None)


def _contradictions(verdicts: tuple[Verdict, ...]) -> list[Finding]:
    """Reproductions that did not give the same results; they are told, whatever others gave."""
    words = {"different": "gave different results", "failed": "did not come to an end"}
    return [
        Finding(
            "reproduction",
            None,
            f"a reproduction, run {verdict.run_id}, {words[verdict.verdict]}"
            + (f"; first cause: {verdict.cause}" if verdict.cause else ""),
            f"see what differs: tachograph diff with the two runs, and show {verdict.run_id}",
        )
        for verdict in verdicts
        if verdict.verdict in words
    ]


# ---------------------------------------------------------------------------- from a store


def _verdicts(store: Store, run_id: str) -> tuple[Verdict, ...]:
    """What reproductions of a run have shown, in the order of their ids."""
    found = reproductions(store, run_id, _REPRODUCTIONS)
    return tuple(Verdict(str(one.get("verdict")), run, _cause(one)) for run, one in found.items())


def _cause(document: Mapping[str, Any]) -> str | None:
    cause = mapping(document.get("cause"))
    if not cause or document.get("doubt"):
        return None
    return f"{cause.get('area')}, {cause.get('path')}"
