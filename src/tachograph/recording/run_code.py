"""The code of a run, into its record: documents on git, source and notebook, and an archive.

Runs on the recorder's thread, for root runs only. The archive of one state of the code is made
once per process, however many runs it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tachograph.provenance import Document, missing, notebook
from tachograph.provenance.rows import document_row
from tachograph.provenance.source import Source
from tachograph.recording.artifacts import log_content
from tachograph.restoring import sources
from tachograph.values import json_text

if TYPE_CHECKING:
    from tachograph.provenance.argv import Entry
    from tachograph.run import Run


_last_packed: tuple[str, bytes] = ("", b"")  # the state of the code, and its archive


class RunCode:
    """What is recorded of a run's code: as it starts, and as it ends what came since.

    Parameters
    ----------
    run : Run
    entry, here : str
        Folder of the entry script, and working directory, as the run started.
    given : sequence of path
        Config files that the program was given.
    started : Entry
        How the program was started.
    """

    def __init__(
        self, run: Run, entry: str, here: str, given: Sequence[Path], started: Entry
    ) -> None:
        self._run = run
        self._keep = run.config.record.code != "allow"
        self._new_source = partial(Source, entry, here, given, content=self._keep, started=started)
        self._source: Source | None = None
        self._cells = 0

    def record(self) -> None:
        """Record the code as it is now."""
        try:
            self._source = self._new_source()
            self._log("git", self._source.git)
            self._source.update()
            self._record_source(self._source)
        except Exception as error:
            self._log("source", missing(error))
        self._record_notebook()

    def record_rest(self) -> None:
        """Record what was imported since then, and the cells that a notebook has run."""
        if self._source is not None and self._source.update():
            self._record_source(self._source)
        self._record_notebook()

    def _record_source(self, source: Source) -> None:
        document = source.document
        try:
            if source.files or source.patches:
                archive = _packed(source, document)
                document["archive"] = sources.summary(archive)
                log_content(self._run, sources.ARCHIVE, archive, kind="source")
        except Exception as error:  # the facts are known all the same
            document["archive"] = missing(error)
            self._run.report_problem(error, "source")
        finally:
            self._log("source", document)

    def _record_notebook(self) -> None:
        cells = notebook.cells()
        if len(cells) == self._cells:
            return
        self._cells = len(cells)
        document = notebook.collect(content=self._keep)
        if self._keep:
            script = notebook.as_script(cells).encode(errors="backslashreplace")
            document["script"] = {
                "artifact": sources.SCRIPT,
                "sha256": hashlib.sha256(script).hexdigest(),
            }
            log_content(self._run, sources.SCRIPT, script, kind="source")
        self._log("notebook", document)

    def _log(self, section: str, document: Document) -> None:
        self._run.record_rows("provenance", document_row(section, document))


def _packed(source: Source, document: Document) -> bytes:
    global _last_packed
    kept = {part: document[part] for part in ("trees", "files", "left_out")}
    state = hashlib.sha256(json_text(kept).encode()).hexdigest()
    if state != _last_packed[0]:
        _last_packed = state, sources.pack(source.files, source.patches)
    return _last_packed[1]
