"""Where the folders of a run lie now: paths there and back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


class Places:
    """Folders as they were recorded, each with those that stand for it now.

    Parameters
    ----------
    pairs : iterable of (str, str)
        Absolute path of a folder then, and now. Of several for the same folder the first is
        where it is now; the others are further names of it.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._now: dict[str, str] = {}
        self._then: dict[str, str] = {}
        for old, new in pairs:
            then, now = os.path.normpath(old), os.path.normpath(new)
            self._now.setdefault(then, now)
            self._then.setdefault(now, then)

    def now(self, text: str) -> str:
        """A text in which paths of then are paths of now."""
        return _replaced(text, self._now)

    def then(self, value: Any) -> Any:
        """A JSON value in whose texts paths of now are paths of then; in keys too."""
        if isinstance(value, str):
            return _replaced(value, self._then)
        if isinstance(value, Mapping):
            return {self.then(key): self.then(item) for key, item in value.items()}
        return [self.then(item) for item in value] if isinstance(value, list | tuple) else value

    def has(self, path: str) -> bool:
        """Whether a path of then lies in one of the folders."""
        return any(path == old or path.startswith(old + os.sep) for old in self._now)


def _replaced(text: str, folders: Mapping[str, str]) -> str:
    """The text with whole folders replaced, the inner one where one lies in the other."""
    if not any(folder in text for folder in folders):
        return text
    names = "|".join(re.escape(name) for name in sorted(folders, key=len, reverse=True))
    pattern = rf"(?<![\w./\\-])(?:{names})(?=$|[/\\]|[^\w.-])"
    return re.sub(pattern, lambda found: folders[found[0]], text)
