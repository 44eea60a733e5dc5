"""The code of a recorded run, back into a folder, and the command that ran it.

Knows how a run's code is recorded; knows no store from inside, and runs nothing of what it writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tachograph.errors import StoreError, StoreNotFound
from tachograph.provenance.source import Member
from tachograph.provenance.trees import MAIN, is_inside
from tachograph.query import Store
from tachograph.reading.documents import Documents
from tachograph.reading.run_record import RunRecord
from tachograph.restoring.checkout import checkout
from tachograph.restoring.sources import SCRIPT, Restored, pack, restore, write_below
from tachograph.security.texts import REDACTED
from tachograph.values import mapping

_WORKER = re.compile(r"--multiprocessing-fork|joblib\.externals\.loky\..*")
_SCRIPT_BYTES = 32 << 20


def restore_run(
    store: Store,
    record: RunRecord,
    folder: Path,
    *,
    files_only: bool = False,
    ask_remotes: bool = True,
) -> Restored:
    """Write the source tree of a run into a new folder, each project in a folder of its name.

    Parameters
    ----------
    store : Store
        Where the run and its archive are.
    record : RunRecord
        The run; a part of another has the code of that one.
    folder : path
        Does not exist yet, or is empty.
    files_only : bool, default False
        The files that were imported alone, without the commit and without asking git.
    ask_remotes : bool, default True
        Whether a commit that is not on this machine may be fetched from the remote.

    Returns
    -------
    Restored
        What was written, and what could not be. The script of a notebook is among `files`.

    Raises
    ------
    StoreError
        The run has no archive, and the message says why; the store does not have it; the folder
        is in use; or the archive is not what the record describes. Nothing was written then.
    """
    documents = record.provenance
    document = mapping(documents.get("source"))
    archive = mapping(document.get("archive"))
    script = _script(store, documents)
    if "sha256" not in archive and script is None:
        raise StoreError(f"the code of {record.run_id} was not kept: {_why_none(document)}")
    if "sha256" not in archive:  # a notebook, which may read what was committed
        document = {"trees": {}, **document, "files": {}, "left_out": {}}
    with _archive(store, archive) as content:
        if files_only:
            restored = restore(document, content, Path(folder))
        else:
            restored = checkout(document, content, Path(folder), ask_remotes=ask_remotes)
    if script is None:
        return restored
    key = _script_key(document, restored.folder)
    write_below(restored.folder, key, Member(script))
    return dataclasses.replace(restored, files=sorted([*restored.files, key]))


def _archive(store: Store, known: Mapping[str, Any]) -> Any:
    """The archive that a document names; an empty one where it names none."""
    return _open(store, known["sha256"]) if "sha256" in known else io.BytesIO(pack({}, {}))


def _open(store: Store, sha256: Any) -> Any:
    try:
        return store.open_artifact(str(sha256))
    except StoreNotFound as error:
        raise StoreError(
            f"{store.url} does not have the archive of the code ({str(sha256)[:12]}); where it was"
            " recorded for a server, `tachograph sync` on that machine sends it"
        ) from error


def _why_none(document: Mapping[str, Any]) -> str:
    """Why a run has no archive; with what else there is to begin with."""
    for part in (document, mapping(document.get("archive"))):
        if "missing" in part:
            return str(part["missing"])
    if not document:
        return "the run ended before its code was read, or it was recorded without"
    main = mapping(mapping(document.get("trees")).get(MAIN))
    place = f"; commit {main['commit']}" if main.get("commit") else ""
    place += f" of {main['remote']}" if place and main.get("remote") else ""
    changes = ", without what was not committed" if place and main.get("dirty") else ""
    if document.get("files"):
        return f'it was recorded with record.code = "allow"{place}{changes}'
    return f"no file of the user's was imported{place}{changes}"


# ---------------------------------------------------------------------------- notebooks


def _script(store: Store, documents: Documents) -> bytes | None:
    """The cells of a notebook as one script, checked; None where there is none."""
    sha256 = mapping(mapping(documents.get("notebook")).get("script")).get("sha256")
    if sha256 is None:
        return None
    with _open(store, sha256) as stream:
        content: bytes = stream.read(_SCRIPT_BYTES)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(f"{SCRIPT} is refused: its content is not the one that was recorded")
    return content


def _script_key(document: Mapping[str, Any], folder: Path) -> str:
    """Where the notebook stood, so that it imports what it imported; over no file of the run."""
    place = str(document.get("working_directory") or "")
    if not (place and is_inside(place) and (folder / place).is_dir()):
        place = ""
    names = (SCRIPT, *(f"notebook-{number}.py" for number in range(2, 1000)))
    return next(
        key
        for key in (f"{place}/{name}".lstrip("/") for name in names)
        if not (folder / key).exists() and not (folder / key).is_symlink()
    )


# ---------------------------------------------------------------------------- the command


@dataclass(frozen=True, slots=True)
class Command:
    """How to run again what was restored.

    Attributes
    ----------
    words : list of str
        Arguments behind the interpreter; empty where it cannot be run again.
    folder : Path
        Where to stand.
    python_path : list of Path
        Folders for ``PYTHONPATH``: of the projects that code was imported from.
    notes : list of str
        What a person has to see to first.
    """

    words: list[str]
    folder: Path
    python_path: list[Path]
    notes: list[str]

    def text(self, python: str = "python") -> str:
        """One line for a shell."""
        script = next((word for word in self.words if word.endswith(".py")), None)
        by_itself = None if script is None else (self.folder / script).parent
        path = ":".join(str(place) for place in self.python_path if place != by_itself)
        variable = f"PYTHONPATH={shlex.quote(path)} " if path else ""
        return (
            f"cd {shlex.quote(str(self.folder))} && {variable}{shlex.join([python, *self.words])}"
        )


def command_of(documents: Documents, restored: Restored) -> Command:
    """The command of a run, for the folder that its code was restored into.

    Parameters
    ----------
    documents : mapping
        Section to document.
    restored : Restored
        As `restore_run` gives it.

    Returns
    -------
    Command
    """
    source, argv = mapping(documents.get("source")), mapping(documents.get("argv"))
    top = restored.folder.absolute()
    stood = _below(top, source.get("working_directory"))
    paths = [_below(top, key) for key in source.get("python_path") or ()]
    python_path = [path for path in dict.fromkeys(paths) if path is not None and path.is_dir()]
    words, notes = _words(documents, restored, top, stood)
    if stood is None:
        notes.append(f"it stood in {argv.get('working_directory')}, which is not part of the code")
    elif not stood.is_dir():
        notes.append(f"it stood in {stood}, which has none of the code and is to be made")
    if any(REDACTED in word for word in words):
        notes.append(f"secrets were taken out of the command: fill in each {REDACTED}")
    return Command(words, stood or top / MAIN, python_path, notes)


def _words(
    documents: Documents, restored: Restored, top: Path, stood: Path | None
) -> tuple[list[str], list[str]]:
    source, argv = mapping(documents.get("source")), mapping(documents.get("argv"))
    started_by = argv.get("started_by")
    if script := _restored_script(documents, restored):
        ipython = mapping(documents.get("notebook")).get("needs_ipython")
        return ["-m", "IPython", str(top / script)] if ipython else [str(top / script)], []
    if started_by in ("stdin", "interactive", "notebook", "ipython"):
        return [], ["the program was typed or piped in, and is not to be had again"]
    recorded = argv.get("original_argv")
    words = list(map(str, recorded))[1:] if isinstance(recorded, list) else []
    if any(_WORKER.fullmatch(word) for word in words):
        return [], ["it was recorded in a worker that another process had started"]
    entry = _below(top, mapping(source.get("entry")).get("file"))
    given = str(argv.get("entry") or "")
    if started_by == "script" and entry is not None and given:
        words = _with_script(words, given, entry, stood)
    return words, [] if words else ["the command is not known"]


def _with_script(words: list[str], given: str, entry: Path, stood: Path | None) -> list[str]:
    """The restored script in place of the one that was run; the rest as it was."""
    script = PurePath(given)
    names = {script.name} | ({script.parent.name} if script.name == "__main__.py" else set())
    for place, word in enumerate(words):
        if PurePath(word).name in names:
            is_there = stood is not None and os.path.normpath(stood / word) == str(entry)
            return words if is_there else [*words[:place], str(entry), *words[place + 1 :]]
    return words


def _restored_script(documents: Documents, restored: Restored) -> str | None:
    """The key of a notebook's script, in the folder where it was written."""
    if "script" not in mapping(documents.get("notebook")):
        return None
    known = mapping(mapping(documents.get("source")).get("files"))
    return next((key for key in restored.files if key not in known), None)


def _below(folder: Path, key: Any) -> Path | None:
    return folder / key if isinstance(key, str) and is_inside(key) else None
