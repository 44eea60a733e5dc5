"""Where a run comes from, gathered for it without delaying it: documents, usage, defaults.

The bridge between `Run` and what `provenance` and `usage` can find out.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph import registry
from tachograph.errors import ConfigError, StoreError, StoreNotFound
from tachograph.identity import REPRODUCES_VARIABLE, derived_id
from tachograph.provenance.rows import document_row
from tachograph.records import Row
from tachograph.security.texts import redact_text
from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.config import Config
    from tachograph.provenance.arguments import Arguments
    from tachograph.recorder import Recorder
    from tachograph.recording.console import Console
    from tachograph.recording.run_code import RunCode
    from tachograph.recording.usage import UsageSampler
    from tachograph.run import Run

_AT_ONCE = ("seeds", "argv")
_LATER = ("packages", "python", "container", "hardware", "numerics", "environment")
_SAME_FOR_PROCESS = frozenset({"packages", "python", "container", "hardware"})
_known: dict[str, Row] = {}


class Beside:
    """What goes on beside a root run until it ends: samples of usage, the console."""

    def __init__(self, run: Run, recorder: Recorder) -> None:
        self._run = run
        self._recorder = recorder
        self._sampler: UsageSampler | None = None
        self._console: Console | None = None
        self._code: RunCode | None = None
        self._due = 0.0
        settings = run.config.record
        if settings.system:
            from tachograph.recording.usage import UsageSampler

            self._sampler = UsageSampler()
            self._due = time.monotonic() + min(1.0, settings.system_interval)
        if settings.console:
            from tachograph.recording.console import Console

            self._console = Console(run)
        recorder.each_tick.append(self.tick)

    def record_code(self, given: Sequence[Path]) -> None:
        """Record the run's code, with the config files that it was given."""
        from tachograph.provenance import argv

        entry, here = str(argv.entry_folder()), argv.working_directory() or os.sep
        started = argv.entry()

        def record() -> None:
            from tachograph.provenance.parsers import hydra_files
            from tachograph.recording.run_code import RunCode

            files = [*given, *map(Path, hydra_files())]
            self._code = RunCode(self._run, entry, here, files, started)
            self._code.record()

        self._recorder.in_background(record)

    def _record_rest(self) -> None:
        if self._code is not None and self._run.started_here:
            self._code.record_rest()

    def tick(self) -> None:
        """Record what is due; called each second on the recorder's thread."""
        if self._console is not None:
            self._console.flush()
        if self._sampler is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._run.config.record.system_interval
            self._run.log_usage(self._sampler.sample())

    def close(self) -> None:
        """Stop, and record what is left."""
        if self.tick in self._recorder.each_tick:
            self._recorder.each_tick.remove(self.tick)
        if self._console is not None:
            self._console.close()
        self._recorder.in_background(self._record_rest)


def begin(run: Run, recorder: Recorder) -> Beside:
    """Record what a new root run comes from, and start what goes on beside it.

    Seeds and arguments are read now, because the training will move them; the rest is gathered
    on the recorder's thread.
    """
    from tachograph import provenance
    from tachograph.provenance import arguments

    beside = Beside(run, recorder)
    if recorder.identity.rank == 0:
        found, now = arguments.look(), recorder.change_us()
        recorder.in_background(lambda: _record_given(run, found, now))
        for section, document in provenance.collect(_AT_ONCE).items():
            run.log_provenance(section, document)
        if seeding := sys.modules.get("tachograph.recording.seeding"):
            seeding.record_seeding(run)
        original, execution = _reproduced()
        if original:
            run.set_tags({"reproduces": original})
            about = {"of": original, "verdict": None, "execution": execution}
            run.log_provenance("reproduction", about)
        recorder.in_background(lambda: _collect_later(run))
        beside.record_code(found.files)
    return beside


def _reproduced() -> tuple[str, str]:
    original, _, execution = os.environ.get(REPRODUCES_VARIABLE, "").partition("/")
    return original, execution


def own_id(config: Config, run_id: str) -> str:
    """The id under which to record where a program names one itself.

    A reproduction never goes on with a run that was there before: that is what it is compared
    with. It gets an id that all processes of the same execution derive.
    """
    original, execution = _reproduced()
    if not original or tagged(config, "reproduces").get(run_id) == original:
        return run_id
    return derived_id(execution, run_id) if last_attempt(config, run_id) else run_id


def _record_given(run: Run, found: Arguments, now: int) -> None:
    from tachograph.recording.given import record_given  # with much that the start does without

    record_given(run, found, now)


def _collect_later(run: Run) -> None:
    from tachograph import provenance

    for section in _LATER:
        row = _known.get(section)
        if row is None:
            row = document_row(section, provenance.collect([section])[section])
            if section in _SAME_FOR_PROCESS:
                _known[section] = row
        run.record_rows("provenance", row)


def data_document(data: Any, name: str) -> dict[str, Any]:
    """The fingerprint of data."""
    from tachograph.provenance import data as fingerprints

    document: dict[str, Any] = fingerprints.fingerprint(data, name=name)
    return document


def refuse_uncommitted() -> None:
    """Raise ConfigError where no commit holds the code that is imported by now."""
    from tachograph.provenance import argv, source

    why = source.uncommitted_work(str(argv.entry_folder()))
    if why is not None:
        raise ConfigError(
            f"record.code = \"refuse\", and {why}; commit it, or set it to 'snapshot'"
        )


def default_project() -> str:
    """The name of the working folder."""
    return Path.cwd().name or "default"


@functools.cache
def user_name() -> str | None:
    """The login name."""
    try:
        return redact_text(getpass.getuser())
    except (OSError, KeyError, ImportError):
        return None


def last_attempt(config: Config, run_id: str) -> int:
    """The latest attempt at a run that a store or a journal for it knows, 0 where none does."""
    from tachograph.backends.base import Condition, Query
    from tachograph.query import open_store

    query = Query("attempts", [Condition("run_id", "=", run_id)], ["attempt"])
    latest = 0
    for url in config.backend:
        try:
            with open_store(url) as store:
                attempts = list(store.read(query)["attempt"])
        except StoreNotFound:
            continue
        except (StoreError, ConfigError) as error:
            attempts = _attempts_that_wait(config, url, run_id)
            warn_once(f"{url} cannot be asked which attempts at run {run_id} there were: {error}")
        latest = max([latest, *attempts])
    return latest


def _attempts_that_wait(config: Config, url: str, run_id: str) -> list[int]:
    """Attempts at a run that journals hold for a store that cannot be asked."""
    from tachograph.delivery import drain
    from tachograph.journal_reader import read_batches
    from tachograph.recorder import get_recorder

    folder = get_recorder(config).folder
    return [
        row["attempt"]
        for writer in drain.writers_for(folder, url)
        for batch in read_batches(folder, writer, 0, 8 << 20)
        for row in batch.rows.get("attempts", ())
        if row["run_id"] == run_id
    ]


def tagged(config: Config, key: str) -> dict[str, str]:
    """Run id to value of a tag, as the first store knows it that can be read."""
    from tachograph.backends.base import Condition, Query
    from tachograph.delivery import drain
    from tachograph.reading.live import LiveReader
    from tachograph.recorder import get_recorder

    folder = get_recorder(config).folder
    query = Query("tags", [Condition("key", "=", key)], ["run_id", "value"])
    for url in config.backend:
        with contextlib.suppress(StoreError, ConfigError):
            # A server that is away is asked once, at opening, and not waited for again.
            backend = registry.open_backend(url, create=not registry.is_far(url))
            try:
                tails = functools.partial(drain.pending_batches, folder, backend.url)
                found = LiveReader(backend, tails).read(query)
                return dict(zip(found["run_id"], found["value"], strict=True))
            finally:
                backend.close()
    return {}


def root_of(config: Config, run_id: str) -> str:
    """The outermost ancestor of a run, as a store knows it; else the run itself."""
    from tachograph.backends.base import Condition, Query

    for url in config.backend:
        with contextlib.suppress(StoreError, ConfigError):
            backend = registry.open_backend(url)
            try:
                rows = backend.read(Query("runs", [Condition("run_id", "=", run_id)]))
                for row in rows:
                    return str(row["root_id"] or run_id)
            finally:
                backend.close()
    return run_id
