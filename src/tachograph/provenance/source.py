"""The user's own code of this process: which files, in which state, and what of them to keep.

Files that were imported, and config files that were given. No folder is walked.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tachograph.provenance import Document, argv, configs, encodable
from tachograph.provenance.git import PATCH_BYTES, Look, look
from tachograph.provenance.git_calls import GitError
from tachograph.provenance.git_status import states, uncommitted
from tachograph.provenance.modules import imported, in_environment
from tachograph.provenance.source_files import is_newer_than_process, read
from tachograph.provenance.trees import Placed, Tree, Trees, is_inside
from tachograph.security.secret_files import is_secret_file
from tachograph.security.texts import redact_text

FILES = 5_000
TOTAL_BYTES = 32 << 20
SECONDS = 10.0
"""What is read and kept at most; what does not fit is named as left out."""

_LOOK_SHARE = 10  # a look at a repository holds for so many times the time that it took,
_LOOK_SECONDS = 5.0  # and at most for this long: many short runs are not many looks

_OF_TREES = (
    *("commit", "branch", "upstream", "ahead", "remote", "shallow", "line_ends", "dirty"),
    "missing",
)
_NO_ENTRY = {
    "stdin": "the text came from standard input, and is not to be had again",
    "command": "the text is part of the command: see argv",
    "notebook": "see notebook",
    "ipython": "see notebook",
}


class Member(NamedTuple):
    """A file to keep: its content without secrets, and whether it may be executed."""

    content: bytes
    executable: bool = False


class Source:
    """The code of one run; each `update` adds what was imported since.

    Parameters
    ----------
    entry, here : str
        Folder of the entry script, and working directory, as they were at the start.
    given : iterable of path
        Config files that the program was given.
    content : bool, default True
        False for facts only: nothing of what files contain.
    started : Entry, optional
        How the program was started, as it was known at the start; by default as it is known now.

    Attributes
    ----------
    files : dict of str to Member
        What to keep, by its key in the document (``project/train.py``).
    patches : dict of str to Member
        The whole diff of each tree that has one, by the tree's name.
    """

    def __init__(
        self,
        entry: str,
        here: str,
        given: Iterable[str | os.PathLike[str]] = (),
        *,
        content: bool = True,
        started: argv.Entry | None = None,
    ) -> None:
        self._started = started or argv.entry()
        self.files: dict[str, Member] = {}
        self.patches: dict[str, Member] = {}
        self._here = here
        self._given = [os.path.abspath(path) for path in given]
        self._content = content
        self._trees = Trees(entry)
        self._described: dict[str, Document] = {}
        self._looks: dict[str, Look] = {}
        self._entries: dict[str, Document] = {}
        self._left_out: dict[str, str] = {}
        self._secret: set[str] = set()
        self._seen: set[str] = set()
        self._bytes = 0
        self.git = self._add_main()
        self._entry = _entry(self._trees, self._started)

    def update(self) -> bool:
        """Look at what is imported by now; whether anything was new.

        A file that is known already stays as it was, for that is what was imported.
        """
        main = _main_file(self._started)
        mains = {} if main is None else {main: "__main__"}
        now = {**dict.fromkeys(self._given, ""), **mains, **imported()}
        modules = {file: module for file, module in now.items() if file not in self._seen}
        self._seen |= modules.keys()
        known = self._entries.keys() | self._left_out.keys() | self._secret  # by another link
        new = [file for file in self._trees.place(modules) if file.key not in known]
        for tree in self._trees:
            if tree.name not in self._described:
                self._add(tree)
        looks, self._looks = self._looks, {}  # they hold for now, not for what is imported later
        self._take(new, modules, _states(new, looks))
        return bool(new)

    @property
    def document(self) -> Document:
        """What `docs/reference/provenance.md` describes under `source`."""
        document: Document = encodable(
            {
                "entry": self._entry,
                "working_directory": next(iter(self._trees.locate([self._here])), None),
                "python_path": self._trees.locate(os.path.join(self._here, p) for p in sys.path),
                "trees": self._described,
                "files": dict(sorted(self._entries.items())),
                "left_out": dict(sorted(self._left_out.items())),
                "secret_files": len(self._secret),
                "digest": _digest(self._entries),
            }
        )
        return document

    # ------------------------------------------------------------------ trees

    def _add_main(self) -> Document:
        """Look at the main tree, and at its submodules with work that no commit holds."""
        main = self._trees.main
        git = self._add(main)
        for path, state in git.get("submodules", {}).items():
            if state.get("dirty"):
                self._trees.add(os.path.join(main.root, path))
        return git

    def _add(self, tree: Tree) -> Document:
        found = self._looks[tree.name] = _recent_look(tree.root, self._content)
        known = {fact: found.document[fact] for fact in _OF_TREES if fact in found.document}
        patch = self._patch(tree.name, found)
        self._described[tree.name] = {"root": redact_text(tree.root), **known, "patch": patch}
        return found.document

    def _patch(self, name: str, found: Look) -> Document | None:
        """Keep the whole diff of a tree, and say what was kept."""
        diff = found.document.get("diff")
        if diff is None:
            return None
        if found.patch is None:
            whole = {"bytes": diff["bytes"], "sha256": diff["sha256"]}
            why = f"longer than {PATCH_BYTES >> 20} MiB" if self._content else "not asked for"
            return whole | {"left_out": why}
        if found.patch.kept is None:  # no diff has NUL in it
            return found.patch.document | {"left_out": found.patch.why}
        self.patches[name] = Member(found.patch.kept)
        return found.patch.document

    # ------------------------------------------------------------------ files

    def _take(
        self, new: Iterable[Placed], modules: Mapping[str, str], state_of: Mapping[str, str]
    ) -> None:
        """Describe files and keep their content, first of all that which no commit holds."""
        deadline = time.monotonic() + SECONDS
        for file in sorted(new, key=lambda file: (state_of[file.key] == "committed", file.key)):
            if is_secret_file(file.path) or redact_text(file.key) != file.key:
                self._secret.add(file.key)
            elif not is_inside(file.key):
                self._left_out[file.key] = "its name cannot be restored"
            elif len(self._entries) >= FILES:
                self._left_out[file.key] = f"more than {FILES} files"
            elif time.monotonic() > deadline:
                self._left_out[file.key] = f"reading the others took {SECONDS:g} s"
            else:
                why = self._take_one(file, state_of[file.key], modules[file.file])
                if why is not None:
                    self._left_out[file.key] = why

    def _take_one(self, file: Placed, state: str, module: str) -> str | None:
        """Describe one file and keep it, or say why not."""
        try:
            facts = os.stat(file.file)
            content = read(file.file, facts)
        except OSError as error:
            return error.strerror or str(error)
        document = content.document | {"state": state}
        if not module:
            document["role"] = "configuration"
        if file.link is not None:
            document["link"] = redact_text(file.link)
        if is_newer_than_process(facts):
            document["modified_since_start"] = True
        self._entries[file.key] = document
        if content.kept is None or not self._content:
            return content.why
        if state == "ignored" and not module:
            return "git ignores it"
        if not module and _has_secrets(file.file, content.kept):
            return "secrets cannot be taken out of its text: see arguments"
        if self._bytes + len(content.kept) > TOTAL_BYTES:
            return f"more than {TOTAL_BYTES >> 20} MiB in all"
        self._bytes += len(content.kept)
        self.files[file.key] = Member(content.kept, bool(facts.st_mode & stat.S_IXUSR))
        return None


def _has_secrets(file: str, kept: bytes) -> bool:
    """Whether a config file has secrets that its structure tells and not its text."""
    return any(secret.encode() in kept for secret in configs.read(Path(file)).secrets)


def uncommitted_work(entry: str) -> str | None:
    """Why commits do not hold all code that is imported by now; None where they do."""
    trees = Trees(entry)
    trees.place(imported())
    roots = [tree.root for tree in trees if tree.has_repository or tree is trees.main]
    return next((why for why in map(uncommitted, roots) if why is not None), None)


_looks: dict[tuple[str, bool], tuple[float, Look]] = {}


def _recent_look(root: str, content: bool) -> Look:
    started = time.monotonic()
    for key in [key for key, (until, _) in _looks.items() if until < started]:
        _looks.pop(key, None)
    known = _looks.get((root, content))
    if known is not None:
        return known[1]
    found = look(root, content=content)
    ended = time.monotonic()
    until = ended + min(_LOOK_SECONDS, _LOOK_SHARE * (ended - started))
    _looks[root, content] = until, found
    return found


def _states(new: Iterable[Placed], looks: Mapping[str, Look]) -> dict[str, str]:
    """Key to state: one question to git for all files of a tree."""
    by_tree: dict[str, list[Placed]] = {}
    found: dict[str, str] = {}
    for file in new:
        found[file.key] = "linked" if file.link is not None else "no git"
        if file.link is None and file.tree.has_repository:
            by_tree.setdefault(file.tree.name, []).append(file)
    for name, files in by_tree.items():
        known = looks[name].status if name in looks else None
        try:
            answer = states(Path(files[0].tree.root), [file.path for file in files], known)
        except GitError:
            answer = {}
        found |= {file.key: answer.get(file.path, "unknown") for file in files}
    return found


def _entry(trees: Trees, started: argv.Entry) -> Document:
    """Where the program begins; what is not to be had is said."""
    document: Document = {"started_by": started.started_by}
    if started.started_by == "module":
        document["module"] = started.name
    if started.file is None or not os.path.isfile(started.file):
        return document | {"missing": _NO_ENTRY.get(started.started_by, "there is no file")}
    main = _main_file(started)
    placed = [] if main is None else trees.place({main: "__main__"})
    if not placed:
        return document | {"missing": "it belongs to the environment"}
    return document | {"file": placed[0].key}


def _main_file(started: argv.Entry) -> str | None:
    """The user's own file that the program begins with."""
    if started.file is None or in_environment(started.file) or not os.path.isfile(started.file):
        return None
    return os.path.abspath(started.file)


def _digest(entries: Mapping[str, Any]) -> str:
    """One digest of all imported code; config files have no part in it."""
    code = [(key, entry) for key, entry in sorted(entries.items()) if "role" not in entry]
    lines = "".join(f"{key}\0{entry['sha256']}\n" for key, entry in code)
    return hashlib.sha256(lines.encode(errors="backslashreplace")).hexdigest()
