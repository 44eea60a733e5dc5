"""A fitted estimator as a tree: what each part of it is, how it was set, and what it has learned.

Knows the attributes in which scikit-learn keeps estimators inside others; knows no run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tachograph.callbacks.sklearn_class import base_of
from tachograph.callbacks.sklearn_facts import class_name, is_estimator, named
from tachograph.callbacks.sklearn_fitted import (
    Learned,
    Reader,
    defaults,
    norm,
    own_attributes,
    together,
)
from tachograph.values import plain

MOST_PARTS = 200
MOST_DEPTH = 10
MOST_TWINS = 10
"""Of estimators in a list without names, such as those of bagging."""

_WHOLE = "."
_HOLDERS = ("steps", "transformer_list", "transformers", "estimators")  # params that hold parts
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


@dataclass(frozen=True, slots=True)
class Part:
    """An estimator inside another; `columns` are those that it is given, None for all."""

    name: str
    estimator: Any
    columns: Any = None


class Tree:
    """The tree of an estimator that has been fitted; keeps no reference to it.

    Parameters
    ----------
    estimator : estimator
    fitted : bool
        Whether to digest what it has learned.

    Attributes
    ----------
    document : dict
        The section `pipeline`: path of each part to what it is. The path of the whole is a dot;
        `steps` has the names of the parts of a part, in order.
    """

    def __init__(self, estimator: Any, *, fitted: bool) -> None:
        self.document: dict[str, Any] = {}
        self._learned: dict[str, Learned] = {}
        self._seen = {id(estimator)}
        self._reader = Reader() if fitted else None
        self._add(Part(_WHOLE, estimator), "", 0)

    def outcome(self) -> dict[str, Any]:
        """The section `outcome.weights`: a digest of each part, and one of all together."""
        missing = [f"{path}: {what}" for path, one in self._learned.items() for what in one.missing]
        return {
            "kind": self.document[_WHOLE]["class"],
            "count": len(self._learned),
            **together(self._learned.values()),
            "l2": norm(self._learned.values()),
            "parts": {path: one.digest for path, one in self._learned.items()},
            **({"missing": missing} if missing else {}),
        }

    def _add(self, part: Part, above: str, depth: int) -> None:
        path = f"{above}.{part.name}" if above else part.name
        node = self.document[path] = _described(part)
        if not is_estimator(part.estimator):
            return
        inside = list(_inside(part.estimator))
        found = [one for one in inside if id(one.estimator) not in self._seen]
        room = MOST_PARTS - len(self.document) if depth < MOST_DEPTH else 0
        parts = found[: max(0, room)]
        if self._reader is not None:
            left = {id(one) for one in found[len(parts) :]}
            apart = [one.estimator for one in inside if id(one) not in left]
            learned = self._reader.read(part.estimator, apart)
            self._learned[path] = learned
            node |= learned.document
        if parts:
            node["steps"] = [one.name for one in parts]
        if more := len(found) - len(parts) + _more_twins(part.estimator):
            node["more"] = more
        self._seen.update(id(one.estimator) for one in parts if is_estimator(one.estimator))
        for one in parts:
            self._add(one, "" if path == _WHOLE else path, depth + 1)


# ---------------------------------------------------------------------------- one part


def _described(part: Part) -> dict[str, Any]:
    estimator = part.estimator
    columns = {} if part.columns is None else {"columns": _columns(part.columns)}
    if not is_estimator(estimator):
        return columns | {"class": estimator if isinstance(estimator, str) else "passthrough"}
    node = {"class": class_name(estimator), "params": _own_params(estimator)} | columns
    package = base_of(type(estimator)).__module__.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    return node | ({"version": str(version)} if version and package != "sklearn" else {})


def _columns(columns: Any) -> Any:
    return repr(columns) if isinstance(columns, slice) else plain(named(_listed(columns)))


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _own_params(estimator: Any) -> dict[str, Any]:
    """Parameters that are not as by default; the parts of the tree are no parameters."""
    if not hasattr(estimator, "get_params"):
        return {}
    known = defaults(base_of(type(estimator)))
    return {
        name: _without_addresses(plain(named(value)))
        for name, value in sorted(estimator.get_params(deep=False).items())
        if name not in _HOLDERS and not _is_same(value, known.get(name))
    }


def _is_same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and repr(value) == repr(default))


def _without_addresses(value: Any) -> Any:
    if isinstance(value, str):
        return _ADDRESS.sub("0x", value)
    if isinstance(value, list):
        return [_without_addresses(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    return value


# ---------------------------------------------------------------------------- parts


def _inside(estimator: Any) -> Iterator[Part]:
    """The parts of an estimator, each once: named ones first, in their order."""
    seen: set[int] = set()
    for part in (*_named(estimator), *_twins(estimator), *_held(estimator)):
        if not is_estimator(part.estimator):
            yield part
        elif id(part.estimator) not in seen:
            seen.add(id(part.estimator))
            yield part


def _named(estimator: Any) -> Iterator[Part]:
    transformers = getattr(estimator, "transformers_", getattr(estimator, "transformers", None))
    for entries in (
        getattr(estimator, "steps", None),
        transformers,
        getattr(estimator, "transformer_list", None),
    ):
        for entry in entries if isinstance(entries, list | tuple) else ():
            if isinstance(entry, tuple) and len(entry) in (2, 3):
                yield Part(str(entry[0]), *entry[1:])
    fitted = getattr(estimator, "named_estimators_", None)
    if isinstance(fitted, Mapping):
        yield from (Part(str(name), one) for name, one in fitted.items())


def _twins(estimator: Any) -> Iterable[Part]:
    twins = _all_twins(estimator)[:MOST_TWINS]
    return (Part(f"estimators_.{number}", one) for number, one in enumerate(twins))


def _more_twins(estimator: Any) -> int:
    return max(0, len(_all_twins(estimator)) - MOST_TWINS)


def _all_twins(estimator: Any) -> list[Any]:
    """Estimators in a list without names; a forest's trees are no parts of it."""
    twins = getattr(estimator, "estimators_", None)
    if not isinstance(twins, list) or hasattr(estimator, "named_estimators_"):
        return []
    return [
        one
        for one in twins
        if is_estimator(one) and not class_name(one).startswith("sklearn.tree.")
    ]


def _held(estimator: Any) -> Iterator[Part]:
    """Fitted estimators in attributes of their own: `best_estimator_`, `final_estimator_`."""
    template = "estimator_" if _all_twins(estimator) else None
    for name, value in own_attributes(estimator):
        fitted = name.endswith("_") and not name.startswith("_") and name != template
        if fitted and is_estimator(value):
            yield Part(name, value)
    if class_name(estimator).endswith("FrozenEstimator"):
        yield Part("estimator", estimator.estimator)
