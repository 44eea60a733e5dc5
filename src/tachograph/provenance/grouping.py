"""Which runs differ in nothing but the seed: they have the same group id.

A digest over the code, the digests of the data, the parameters without seeds, kind and framework.
Not over the environment: the same training on another machine is in the same group.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tachograph.values import flatten, json_text, mapping

_SEED = re.compile(
    r"(^|[._-])(p?rng|seeds?|random_?(state|seed)|prng_?key)($|[._-])|(^|\.)generator\.state$",
    re.IGNORECASE,
)
_ABOUT_SEEDS = re.compile(  # how many, how they are used, and seeds of other kinds
    r"(^|[._-])(n|num|number_of|max)[_-]seeds?$|(^|[._-])(p?rng|seeds?)[_-](impl|type|per|size|length"
    r"|fraction|ratio|words?|texts?|terms?|tokens?|prompts?|urls?|files?|paths?|points?|nodes?)",
    re.IGNORECASE,
)
_NO_CAUSE = re.compile(  # results, and where they go
    r"(^|\.)best\..*|study_name|storage\..*"
    r"|(.*\.)?(run|exp|experiment)_?(name|id)"
    r"|(.*\.)?(default_root|out|output|log|logging|save|results?|checkpoint|ckpt|run|work"
    r"|tensorboard|tb)_?(dir|directory|folder|path)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


def is_seed(path: str) -> bool:
    """Whether a parameter or flag of that name is a seed, or the state of a generator."""
    name = path.strip("-").replace("__", ".")
    return bool(_SEED.search(name)) and not _ABOUT_SEEDS.search(name)


def is_cause(path: str) -> bool:
    """Whether a parameter of that name can change a result: no result, and no place for one."""
    return _NO_CAUSE.fullmatch(path) is None


def group_id(code: str, own: str) -> str:
    """The id of a group.

    Parameters
    ----------
    code : str
        See `code_digest`; for a run that is part of another, that of the outermost run.
    own : str
        See `own_digest`.
    """
    return _digest([code, own])[:32]


def own_digest(
    kind: str, framework: str, params: Mapping[str, str], documents: Mapping[str, Any]
) -> str:
    """Digest of what a run does: kind, framework, parameters (as JSON texts) and data."""
    data = {
        section: _data(document)
        for section, document in documents.items()
        if section.startswith("data.")
    }
    return _digest([kind, framework, _causes(params), data])


def code_digest(documents: Mapping[str, Any], params: Mapping[str, str] | None = None) -> str:
    """Digest of the code, and of arguments that no parser was seen to read.

    Parameters
    ----------
    documents : mapping
        Section to document.
    params : mapping, optional
        For what runs that are part of this one share with it: parameters that it was given.
    """
    shared = () if params is None else (_causes(params),)
    return _digest([_code(documents), _arguments(documents), *shared])


def _digest(facts: Any) -> str:
    return hashlib.sha256(json_text(facts).encode()).hexdigest()


# ---------------------------------------------------------------------------- parts


def _causes(params: Mapping[str, str]) -> dict[str, str]:
    return {
        path: _ADDRESS.sub("0x", value)
        for path, value in params.items()
        if not is_seed(path) and is_cause(path)
    }


def _code(documents: Mapping[str, Any]) -> Any:
    """The files that ran; where these are not known, the commit with what was changed since."""
    source, git = mapping(documents.get("source")), mapping(documents.get("git"))
    cells = _listed(documents.get("notebook"), "cells", "source")
    if source.get("files") or cells:
        return [source.get("digest"), cells]
    return [git.get("commit"), mapping(git.get("diff")).get("sha256")]


def _arguments(documents: Mapping[str, Any]) -> Any:
    arguments, argv = documents.get("arguments"), mapping(documents.get("argv"))
    files = zip(*(_listed(arguments, "files", of) for of in ("missing", "sha256")), strict=True)
    unread = [digest for missing, digest in files if missing is not None and digest]
    whole = argv.get("original_argv" if argv.get("started_by") == "command" else "argv")
    words = without_seeds(map(str, whole[1:] if isinstance(whole, list | tuple) else []))
    parsed = [values for values in _listed(arguments, "parsed", "values") if values]
    if parsed and not (left := list(_not_parsed(words, parsed))):
        return unread
    return [left if parsed else list(words), unread]


def _not_parsed(words: Iterable[str], parsed: Iterable[Any]) -> Iterator[str]:
    """The words of a command line that parsers have left to others, as far as names tell."""
    values = {path: value for one in parsed for path, value in flatten(mapping(one)).items()}
    names = {path.replace("-", "_") for path in values}
    listed = (value if isinstance(value, list | tuple) else [value] for value in values.values())
    texts = {str(item) for items in listed for item in items}
    of_option = False
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("-"):
            of_option = name.lstrip("-").replace("-", "_") in names
            if not of_option:
                yield word
            of_option = of_option and not equals
        elif of_option:
            of_option = False
        elif word not in texts:
            yield word


def _listed(document: Any, name: str, of: str) -> list[Any]:
    """One field of each item in a list of a document."""
    items = mapping(document).get(name)
    return [mapping(item).get(of) for item in items] if isinstance(items, list | tuple) else []


def without_seeds(argv: Iterable[str]) -> Iterator[str]:
    """The words of a command line but for seeds: ``--seed 3``, ``--seed=3``, ``seed=3``."""
    skip = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if skip or is_seed(name):
            skip = not skip and not equals and name.startswith("-")
        else:
            yield argument


def _data(document: Any) -> Any:
    """The digests in a document on data, by their place; what else it says where one is missing."""
    found = dict(_digests(document, ""))
    return found or document


def _digests(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        if "digest" in value and value["digest"] is None:
            yield path, value
            return
        for key, item in value.items():
            if key == "digest":
                yield path, item
            else:
                yield from _digests(item, f"{path}.{key}")
