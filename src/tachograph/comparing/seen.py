"""Whether something was run before: runs with the same code, data and configuration.

Knows how runs are recorded; knows no store from inside, and runs nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tachograph.backends.base import Condition, Query
from tachograph.provenance.contents import content_of
from tachograph.provenance.grouping import code_digest, group_id, is_seed, own_digest, without_seeds
from tachograph.query import Store
from tachograph.reading.run_record import RunRecord
from tachograph.security.redaction import redact_argv
from tachograph.table import Table
from tachograph.values import json_text, mapping

COLUMNS = ("run_id", "name", "status", "started_at", "seeds", "code")
_FILE_BYTES = 16 << 20
_NAMED = 3  # changed files


def same_training(store: Store, run: str) -> Table:
    """Other runs that differ from one in nothing but the seed, the newest first.

    Parameters
    ----------
    store : Store
    run : str
        Its id, a beginning of it, or its name.

    Returns
    -------
    Table
        run_id, name, status, started_at (µs), `seeds` (a text such as ``seed=3``, or None), and
        `code`, which is 'same'.

    Raises
    ------
    RunNotFound
        There is no such run.
    """
    record = store.run(run)
    found = store.read(Query("runs", [Condition("group_id", "=", group_of(record))]))
    others = (row["run_id"] for row in found if row["run_id"] != record.run_id)
    return _table(store, dict.fromkeys(others, "same"))


def same_command(store: Store, command: Sequence[str]) -> Table:
    """Runs that were started by a command, whatever the seeds in it; the newest first.

    Parameters
    ----------
    store : Store
    command : sequence of str
        With or without Python in front of it: ``train.py --lr 0.1``.

    Returns
    -------
    Table
        As `same_training`; `code` says whether the files that the run imported are now what they
        were: 'same', 'changed: a.py', or 'unknown'.
    """
    wanted = _command(redact_argv(command))
    documents = store.read(Query("provenance", [Condition("section", "=", "argv")]))
    runs = [
        run_id
        for run_id, text in zip(documents["run_id"], documents["document"], strict=True)
        if _command(mapping(json.loads(text)).get("original_argv") or ()) == wanted
    ]
    return _table(store, {run: _code_now(store.run(run).provenance) for run in runs})


def group_of(record: RunRecord) -> str:
    """The group of a run; worked out where the run has ended without recording one."""
    row = record.row
    if row["group_id"]:
        return str(row["group_id"])
    params = {path: json_text(value) for path, value in record.params.items()}
    own = own_digest(row["kind"], row["framework"] or "", params, record.provenance)
    return group_id(code_digest(record.provenance), own)


def _table(store: Store, code: Mapping[str, str]) -> Table:
    rows = []
    for run_id, state in code.items():
        record = store.run(run_id)
        seeds = [f"{path}={value}" for path, value in record.params.items() if is_seed(path)]
        rows.append(record.row | {"seeds": ", ".join(seeds) or None, "code": state})
    rows.sort(key=lambda row: row["started_at"] or 0, reverse=True)
    return Table.from_rows(rows, COLUMNS)


# ---------------------------------------------------------------------------- commands


def _command(argv: Sequence[str]) -> list[str]:
    """A command without Python, seeds, and the folder of the script."""
    words = list(argv)
    if words and PurePath(words[0]).name.startswith("python"):
        del words[0]
    scripts = [place for place, word in enumerate(words) if not word.startswith("-")][:1]
    for place in scripts:
        words[place] = PurePath(words[place]).name
    return list(without_seeds(words))


def _code_now(documents: Mapping[str, Any]) -> str:
    source = mapping(documents.get("source"))
    files = {
        key: facts["sha256"]
        for key, facts in mapping(source.get("files")).items()
        if mapping(facts).get("role") != "configuration" and mapping(facts).get("sha256")
    }
    trees = mapping(source.get("trees"))
    roots = [str(mapping(tree).get("root") or "") for tree in trees.values()]
    if not (files and any(map(os.path.isdir, roots))):  # such as the folder of a reproduction
        return "unknown"
    changed = list(_changed(files, trees))
    if not changed:
        return "same"
    more = len(changed) - _NAMED
    return f"changed: {', '.join(changed[:_NAMED])}{f' and {more} more' if more > 0 else ''}"


def _changed(files: Mapping[str, str], trees: Mapping[str, Any]) -> Iterator[str]:
    for key, digest in files.items():
        tree = max((name for name in trees if key.startswith(f"{name}/")), key=len, default=None)
        path = None if tree is None else Path(trees[tree]["root"], key.removeprefix(f"{tree}/"))
        if path is None or _digest_now(path) != digest:
            yield key


def _digest_now(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > _FILE_BYTES:
            return None
        return content_of(path.read_bytes()).sha256
    except OSError:
        return None
