"""Watches what a process records, beside its training, and records what rules find as events.

Reads the process's own journal as the stores do; driven by the recorder's thread.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from tachograph.health import steps
from tachograph.health.findings import Finding
from tachograph.health.names import is_of_machine
from tachograph.health.rules import RunRules
from tachograph.health.stall import Stall
from tachograph.journal import JournalWriter
from tachograph.journal_reader import JournalReader
from tachograph.records import Batch, MetricBlock, Row
from tachograph.security.texts import redact_text
from tachograph.settings import HealthConfig
from tachograph.tensors.records import TensorRows
from tachograph.values import canonical_json
from tachograph.warning import warn_once

_MOST_RUNS = 1_000  # that are remembered; only in a process that does not end its runs
_READ_BYTES = 4 << 20


@dataclass(slots=True)
class _Watched:
    """A run that has not ended, as far as this process knows."""

    rules: RunRules
    attempt: int
    stall: Stall | None = None  # where this process owns the run, and so will see it end
    parent_id: str | None = None


class Monitor:
    """Reads the journal of this process and says what is wrong with its runs.

    Parameters
    ----------
    journal : JournalWriter
        Which is read, and which the events go into.
    settings : HealthConfig
    clock, processor : callable
        Seconds, and seconds of processor time that the process has used.

    Attributes
    ----------
    seen : float
        Sequence number up to which it needs the journal no more.
    """

    def __init__(
        self,
        journal: JournalWriter,
        settings: HealthConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self.seen: float = 0
        self._journal = journal
        self._settings = settings
        self._clock, self._processor = clock, processor
        self._reader = JournalReader(journal.folder, journal.writer)
        self._runs: OrderedDict[str, _Watched] = OrderedDict()
        self._heard: set[str] = set()  # in the present step
        self._found: list[tuple[str, Finding]] = []
        self._has_numpy = find_spec("numpy") is not None

    def step(self) -> None:
        """Look at all that was recorded since the last time. Never raises."""
        if self.seen == math.inf:
            return
        try:
            self._look()
        except Exception as error:
            self.seen = math.inf  # so that nothing waits for it
            self._runs.clear()
            warn_once(f"the health of trainings is not watched: {type(error).__name__}: {error}")

    # ------------------------------------------------------------------ what was recorded

    def _look(self) -> None:
        waiting = [run_id for run_id, run in self._runs.items() if run.rules.waits]
        self._heard = set()
        wanted = self._journal.next_seq  # the stores are not kept waiting for what comes meanwhile
        while self._reader.next < wanted and (batch := self._reader.read(_READ_BYTES)) is not None:
            if batch.writer == self._journal.writer:  # those of others have come as live ones
                self._take(batch)
        self.seen = self._reader.next
        for run_id in waiting:
            if run_id not in self._heard and run_id in self._runs:  # nothing has followed
                self._tell(run_id, self._runs[run_id].rules.flush())
        self._listen()
        self._record()

    def _take(self, batch: Batch) -> None:
        runs = batch.rows.get("runs", ())
        for row in runs:
            if row["status"] == "running":
                self._begin(row)
        for block in batch.blocks:
            self._take_points(block)
        if self._has_numpy:
            self._take_tensors(batch)
        for row in runs:
            if row["status"] not in (None, "running"):
                self._end(row["run_id"])

    def _take_points(self, block: MetricBlock) -> None:
        series = block.series
        if series.rank == 0 and not is_of_machine(series.context):
            run = self._run(series.run_id, series.attempt)
            self._tell(series.run_id, run.rules.points(block))

    def _take_tensors(self, batch: Batch) -> None:
        recorded = batch.rows.get("tensors", ())
        if isinstance(recorded, TensorRows):
            for frame in recorded.frames:
                series, numbers = frame.series, steps.from_bytes(frame.statistics)
                run = self._run(series.run_id, series.attempt, series.rank)
                self._tell(series.run_id, run.rules.tensors(series.tensors, frame.step, numbers))
            recorded = recorded.loose
        for (run_id, rank, attempt, step), rows in groupby(recorded, steps.place):
            run = self._run(run_id, attempt, rank)
            self._tell(run_id, run.rules.tensors(*_arranged([*rows], step)))

    # ------------------------------------------------------------------ runs

    def _begin(self, row: Row) -> None:
        run = self._run(row["run_id"], row["attempt"] or 1)
        run.parent_id = row["parent_id"]
        if self._settings.stalled is not False:
            run.stall = Stall(self._settings.stalled)

    def _run(self, run_id: str, attempt: int, rank: int = 0) -> _Watched:
        """What is known of a run that something was recorded of."""
        run = self._runs.get(run_id)
        if run is None or run.attempt != attempt:
            run = _Watched(RunRules(self._settings, attempt, rank), attempt)
            self._runs[run_id] = run
        self._runs.move_to_end(run_id)
        if len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)
        self._heard.add(run_id)
        return run

    def _end(self, run_id: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            self._tell(run_id, run.rules.flush())
            del self._runs[run_id]

    def _listen(self) -> None:
        """Note which runs are alive, with those that they are part of, and look at the others."""
        now, processor = self._clock(), self._processor()
        alive = set(self._with_parents(self._heard))
        parents = {run.parent_id for run in self._runs.values()}
        for run_id, run in self._runs.items():
            if run.stall is None:
                continue
            if run_id in alive:
                run.stall.heard(now, processor)
            elif run_id not in parents and (finding := run.stall.look(now, processor)) is not None:
                run.stall = None
                self._tell(run_id, [finding])

    def _with_parents(self, run_ids: Iterable[str]) -> Iterator[str]:
        for run_id in run_ids:
            passed: str | None = run_id
            for _ in range(10):  # generations
                if passed is None:
                    break
                yield passed
                run = self._runs.get(passed)
                passed = run.parent_id if run is not None else None

    def _tell(self, run_id: str, findings: Iterable[Finding]) -> None:
        self._found += [(run_id, finding) for finding in findings]

    def _record(self) -> None:
        """Record what was found, in order of steps: metrics and tensors come apart."""
        found, self._found = self._found, []
        if found:
            found.sort(key=lambda pair: math.inf if pair[1].step is None else pair[1].step)
            now = self._journal.now_us()
            rows = [_event(run_id, finding, now) for run_id, finding in found]
            self._journal.append_rows("events", rows)


def _arranged(rows: Sequence[Row], step: int | None) -> tuple[Any, int | None, Any]:
    keys, numbers = steps.from_rows(rows)
    return keys, step, numbers


def _event(run_id: str, finding: Finding, time_us: int) -> Row:
    return {
        "run_id": run_id,
        "time": time_us,
        "level": finding.level,
        "kind": "health",
        "message": redact_text(finding.message),
        "data": redact_text(canonical_json(finding.data)),
    }
