"""What is missing in the record of a run's code: files, commits, the program itself, cells.

Gives findings: what is missing, to which level that limits, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tachograph.levels.pieces import (
    CONCEPTUAL,
    METHODOLOGICAL,
    Documents,
    Finding,
    listed,
)
from tachograph.values import mapping

_SHELLS = ("notebook", "ipython")
_KEEP = 'set record.code = "snapshot"'


def code(documents: Documents, params: Mapping[str, Any]) -> Iterator[Finding]:
    """Code that cannot be had again as it ran."""
    source = documents.get("source", {})
    if "entry" not in source:
        yield from _only_a_commit(documents, params)
        return
    yield from _entry(documents)
    if "sha256" in mapping(source.get("archive")):
        yield from _archive(source, _given(documents))
    elif source.get("files"):
        yield from _without_archive(source)
    yield from _unsure(source)
    yield from _trees(documents)


def _only_a_commit(documents: Documents, params: Mapping[str, Any]) -> Iterator[Finding]:
    """Of a run that ended, or failed to look, before its files were known."""
    git, source = documents.get("git", {}), documents.get("source", {})
    commit = git.get("commit")
    why = str(source.get("missing") or "not recorded")
    if commit and not git.get("dirty"):
        yield Finding(
            "code",
            None,
            f"the files that ran are not known ({why}), only that nothing was uncommitted",
            f"check out {commit[:12]}",
        )
        return
    rest = f", and commit {commit[:12]} had changes that were not kept" if commit else ""
    yield Finding(
        "code",
        METHODOLOGICAL if params or commit else CONCEPTUAL,
        f"the code is not known: {why}{rest}",
        "let the run last for a second, and commit the code",
    )


def _entry(documents: Documents) -> Iterator[Finding]:
    entry = mapping(documents["source"]["entry"])
    started_by = entry.get("started_by")
    if started_by in _SHELLS:
        yield from _notebook(documents)
    elif started_by == "stdin":
        yield _program("the program came from standard input, and its text is not known")
    elif started_by == "interactive":
        yield _program("the program was typed into an interactive Python, and is not known")


def _program(what: str) -> Finding:
    return Finding("code", METHODOLOGICAL, what, "save it as a file, and run that")


# ---------------------------------------------------------------------------- files


def _given(documents: Documents) -> tuple[str, ...]:
    """Config files that are kept as files of their own."""
    files = mapping(documents.get("arguments")).get("files") or ()
    return tuple(str(file.get("path")) for file in files if "artifact" in file)


def _archive(source: Mapping[str, Any], given: tuple[str, ...]) -> Iterator[Finding]:
    files, trees = mapping(source.get("files")), mapping(source.get("trees"))
    left_out = {
        key: why
        for key, why in mapping(source.get("left_out")).items()
        if mapping(files.get(key)).get("state") != "committed"
        and not any(path.endswith(f"/{key.partition('/')[2]}") for path in given)
    }
    if left_out:
        reasons = listed(f"{key} ({why})" for key, why in left_out.items())
        yield Finding(
            "code", METHODOLOGICAL, f"the archive of the code lacks {reasons}", "commit the files"
        )
    if redacted := [key for key, file in files.items() if mapping(file).get("redacted")]:
        yield Finding(
            "code",
            None,
            f"secrets were taken out of {listed(redacted)}: the file is not as it was",
            "read secrets from environment variables, and fill them in where it is restored",
        )
    for name, tree in trees.items():
        if why := mapping(mapping(tree).get("patch")).get("left_out"):
            yield Finding(
                "code",
                None,
                f"of the uncommitted work in {name} only imported files were kept: it is {why}",
                "commit the files that the program reads",
            )


def _without_archive(source: Mapping[str, Any]) -> Iterator[Finding]:
    """Commits hold the code, or nothing does."""
    why = mapping(source.get("archive")).get("missing") or 'record.code is "allow"'
    remedy = "commit the code" if "missing" in mapping(source.get("archive")) else _KEEP
    files = mapping(source["files"])
    loose = sorted(
        key for key, file in files.items() if mapping(file).get("state") not in ("committed",)
    )
    if loose:
        yield Finding(
            "code",
            METHODOLOGICAL,
            f"no commit holds {listed(loose)}, and no content was kept: {why}",
            f"commit {loose[0].partition('/')[2]}, or {_KEEP}",
        )
    else:
        yield Finding(
            "code", None, f"the code is in its commits alone, no content was kept: {why}", remedy
        )


def _unsure(source: Mapping[str, Any]) -> Iterator[Finding]:
    """Files that may not be what ran."""
    files = mapping(source.get("files"))
    if young := [key for key, file in files.items() if mapping(file).get("modified_since_start")]:
        yield Finding(
            "code",
            METHODOLOGICAL,
            f"{listed(young)} changed after the program had started: what ran may be older",
            "do not edit files while a training starts",
        )
    if count := source.get("secret_files"):
        yield Finding(
            "code",
            None,
            f"{count} file{'s' if count > 1 else ''} of the program seemed to hold secrets by name,"
            " and was not kept",
            "read secrets from environment variables",
        )


def _trees(documents: Documents) -> Iterator[Finding]:
    """Repositories: submodules that nobody kept, commits that only that machine has."""
    trees = mapping(documents["source"].get("trees"))
    for path, state in mapping(documents.get("git", {}).get("submodules")).items():
        if mapping(state).get("dirty") and f"project/{path}" not in trees:
            yield Finding(
                "code",
                METHODOLOGICAL,
                f"the submodule {path} has changes that are not committed and were not kept",
                "commit them in the submodule",
            )
    for name, tree in trees.items():
        commit = str(mapping(tree).get("commit") or "")[:12]
        if not commit:
            what = f"no commit is known of {name}: of its files only imported ones are kept"
            yield Finding("code", None, what, "keep it in a git repository")
        elif not tree.get("remote"):
            what = f"commit {commit} of {name} is on that machine alone: there is no remote"
            yield Finding("code", None, what, "give the repository a remote, and push")
        elif tree.get("ahead"):
            yield Finding("code", None, f"commit {commit} of {name} was not pushed", "push it")


# ---------------------------------------------------------------------------- notebooks


def _notebook(documents: Documents) -> Iterator[Finding]:
    document = documents.get("notebook", {})
    if "cells" not in document:
        yield _program(f"the cells are not known: {document.get('missing') or 'not recorded'}")
        return
    if "script" not in document:
        yield Finding("code", METHODOLOGICAL, "the cells were not kept", _KEEP)
    if mapping(document.get("order")).get("in_order") is False:
        yield Finding(
            "code",
            None,
            f"running the notebook from top to bottom is not what was done: {_order(document)}",
            "run notebook.py, which has the cells in the order in which they ran",
        )
    failed = [str(cell.get("number")) for cell in document["cells"] if cell.get("error")]
    if failed:
        yield Finding(
            "code",
            None,
            f"cells failed ({listed(failed)}), and are comments in notebook.py: what they did"
            " before is not repeated",
            "restart the kernel and run all cells once without errors",
        )


def _order(document: Mapping[str, Any]) -> str:
    words = {
        "out_of_order": "cells {} ran after one below them",
        "repeated": "cells {} ran more than once",
        "not_in_file": "cells {} are not in the saved file as they ran",
        "skipped": "the cells at {} were not run",
    }
    order = mapping(document.get("order"))
    return "; ".join(
        text.format(listed(map(str, order[name])))
        for name, text in words.items()
        if order.get(name)
    )
