"""Any Python value as JSON: what a params, provenance or context column may hold.

Values of frameworks are recognised by what they can do, never by importing the framework.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from tachograph.generators import describe_generator

MAX_TEXT = 20_000
MAX_ITEMS = 1_000
MAX_DEPTH = 12
_CIRCULAR = "<circular>"
_INTEGER_BITS = 2000  # Python refuses to print integers of many thousand digits


def canonical_json(value: Any) -> str:
    """JSON text of a value: sorted keys, no spaces, UTF-8; the same value gives the same text.

    NaN and infinities, which JSON does not have, become the strings 'nan', 'inf' and '-inf'.
    """
    return json_text(plain(value))


def json_text(value: Any) -> str:
    """Canonical JSON text of a value that is plain already, at its full length."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def plain(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Reduce any value to what JSON holds, without keeping a reference to it; never raises.

    Mappings, sequences, sets, dataclasses, enums, paths, dates, numpy and 0-d tensor scalars
    keep their meaning. Larger arrays and data frames become their type, shape and dtype, random
    generators their kind and a digest of their state; anything else its qualified name or a
    shortened `repr`. `around` are the ids of the containers that it lies in: one that holds
    itself is not followed.
    """
    try:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _text(str.__str__(value))
        if isinstance(value, int) and not isinstance(value, enum.Enum):
            return int(value) if value.bit_length() <= _INTEGER_BITS else _text(hex(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if id(value) in around:
            return _CIRCULAR
        if len(around) <= MAX_DEPTH:
            return _plain_container(value, (*around, id(value)))
    except Exception:  # an object that fails when it is looked at is still a value
        pass
    return _text(_safe_repr(value))


def _plain_mapping(value: Mapping[Any, Any], around: tuple[int, ...]) -> dict[str, Any]:
    items = list(value.items())
    result = {_key(key): plain(item, around) for key, item in items[:MAX_ITEMS]}
    if len(items) > MAX_ITEMS:
        result["…"] = f"{len(items) - MAX_ITEMS} more"
    return result


def _plain_sequence(value: Any, around: tuple[int, ...]) -> list[Any]:
    items = sorted(value, key=_safe_repr) if isinstance(value, set | frozenset) else list(value)
    result = [plain(item, around) for item in items[:MAX_ITEMS]]
    if len(items) > MAX_ITEMS:
        result.append(f"… {len(items) - MAX_ITEMS} more")
    return result


def _plain_container(value: Any, around: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        return _plain_mapping(value, around)
    if isinstance(value, list | tuple | set | frozenset):
        return _plain_sequence(value, around)
    fields = field_values(value)
    if fields is not None:
        return _plain_mapping(fields, around)
    return _plain_object(value, around)


def field_values(value: Any) -> dict[str, Any] | None:
    """Name to value of the fields of a dataclass; None of anything else."""
    if not hasattr(type(value), "__dataclass_fields__"):
        return None
    from dataclasses import fields  # loaded, as there is one; slow to load where there is none

    return {field.name: getattr(value, field.name, None) for field in fields(value)}


def _plain_object(value: Any, around: tuple[int, ...]) -> Any:
    if isinstance(value, enum.Enum):
        return plain(value.value, around)
    if isinstance(value, os.PathLike):
        return _text(str(value))
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    import datetime  # a start does without
    import inspect

    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if inspect.isroutine(value) or isinstance(value, type) or inspect.ismodule(value):
        return _text(qualified_name(value))
    if isinstance(value, functools.partial):
        return _text(f"partial({qualified_name(value.func)})")
    if (generator := describe_generator(value)) is not None:
        return generator
    if hasattr(value, "shape") and (hasattr(value, "dtype") or hasattr(value, "dtypes")):
        return _plain_array(value, around)
    return _text(_safe_repr(value))


def _plain_array(value: Any, around: tuple[int, ...]) -> Any:
    try:
        shape = [int(size) for size in value.shape]
        if math.prod(shape) <= 16 and hasattr(value, "dtype"):
            array = value if hasattr(value, "tolist") else value.numpy()
            return plain(array.tolist(), around)
    except Exception:
        return qualified_name(type(value))
    dtype = str(getattr(value, "dtype", "mixed"))
    return {"type": qualified_name(type(value)), "shape": shape, "dtype": dtype}


def qualified_name(value: Any) -> str:
    """``package.module.Class`` of a class or function."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if name is None:
        return _safe_repr(value)
    return name if module in (None, "builtins") else f"{module}.{name}"


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted paths; an empty or very deep one stays as a value."""
    return dict(_paths(values, prefix, ()))


def _paths(
    values: Mapping[Any, Any], prefix: str, around: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
    around = (*around, id(values))
    for key, value in values.items():
        path = f"{prefix}.{_key(key)}" if prefix else _key(key)
        if isinstance(value, Mapping) and value and id(value) in around:
            yield path, _CIRCULAR
        elif isinstance(value, Mapping) and value and len(around) <= MAX_DEPTH:
            yield from _paths(value, path, around)
        else:
            yield path, value


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one: documents may have any shape."""
    return value if isinstance(value, Mapping) else {}


def _key(key: Any) -> str:
    try:
        return _text(str(key))
    except Exception:
        return _text(_safe_repr(key))


def _text(text: str) -> str:
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… {len(text) - MAX_TEXT} more characters"
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, as in file names that are not UTF-8
        text = text.encode(errors="backslashreplace").decode()
    return text


def _safe_repr(value: Any) -> str:
    try:
        return str.__str__(repr(value))
    except Exception as error:
        return f"<{qualified_name(type(value))}, repr failed: {type(error).__name__}>"
