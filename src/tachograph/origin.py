"""Where a run comes from, gathered for it without delaying it: documents, usage, defaults.

The bridge between `Run` and what `provenance` and `usage` can find out.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph import registry
from tachograph.errors import ConfigError, StoreError
from tachograph.records import Row
from tachograph.redaction import redact_text, redact_value
from tachograph.values import canonical_json, plain

if TYPE_CHECKING:
    from tachograph.config import Config
    from tachograph.recorder import Recorder
    from tachograph.run import Run

_AT_ONCE = ("seeds", "argv")
_LATER = ("git", "packages", "python", "hardware", "environment")
_SAME_FOR_PROCESS = frozenset({"packages", "python", "hardware"})
_known: dict[str, Row] = {}
_known_lock = threading.Lock()


def begin(run: Run, recorder: Recorder) -> tuple[Callable[[], None], ...]:
    """Record what a new root run comes from; return what to do for it each second.

    Seeds are read now, because the training will move them; the rest is gathered on the
    recorder's thread.
    """
    from tachograph import provenance

    for section, document in provenance.collect(_AT_ONCE).items():
        run.log_provenance(section, document)
    if recorder.identity.rank == 0:
        recorder.in_background(lambda: _collect_later(run))
    if not run.config.record.system:
        return ()
    ticks = (_usage_tick(run, recorder),)
    recorder.each_tick.extend(ticks)
    return ticks


def _collect_later(run: Run) -> None:
    from tachograph import provenance

    for section in _LATER:
        with _known_lock:
            row = _known.get(section)
        if row is None:
            document = provenance.collect([section])[section]
            row = provenance_row(section, document)
            if section in _SAME_FOR_PROCESS:
                with _known_lock:
                    _known[section] = row
        run.record_rows("provenance", row)


def _usage_tick(run: Run, recorder: Recorder) -> Callable[[], None]:
    from tachograph.usage import UsageSampler

    sampler = UsageSampler()
    due = time.monotonic() + min(1.0, run.config.record.system_interval)

    def sample() -> None:
        nonlocal due
        if time.monotonic() >= due and run.is_open:
            due = time.monotonic() + run.config.record.system_interval
            run.log_usage(sampler.sample())

    return sample


def provenance_row(section: str, document: Mapping[str, Any]) -> Row:
    """The columns of a provenance document, with secrets taken out."""
    text = canonical_json(redact_value(section, plain(document)))
    return {
        "section": section,
        "document": text,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def data_document(data: Any, name: str) -> dict[str, Any]:
    """The fingerprint of data."""
    from tachograph.provenance import data as fingerprints

    document: dict[str, Any] = fingerprints.fingerprint(data, name=name)
    return document


def refuse_uncommitted() -> None:
    """Raise ConfigError where the working tree has changes that are not committed."""
    from tachograph import provenance

    git = provenance.collect(["git"])["git"]
    if git.get("dirty"):
        raise ConfigError(
            'record.code = "refuse", and there is uncommitted work in '
            f"{git.get('root', 'the working tree')}; commit it, or set it to 'snapshot'"
        )


def default_project() -> str:
    """The name of the working folder."""
    return Path.cwd().name or "default"


def user_name() -> str | None:
    """The login name."""
    try:
        return redact_text(getpass.getuser())
    except (OSError, KeyError, ImportError):
        return None


def last_attempt(config: Config, run_id: str) -> int:
    """The latest attempt at a run that a store knows, 0 where none does."""
    from tachograph.query import open_store

    latest = 0
    for url in config.backend:
        with contextlib.suppress(StoreError, ConfigError):
            store = open_store(url)
            try:
                latest = max([latest, *store.attempts(run_id)["attempt"]])
            finally:
                store.close()
    return latest


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
