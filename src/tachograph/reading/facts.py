"""What can be asked about a run by name: its columns, metrics, params, tags and packages.

Owns what such a name means; knows neither the grammar of filters nor any store.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tachograph.errors import QueryError
from tachograph.records import TABLES, join_special
from tachograph.values import canonical_json

STATISTICS: Final = ("last", "min", "max", "mean", "count")
"""What is known of a metric without reading its points."""

RUN_COLUMNS: Final = tuple(TABLES["runs"].columns)
TIME_COLUMNS: Final = frozenset({"started_at", "ended_at", "changed_at"})

Summaries = Mapping[str, Mapping[str, Any]]
"""Of one metric: canonical context text to its row of the table `summaries`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one run; only what `Needs` names has to be there.

    Attributes
    ----------
    row : mapping
        The run's columns.
    metrics : mapping of name to (mapping of context to row of `summaries`)
    params : mapping of path to value
        Decoded from JSON.
    tags : mapping of key to value
    packages : mapping of normalised name to version
    """

    row: Mapping[str, Any]
    metrics: Mapping[str, Summaries] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str | None] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Needs:
    """Which facts are referred to, so that nothing else has to be read."""

    columns: frozenset[str] = frozenset()
    metrics: frozenset[str] = frozenset()
    params: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.columns | other.columns,
            self.metrics | other.metrics,
            self.params | other.params,
            self.tags | other.tags,
            self.packages | other.packages,
        )

    @property
    def sections(self) -> frozenset[str]:
        """Sections of the table `provenance` that are referred to."""
        return frozenset({"packages"} if self.packages else ())

    @property
    def only_columns(self) -> bool:
        """Whether the run's own row answers everything."""
        return not (self.metrics or self.params or self.tags or self.packages)


Getter = Callable[[Facts], Any]
Kind = Literal["plain", "time", "version"]
"""What a text that is compared with it is read as."""


@dataclass(frozen=True, slots=True)
class Path:
    """One name, compiled: what it needs, and how to get its value from the facts of a run."""

    text: str
    position: int
    value: Getter
    needs: Needs
    kind: Kind = "plain"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``; did you mean 'x'?``, or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), 1, 0.7)
    return f"; did you mean {found[0]!r}?" if found else ""


# ---------------------------------------------------------------------------- getters


def column(name: str) -> tuple[Getter, Needs]:
    """A column of the run itself."""
    return lambda facts: facts.row[name], Needs(columns=frozenset({name}))


def metric(name: str, wanted: Mapping[str, Any], statistic: str) -> tuple[Getter, Needs]:
    """A statistic of a metric in the context that `choose_context` finds."""

    def value(facts: Facts) -> Any:
        series = facts.metrics.get(name)
        context = choose_context(name, series.keys(), wanted) if series else None
        if not series or context is None:
            return None
        row = series[context]
        if statistic == "last":
            return join_special(row["last"], row["special"])
        return row[statistic]

    return value, Needs(metrics=frozenset({name}))


def param(name: str) -> tuple[Getter, Needs]:
    """A parameter by its dotted path."""
    return lambda facts: facts.params.get(name), Needs(params=frozenset({name}))


def tag(name: str) -> tuple[Getter, Needs]:
    """A tag by its key."""
    return lambda facts: facts.tags.get(name), Needs(tags=frozenset({name}))


def package(name: str) -> tuple[Getter, Needs]:
    """The version of a package that was installed."""
    normal = normalise_package(name)
    return lambda facts: facts.packages.get(normal), Needs(packages=frozenset({normal}))


NAMED: Final = {"params": param, "tags": tag, "packages": package}
ROOTS: Final = ("metrics", *NAMED)

# ---------------------------------------------------------------------------- contexts


@functools.lru_cache(maxsize=4096)
def decode_context(text: str) -> dict[str, Any]:
    """The keys of a context, from its canonical JSON text."""
    decoded = json.loads(text)
    return decoded if isinstance(decoded, dict) else {}


def choose_context(
    name: str, contexts: Collection[str], wanted: Mapping[str, Any] | None = None
) -> str | None:
    """The context of a metric that is meant by `wanted`, as canonical JSON text.

    The context equal to `wanted` wins; so by default a metric logged without a context does.
    Otherwise it is the only one that has all keys of `wanted` with these values. None where
    none has.

    Raises
    ------
    QueryError
        Several fit; the message lists them.
    """
    exact = canonical_json(wanted) if wanted else "{}"
    if exact in contexts:
        return exact
    items = wanted.items() if wanted else ()
    fitting = [c for c in contexts if all(decode_context(c).get(k) == v for k, v in items)]
    if len(fitting) > 1:
        spelled = ", ".join(spell_metric(name, context) for context in sorted(fitting))
        raise QueryError(f"metric {name!r} is in several contexts; choose one of {spelled}")
    return fitting[0] if fitting else None


def spell_metric(name: str, context: str = "{}") -> str:
    """How a filter names a metric in a context: ``metrics['loss', phase='test']``."""
    keys = "".join(f", {key}={value!r}" for key, value in decode_context(context).items())
    return f"metrics[{name!r}{keys}]"


# ---------------------------------------------------------------------------- packages

_STAGES = {"dev": -4, "a": -3, "alpha": -3, "b": -2, "beta": -2, "c": -1, "rc": -1, "post": 1}


@functools.lru_cache(maxsize=4096)
def version_key(text: str) -> tuple[Any, ...]:
    """Order of a version: releases by number; dev, a, b and rc before them, post after."""
    found = re.match(r"\s*v?(\d+(?:\.\d+)*)[._-]?([a-z]*)[._-]?(\d*)", text.lower())
    if not found:
        return ((), 0, 0)
    release = [int(part) for part in found[1].split(".")]
    while release and not release[-1]:
        release.pop()
    return tuple(release), _STAGES.get(found[2], 0), int(found[3] or 0)


def normalise_package(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package_versions(document: Any) -> dict[str, str]:
    """Normalised name to version, from a provenance document of the section `packages`.

    Its packages are ``{name: version}``, at the top or under the key `versions`.
    """
    if isinstance(document, Mapping) and isinstance(document.get("versions"), Mapping):
        document = document["versions"]
    if not isinstance(document, Mapping):
        return {}
    found = document.items()
    return {normalise_package(name): text for name, text in found if isinstance(text, str)}
