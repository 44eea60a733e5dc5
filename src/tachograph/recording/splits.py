"""Rows that the splits of a run have in common, and those of the runs of one study.

Keeps hashes of rows, never rows: of the runs of this process that were recorded last. Runs in the
background. Says what was found in the document `splits`, and an overlap in an event. Each fold has
a document of its own: folds of one run may lie in several processes.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tachograph.provenance import missing
from tachograph.provenance.row_hashes import RowHashes, hash_parts, hash_rows
from tachograph.provenance.row_sources import is_target
from tachograph.provenance.row_values import NotHashed

if TYPE_CHECKING:
    from tachograph.run import Run

MOST_BYTES = 64 << 20
"""Of hashes, over all runs; those of the runs recorded longest ago are forgotten first."""

_MOST_RUNS = 2_000  # of a study, and of those that no study holds together
_MOST_SPLITS = 64  # distinct ones, that those of other runs are compared with
_MUCH_INFORMATION = 64.0
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_OF_DATA = r"(data|set|dataset|loader|dataloader)?"  # `trainset`, `testloader`
_TRAINING = re.compile(rf"[dx]?train(ing)?{_OF_DATA}|fit|learn(ing)?")
_EVALUATION = re.compile(
    rf"[dx]?(val|valid|test|eval|dev){_OF_DATA}|validat(e|ion)|testing|evaluat(e|ion)"
    r"|holdout|heldout|held"
)
_PREDICTION = re.compile(r"predict(ion|ions)?|pred")


def role_of(name: str) -> str | None:
    """What a split is for, by its name; None for what has no features.

    Returns
    -------
    str or None
        'training', 'evaluation', 'prediction', or 'other' where the name does not tell.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if any(is_target(word) for word in words):
        return None
    for role, pattern in (
        ("training", _TRAINING),
        ("evaluation", _EVALUATION),
        ("prediction", _PREDICTION),
    ):
        if any(pattern.fullmatch(word) for word in words):
            return role
    return "training" if words == ["x"] else "other"


@dataclass(slots=True)
class Split:
    """A split of a run: what it is for, and its rows or why they are not known.

    Attributes
    ----------
    role : str
        As `role_of` says, or 'watched': an evaluation that may be of the training data itself.
    fold : int or None
        Of a cross-validation inside the run; compared with splits of the same fold only.
    """

    run: str
    name: str
    role: str
    fold: int | None
    rows: int | None = None
    digest: str | None = None
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in documents."""
        return self.name if self.fold is None else f"fold-{self.fold}.{self.name}"

    @property
    def evaluates(self) -> bool:
        """Whether its rows should not be among the training rows, or are worth counting there."""
        return self.role in ("evaluation", "watched", "prediction")


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many rows of an evaluation are among training rows, and what to make of it."""

    training: Split
    evaluation: Split
    rows: int
    is_exact: bool
    finding: str

    @property
    def evidence(self) -> dict[str, Any]:
        """The data of an event."""
        of = self.evaluation.rows or 0
        return {
            "train": self.training.label,
            "evaluation": self.evaluation.label,
            "rows": self.rows,
            "of": of,
            "share": self.rows / of if of else 0.0,
            "counted": "exact" if self.is_exact else "estimated",
        }

    @property
    def evidence_of_runs(self) -> dict[str, Any]:
        """The data of an event on two runs."""
        runs = {"train_run": self.training.run, "evaluation_run": self.evaluation.run}
        return {**self.evidence, **runs}

    def message(self, among: str = "the training rows") -> str:
        """One line for a person."""
        about = "" if self.is_exact else "about "
        return (
            f"{about}{self.rows:,} of {self.evaluation.rows:,} rows of '{self.evaluation.label}'"
            f" are among {among} ('{self.training.label}')"
        )


class Family:
    """The splits of a root run and of the runs inside it."""

    def __init__(self) -> None:
        self.hashes: OrderedDict[str, RowHashes] = OrderedDict()
        self._of_runs: OrderedDict[str, dict[str, Split]] = OrderedDict()
        self._overlaps: dict[str, dict[tuple[str, str], Overlap]] = {}
        self._distinct: OrderedDict[tuple[str, str, str | None], Split] = OrderedDict()
        self._across: dict[tuple[str, str], Overlap] = {}

    @property
    def nbytes(self) -> int:
        """What it takes of memory, but for names."""
        return sum(hashes.nbytes for hashes in self.hashes.values())

    def add(self, split: Split, hashes: RowHashes | None) -> list[Overlap]:
        """Take a split; return the overlaps inside its run that are new."""
        if hashes is not None:
            split.digest = hashes.digest
            self.hashes.setdefault(split.digest, hashes)
            self.hashes.move_to_end(split.digest)
        own = self._of_runs.setdefault(split.run, {})
        own[split.label] = split
        while len(self._of_runs) > _MOST_RUNS:
            gone, _ = self._of_runs.popitem(last=False)
            self._overlaps.pop(gone, None)
        known = self._overlaps.setdefault(split.run, {})
        new = []
        for other in own.values():
            if other.fold == split.fold and (found := self._compare(split, other)) is not None:
                pair = found.training.label, found.evaluation.label
                if pair not in known or known[pair].finding != "overlap":
                    new.append(found)
                known[pair] = found
        return new

    def look_across(self, split: Split) -> list[Overlap]:
        """Compare with the splits of other runs; return what is new of two names of splits."""
        key = split.name, split.role, split.digest
        if key in self._distinct:
            return []
        own = {one.digest for one in self._of_runs[split.run].values()}
        new = []
        for other in self._distinct.values():
            names = (split.name, other.name) if other.evaluates else (other.name, split.name)
            before = self._across.get(names)
            told = before is not None and before.finding == "overlap"
            if told or other.run == split.run or other.digest in own:
                continue
            found = self._compare(split, other)
            if found is not None and (before is None or found.rows > before.rows):
                self._across[names] = found
                new.append(found)
        self._distinct[key] = split
        while len(self._distinct) > _MOST_SPLITS:
            self._distinct.popitem(last=False)
        return new

    def document(self, run_id: str, fold: int | None = None, *, across: bool) -> dict[str, Any]:
        """What is known of the splits of a run, and where it is the root, of those of others."""
        own = [one for one in self._of_runs.get(run_id, {}).values() if one.fold == fold]
        overlaps = [
            found
            for found in self._overlaps.get(run_id, {}).values()
            if found.evaluation.fold == fold
        ]
        document: dict[str, Any] = {
            "splits": {split.label: {"role": split.role, **split.document} for split in own},
            "overlaps": [{**found.evidence, "finding": found.finding} for found in overlaps],
        }
        if across and fold is None and self._across:
            document["across_runs"] = [
                {**found.evidence_of_runs, "finding": found.finding}
                for found in self._across.values()
            ]
        return document

    def _compare(self, one: Split, other: Split) -> Overlap | None:
        if {one.role, other.role}.isdisjoint({"training"}) or not (
            one.evaluates or other.evaluates
        ):
            return None
        training, evaluation = (other, one) if one.evaluates else (one, other)
        fitted, seen = self._hashes_of(training), self._hashes_of(evaluation)
        if fitted is None or seen is None:
            return None
        rows, is_exact = seen.rows_among(fitted)
        finding = "overlap" if rows else "none"
        if rows and evaluation.role == "prediction":
            finding = "prediction"
        elif evaluation.role == "watched" and training.digest == evaluation.digest:
            finding = "same data"
        elif rows and is_chance(rows, seen, fitted):
            finding = "chance"
        return Overlap(training, evaluation, rows, is_exact, finding)

    def _hashes_of(self, split: Split) -> RowHashes | None:
        return None if split.digest is None else self.hashes.get(split.digest)


def is_chance(rows: int, evaluation: RowHashes, training: RowHashes) -> bool:
    """Whether rows that tell little are alike as often as the training rows are among themselves.

    Rows that tell 64 bits or more are not alike by chance. Of others the same share is expected
    among the training rows as training rows have a twin. Twins come in pairs; each of the two
    numbers may be three standard deviations off.
    """
    if min(evaluation.bits, training.bits) >= _MUCH_INFORMATION:
        return False
    twins = training.repeated * training.rows + 2
    share = min(1.0, (twins + 3 * math.sqrt(2 * twins)) / training.rows)
    expected = share * evaluation.rows
    return rows <= expected + 3 * math.sqrt(expected * (1 - share))


# ---------------------------------------------------------------------------- of this process

_families: OrderedDict[str, Family] = OrderedDict()
_lock = threading.Lock()


def _start_anew() -> None:
    """In a forked process: another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _families.clear()


os.register_at_fork(after_in_child=_start_anew)


def compare(run: Run, data: Any, name: str, role: str | None, fold: int | None) -> None:
    """Hash the rows of a split of a run, compare them with its other splits, record the result."""
    role = role or role_of(name)
    if role is not None:
        split = Split(run.run_id, name, role, fold)
        _take(run, split, hash_split(split, data))


def compare_folds(run: Run, data: Any, folds: Sequence[tuple[Any, Any]]) -> None:
    """The same of the two parts of each fold, which are rows of the same data: it is read once."""
    parts = [
        Split(run.run_id, name, role, fold)
        for fold in range(len(folds))
        for name, role in (("train", "training"), ("test", "evaluation"))
    ]
    try:
        hashes = hash_parts(data, itertools.chain.from_iterable(folds))
    except Exception as error:
        for split in parts:
            split.document = _why_not(error)
            _take(run, split, None)
        return
    for split, found in zip(parts, hashes, strict=True):
        _take(run, split, _described(split, found))


def _take(run: Run, split: Split, hashes: RowHashes | None) -> None:
    root, fold = _root_of(run), split.fold
    stands_alone = fold is not None or run.kind in ("fold", "candidate")
    with _lock:
        family = _families.setdefault(run.root_id, Family())
        _families.move_to_end(run.root_id)
        found = family.add(split, hashes)
        across = [] if stands_alone or hashes is None else family.look_across(split)
        _make_room()
        document = family.document(run.run_id, fold, across=run is root)
        of_root = family.document(root.run_id, across=True)
    run.log_provenance("splits" if fold is None else f"splits.fold-{fold}", document)
    for overlap in found:
        if overlap.finding == "overlap":
            run.event("warning", overlap.message(), level="warning", data=overlap.evidence)
    if across and run is not root:
        root.log_provenance("splits", of_root)
    for overlap in across:
        if overlap.finding == "overlap":
            message = overlap.message("the training rows of another run")
            root.event("warning", message, level="warning", data=overlap.evidence_of_runs)


def hash_split(split: Split, data: Any) -> RowHashes | None:
    """Hash the rows of a split, and note in it what is known of them, or why nothing is."""
    try:
        return _described(split, hash_rows(data))
    except Exception as error:
        split.document = _why_not(error)
        return None


def _described(split: Split, hashes: RowHashes) -> RowHashes:
    split.rows = hashes.rows
    split.document = {
        "rows": hashes.rows,
        "distinct": hashes.distinct,
        "duplicates": hashes.rows - hashes.distinct,
        "counted": "exact" if hashes.is_exact else "estimated",
    }
    return hashes


def _why_not(error: Exception) -> dict[str, Any]:
    return {"missing": str(error)} if isinstance(error, NotHashed) else missing(error)


def _make_room() -> None:
    while len(_families) > _MOST_RUNS:
        _families.popitem(last=False)
    while sum(family.nbytes for family in _families.values()) > MOST_BYTES:
        first = next(iter(_families.values()))
        if len(_families) > 1:
            _families.popitem(last=False)
        elif len(first.hashes) > 1:
            first.hashes.popitem(last=False)
        else:
            return


def _root_of(run: Run) -> Run:
    """The outermost run that this process has."""
    while run.parent is not None:
        run = run.parent
    return run
