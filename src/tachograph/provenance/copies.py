"""Copies of what a user's structure holds, small and quick whatever is in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tachograph.values import field_values, plain, qualified_name

MAX_VALUES = 2_000
_DEPTH = 10
_LIGHT = (bool, int, float, complex, str, bytes)
_SHORT = {"device", "dtype"}  # of torch and its like: named, not described


def copied(value: Any, limit: int = MAX_VALUES) -> dict[str, Any]:
    """Plain values of a namespace, a mapping or a dataclass, the first `limit` of them.

    What is no plain value is named by its type: its `repr` may be long, and slow.
    """
    found = _Copy(limit).copy(value, 0)
    return found if isinstance(found, dict) else {}


class _Copy:
    """Copies one structure, within a bound."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def copy(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, _LIGHT):
            return plain(value)
        items = _items(value)
        if items is not None and depth < _DEPTH:
            return {str(key): self.copy(item, depth + 1) for key, item in self._bounded(items)}
        if isinstance(value, set | frozenset):
            value = sorted(value, key=str)
        if isinstance(value, list | tuple) and depth < _DEPTH:
            return [self.copy(item, depth + 1) for item in self._bounded(value)]
        if type(value).__name__ in _SHORT:
            return str(value)
        if _is_light_object(value):
            return plain(value)
        from inspect import isroutine  # slow to load, and for few values

        named = isroutine(value) or isinstance(value, type)
        return qualified_name(value if named else type(value))

    def _bounded(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self._left == 0:
                return
            self._left -= 1
            yield item


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Names and values of what has such; None for anything else."""
    if isinstance(value, Mapping):
        return value.items()
    namespace = getattr(sys.modules.get("argparse"), "Namespace", None)
    if namespace is not None and isinstance(value, namespace):
        return [item for item in vars(value).items() if not item[0].startswith("__")]
    fields = field_values(value)
    return None if fields is None else fields.items()


def _is_light_object(value: Any) -> bool:
    """Enums, paths, dates, and numbers and arrays of numeric libraries, which have a shape."""
    return (
        hasattr(value, "__fspath__")
        or hasattr(value, "isoformat")
        or hasattr(type(value), "__members__")
        or (hasattr(value, "shape") and hasattr(value, "dtype"))
    )
