"""A recorded run, run again: its code, its environment, its command, and the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tachograph.comparing import comparison
from tachograph.errors import StoreError, TachographError
from tachograph.identity import REPRODUCES_VARIABLE
from tachograph.levels.level import assess
from tachograph.provenance.rows import provenance_row
from tachograph.provenance.trees import MAIN, is_inside
from tachograph.query import Store, open_store
from tachograph.reading.documents import Documents
from tachograph.reading.run_record import RunRecord
from tachograph.records import uuid7
from tachograph.reproduction import interpreter
from tachograph.reproduction.code_changes import first_changed_line
from tachograph.reproduction.evidence import gather
from tachograph.reproduction.files import left_behind, link_data, make_folder, not_there
from tachograph.reproduction.matching import SECTION, counterpart, reproductions
from tachograph.reproduction.places import Places
from tachograph.reproduction.plan import Plan, make_plan
from tachograph.reproduction.verdict import TOLERANCE, Change, Verdict, judge
from tachograph.restoring.restore import command_of, restore_run
from tachograph.restoring.sources import Restored, new_folder
from tachograph.security.redaction import redact_argv

_NAMED = 3  # files that may be missing
_SHARED_PREFIXES = ("/", "/usr", "/usr/local")  # where more lies than Python


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a run is to be reproduced.

    Attributes
    ----------
    folder : Path
        Where its code is restored; does not exist yet, or is empty.
    code : Path or None
        A folder whose content is run in place of the project as it was recorded.
    python : Path or None
        An interpreter; by default that of an environment made from the recorded packages.
    arguments : list of str or None
        In place of the program's recorded arguments.
    variables : dict of str to str or None
        Environment variables that are not to be as recorded; None takes one away.
    link : list of str
        Files and folders of the original project to be reached from the restored one.
    tolerance : float
        See `verdict.TOLERANCE`.
    """

    folder: Path
    code: Path | None = None
    python: Path | None = None
    arguments: Sequence[str] | None = None
    variables: Mapping[str, str | None] | None = None
    link: Sequence[str] = ()
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is ready to be reproduced.

    Attributes
    ----------
    record : RunRecord
        The run; of one that is part of another, the outermost.
    plan : Plan
    wishes : Wishes
    environment : {'made', 'given'}
    store_url : str
    execution : str
        What the runs that the command records are known by.
    fetches : dict of str to str
        Tree of the code to the remote that its commit is to be fetched from.
    """

    record: RunRecord
    plan: Plan
    wishes: Wishes
    environment: str
    store_url: str
    execution: str
    fetches: Mapping[str, str]


def prepare(store: Store, run: str, wishes: Wishes) -> Prepared:
    """Restore the code of a run and make its command ready; nothing of it is run.

    Nothing is asked of other machines: a commit that is not here is for `fetch`, as is the
    environment where it is not there yet.

    Raises
    ------
    RunNotFound
        There is no such run.
    StoreError
        Its code cannot be had, or its command is not known; the message says why.
    """
    asked = record = store.run(run)
    if asked.row["root_id"] not in (None, asked.run_id):
        record = store.run(str(asked.row["root_id"]))
    with _readable(record.run_id):
        prepared = _prepare(store, record, wishes)
    if asked is not record:
        label = asked.name or asked.row["kind"]
        prepared.plan.notes.insert(0, f"{label} is a part of it, and is run again with the whole")
    return prepared


def fetch(prepared: Prepared) -> Prepared:
    """Get from other machines what a run needs: commits from a remote, the packages.

    Raises
    ------
    StoreError
        The environment cannot be made.
    """
    if prepared.fetches:
        prepared = _restore_again(prepared)
    if prepared.environment == "made":
        interpreter.make_environment(prepared.record.provenance)
    return prepared


def _restore_again(prepared: Prepared) -> Prepared:
    for path in prepared.wishes.folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    run = prepared.record.run_id
    with open_store(prepared.store_url) as store, _readable(run):
        return _prepare(store, store.run(run), prepared.wishes, ask_remotes=True)


@contextlib.contextmanager
def _readable(run_id: str) -> Iterator[None]:
    """Documents may have been made by anyone: what cannot be worked with is an error of them."""
    try:
        yield
    except TachographError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise StoreError(f"the record of {run_id} cannot be worked with: {what}") from error


def _prepare(
    store: Store, record: RunRecord, wishes: Wishes, *, ask_remotes: bool = False
) -> Prepared:
    documents = record.provenance
    restored = _restore(store, record, wishes, ask_remotes=ask_remotes)
    command = command_of(documents, restored)
    if not command.words:
        reasons = "; ".join(command.notes) or "its command is not known"
        raise StoreError(f"{record.run_id} cannot be run again: {reasons}")
    execution = uuid7()
    python = wishes.python or interpreter.python_of(interpreter.environment_folder(documents))
    places = _places(documents, restored.folder, wishes, str(python))
    plan = make_plan(
        documents,
        command,
        places,
        str(python),
        arguments=wishes.arguments,
        variables={
            **(wishes.variables or {}),
            "TACHOGRAPH_BACKEND": store.url,
            "TACHOGRAPH_PROJECT": record.row["project"],
            "TACHOGRAPH_DISABLED": None,
            REPRODUCES_VARIABLE: f"{record.run_id}/{execution}",
        },
    )
    make_folder(plan.folder, restored.folder)
    plan.notes.extend(link_data(documents, places, wishes.link, restored.folder))
    if wishes.arguments is None:
        plan.notes.extend(not_there(documents, places))
    if storage := record.params.get("storage.url"):
        plan.notes.append(f"where {storage} is there, the study in it goes on with more trials")
    if len(record.attempts) > 1:
        plan.notes.append("the run was resumed; this is the command of its last attempt")
    how = "made" if wishes.python is None else "given"
    plan.notes.extend(
        f"not in the code that was kept: {text}" for text in _lacks(documents, restored)
    )
    if how == "made":
        plan.notes.extend(f"not installed: {text}" for text in interpreter.left_out(documents))
    return Prepared(record, plan, wishes, how, store.url, execution, restored.remotes)


def run_again(prepared: Prepared, output: int | None = None) -> Verdict:
    """Run it, wait for its end, compare, and record the verdict with the new run.

    What is still to be fetched is fetched first. What the program prints goes where this process
    prints, or to the file descriptor `output`.

    Raises
    ------
    StoreError
        The environment cannot be made, the command not started, or no run was recorded.
    """
    prepared = fetch(prepared)
    original, plan = prepared.record.run_id, prepared.plan
    status = _run(plan, output)
    with open_store(prepared.store_url) as store:
        new = [
            run
            for run, document in reproductions(store, original).items()
            if document.get("execution") == prepared.execution
        ]
        again = counterpart(store, original, new, redact_argv(plan.words))
        if again is None:
            raise StoreError(_nothing(prepared, status))
        with _readable(original):
            verdict = _compare(store, original, again, prepared)
        about = {
            "command": shlex.join(redact_argv(plan.words)),
            "folder": str(plan.folder),
            "environment": prepared.environment,
            "tolerance": prepared.wishes.tolerance,
            "exit_status": status,
        }
        row = provenance_row(SECTION, verdict.document() | about)
        store.edit({"provenance": [{"run_id": again} | row]})
        if name := store.row(again)["name"]:  # so that the name still means the original
            store.update(again, name=f"{name} (reproduction)")
    return verdict


def _nothing(prepared: Prepared, status: int) -> str:
    """That no run came of it, with files of the original project that it may have wanted."""
    plan, original = prepared.plan, prepared.record
    text = (
        f"the command ended with status {status} before it had recorded a run like"
        f" {original.run_id}; it ran in {plan.folder}"
    )
    lacks = left_behind(original.provenance, plan.places) if prepared.wishes.code is None else []
    if not lacks:
        return text
    more = f" and {len(lacks) - _NAMED} more" if len(lacks) > _NAMED else ""
    names = f"{', '.join(lacks[:_NAMED])}{more}"
    return f"{text}. No commit and no archive holds {names}: --link NAME reaches one"


def _run(plan: Plan, output: int | None) -> int:
    try:
        with subprocess.Popen(
            plan.words, cwd=plan.folder, env=plan.environment, stdout=output
        ) as process:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:  # the program has got it too, and ends its run
                    continue
    except (OSError, ValueError) as error:  # of words and variables that no process can have
        raise StoreError(f"{plan.words[0]} cannot be started: {error}") from error


def _compare(store: Store, original: str, again: str, prepared: Prepared) -> Verdict:
    records = store.run(original), store.run(again)
    table = comparison.changes(records, ("first", "second"), prepared.plan.places.then)
    changes = [Change(**row) for row in table]
    line = first_changed_line(store, *records) if any(c.area == "code" for c in changes) else None
    evidence = gather(store, original, again)
    missing = assess(records[0], store).missing
    lacks = [finding.what for finding in missing if finding.area in ("data", "seed")]
    tolerance = prepared.wishes.tolerance
    return judge(store, original, again, evidence, changes, tolerance, line, lacks)


# ---------------------------------------------------------------------------- the code


def _restore(store: Store, record: RunRecord, wishes: Wishes, *, ask_remotes: bool) -> Restored:
    try:
        restored = restore_run(store, record, wishes.folder, ask_remotes=ask_remotes)
    except StoreError:
        if wishes.code is None:
            raise
        restored = Restored(new_folder(wishes.folder), [], [], {}, {})
    if wishes.code is not None:
        _put_in_place(wishes.code.resolve(), restored.folder / MAIN)
        needed = {k: v for k, v in restored.remotes.items() if k.partition("/")[0] != MAIN}
        restored = dataclasses.replace(restored, remotes=needed)
    return restored


def _put_in_place(code: Path, project: Path) -> None:
    """Have the given code stand where the project of the run was restored."""
    if not code.is_dir():
        raise StoreError(f"{code} is no folder")
    if project.exists():
        project.rename(project.with_name(f"{MAIN} as recorded"))
    project.symlink_to(code)


def _lacks(documents: Documents, restored: Restored) -> list[str]:
    """What of the code is not as it was; a folder without git never had more than its files."""
    trees = documents.get("source", {}).get("trees", {})
    missing = {
        key: why for key, why in restored.missing.items() if "missing" not in trees.get(key, {})
    }
    redacted = [f"{key}: a secret was taken out of it" for key in restored.redacted]
    return [*(f"{key}: {why}" for key, why in missing.items()), *redacted]


def _places(documents: Documents, folder: Path, wishes: Wishes, python: str) -> Places:
    top = folder.absolute()
    trees = documents.get("source", {}).get("trees", {})
    roots = {
        name: str(tree["root"])
        for name, tree in trees.items()
        if is_inside(name) and tree.get("root") and (top / name).exists()
    }
    pairs = [(root, str(top / name)) for name, root in roots.items()]
    if MAIN in roots and wishes.code is not None:
        pairs.insert(0, (roots[MAIN], str(top / MAIN)))
    pairs += [(root, str((top / name).resolve())) for name, root in roots.items()]
    prefix = str(documents.get("python", {}).get("prefix") or "")
    if prefix and prefix not in _SHARED_PREFIXES:
        pairs.append((prefix, str(Path(python).absolute().parent.parent)))
    return Places(pairs)
