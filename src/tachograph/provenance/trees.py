"""The projects that code comes from, and the place of each file in one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tachograph.provenance.modules import import_root, in_environment, is_generated

MAIN = "project"
"""Name of the project that the entry script belongs to."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder that code comes from: a project, a submodule of one, another local project.

    Attributes
    ----------
    name : str
        `MAIN`, or the name of its folder; below `MAIN` the path in it (``project/lib``).
    root : str
        Absolute path without links.
    has_repository : bool
        Whether it looks like the top of a git work tree.
    """

    name: str
    root: str
    has_repository: bool


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of the user's code and its place in a tree.

    Attributes
    ----------
    file : str
        Its path as it was imported.
    tree : Tree
    path : str
        Its path in the tree, with '/'.
    link : str or None
        Where its content really lies, where a link leads out of the tree.
    """

    file: str
    tree: Tree
    path: str
    link: str | None = None

    @property
    def key(self) -> str:
        """Its name in a record: that of the tree and its path in it."""
        return f"{self.tree.name}/{self.path}"


class Trees:
    """The trees of a process, found from the files that are asked for.

    Parameters
    ----------
    entry : str
        Folder of the entry script; the main tree is the git work tree around it, or itself.
    """

    def __init__(self, entry: str) -> None:
        real = os.path.realpath(entry)
        self.main = Tree(MAIN, _repository(real) or real, _repository(real) is not None)
        self._entry = os.path.abspath(entry)
        self._by_root = {self.main.root: self.main}
        self._repositories: dict[str, str | None] = {}  # of folders that were looked at

    def __iter__(self) -> Iterator[Tree]:
        return iter(sorted(self._by_root.values(), key=lambda tree: tree.name))

    def add(self, root: str) -> None:
        """Have a work tree that no file was asked for."""
        self._known(os.path.realpath(root), True)

    def place(self, files: Mapping[str, str]) -> list[Placed]:
        """Files (path to module name) with their trees; generated ones are left out."""
        placed = (self._place(file, files[file]) for file in sorted(files))
        return [found for found in placed if found is not None]

    def _place(self, file: str, module: str) -> Placed | None:
        real = os.path.realpath(file)
        if in_environment(real):
            return None
        linked = None if _is_below(real, self.main.root) else self._path_by_name(file)
        if linked is not None:
            return Placed(file, self.main, linked, real)
        tree = self._tree(real, module) if module else self._innermost(real)
        return None if tree is None else Placed(file, tree, _relative(real, tree.root))

    def _path_by_name(self, file: str) -> str | None:
        """Path in the main tree of a file that only a link puts there."""
        if _is_below(file, self._entry):
            inside = os.path.relpath(os.path.realpath(self._entry), self.main.root)
            return _relative(os.path.join(inside, os.path.relpath(file, self._entry)), ".")
        return _relative(file, self.main.root) if _is_below(file, self.main.root) else None

    def _tree(self, real: str, module: str) -> Tree | None:
        """The tree of an imported file, found by its nearest repository."""
        repository = self._repository(os.path.dirname(real))
        if _is_below(real, self.main.root):
            nested = repository is not None and len(repository) > len(self.main.root)
            return self._known(str(repository), True) if nested else self.main
        if repository is None and is_generated(real, module):
            return None
        return self._known(repository or import_root(real, module), repository is not None)

    def _repository(self, folder: str) -> str | None:
        if folder not in self._repositories:
            self._repositories[folder] = _repository(folder)
        return self._repositories[folder]

    def _innermost(self, path: str) -> Tree | None:
        """The known tree that a path lies in."""
        above = [tree for tree in self if path == tree.root or _is_below(path, tree.root)]
        return max(above, key=lambda tree: len(tree.root), default=None)

    def _known(self, root: str, has_repository: bool) -> Tree:
        if root not in self._by_root:
            self._by_root[root] = Tree(self._name(root), root, has_repository)
        return self._by_root[root]

    def _name(self, root: str) -> str:
        if _is_below(root, self.main.root):
            return f"{MAIN}/{_relative(root, self.main.root)}"
        name = re.sub(r"[^\w.-]", "_", os.path.basename(root), flags=re.ASCII).strip(".") or "root"
        taken = {tree.name for tree in self._by_root.values()}
        numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return next(free for free in (name, *numbered) if free not in taken)

    def locate(self, folders: Iterable[str]) -> list[str]:
        """The places of those folders that lie in a known tree, in order: ``project/src``."""
        real = [os.path.realpath(folder) for folder in folders]
        pairs = [(self._innermost(folder), folder) for folder in real]
        found = (os.path.join(t.name, _relative(f, t.root)) for t, f in pairs if t is not None)
        return list(dict.fromkeys(map(os.path.normpath, found)))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _relative(path: str, folder: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _repository(folder: str) -> str | None:
    """The nearest folder above that is a work tree of git, by a look at names alone."""
    while not _is_work_tree(os.path.join(folder, ".git")):
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above
    return folder


def _is_work_tree(git: str) -> bool:
    """Whether this is a repository, or the file that a submodule has in its place."""
    return os.path.exists(os.path.join(git, "HEAD")) or os.path.isfile(git)


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, on any system, and out of git's own files."""
    return not any(map(_is_unsafe, name.split("/")))


def _is_unsafe(part: str) -> bool:
    plain = part.rstrip(". ").lower()  # as some systems read a name
    return plain in ("", ".git", "git~1") or not set(part).isdisjoint("\\\0")
