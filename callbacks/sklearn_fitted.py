"""Digests of what estimators have learned: the same whenever the same training made the same bits.

Walks attributes: numbers, texts, arrays, containers, estimators, and objects of scikit-learn and of
the packages that estimators come from. Pickles nothing, calls nothing of the user's, and has no
part in it that another process would have otherwise: addresses, the order of sets, durations.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tachograph.callbacks.sklearn_class import base_of
from tachograph.callbacks.sklearn_facts import class_name, is_estimator
from tachograph.values import qualified_name

EXACT_BYTES = 512 << 20
"""Arrays are read in full until so much has been read; of those after them samples."""

MOST_VALUES = 200_000
"""Values and containers that are looked at one by one."""

_SAMPLE_BYTES = 64 << 10
_CHUNK_BYTES = 1 << 20
_DEPTH = 30
_PLAIN = {bool, int, float, complex, str, bytes, type(None)}
_OF_CALLBACKS = ("_skl_", "_callback", "_parent_callback")
_NOT_LEARNED = re.compile(
    r"__.*|refit_time_|.*(random_state|random_seed|_rng)_?|_stop_words_id|_sklearn_output_config"
    r"|_metadata_request|_repr_html.*|_doc_link.*"
)
_DURATIONS = re.compile(r"(mean|std)_(fit|score)_time")  # of `cv_results_`
_MOST_MISSING = 20
_HOLDERS = ("steps", "transformer_list", "estimator")  # parameters that may be fitted in place
_SPARSE = ("data", "indices", "indptr", "offsets", "row", "col", "rows")


@dataclass(frozen=True, slots=True)
class Learned:
    """The digest of what an estimator has learned.

    Attributes
    ----------
    digest : str
        ``sha256:…`` over all that could be read.
    is_whole : bool
        Whether arrays were read in full.
    missing : list of str
        Attributes that could not be read, with their types.
    squares : float
        Sum of the squares of all fractions in arrays.
    """

    digest: str
    is_whole: bool
    missing: list[str]
    squares: float

    @property
    def document(self) -> dict[str, Any]:
        """What the tree says of it."""
        document: dict[str, Any] = {"fitted": self.digest}
        if self.missing or not self.is_whole:
            document["digest_of"] = "part" if self.missing else "sample"
        return document | ({"missing": self.missing} if self.missing else {})


class Reader:
    """Reads estimators one after the other, within one bound."""

    def __init__(self) -> None:
        self._bytes_left = EXACT_BYTES
        self._values_left = MOST_VALUES
        self._packages = {"sklearn", "scipy"}

    def read(self, estimator: Any, apart: Iterable[Any] = ()) -> Learned:
        """Digest what an estimator has learned, without estimators that are read apart."""
        return _Reading(self, {id(one) for one in apart}).read(estimator)

    def take_bytes(self, size: int) -> bool:
        """Whether an array of that size is read in full."""
        fits = size <= self._bytes_left
        self._bytes_left -= size if fits else 0
        return fits

    def take_value(self) -> bool:
        """Whether one more value is looked at."""
        self._values_left -= 1
        return self._values_left >= 0

    def enter(self, kind: type) -> None:
        """An estimator of a class is read: what its package has made of its own is part of it."""
        self._packages.add(_package(kind))

    def knows(self, kind: type) -> bool:
        """Whether an object of a class is read attribute by attribute."""
        return _package(kind) in self._packages


class _Reading:
    def __init__(self, reader: Reader, apart: set[int]) -> None:
        self._reader = reader
        self._apart = apart
        self._around: set[int] = set()
        self._hasher = hashlib.sha256()
        self._missing: list[str] = []
        self._is_whole = True
        self._squares = 0.0

    def read(self, estimator: Any) -> Learned:
        self._apart.discard(id(estimator))
        self._value(estimator, "")
        digest = f"sha256:{self._hasher.hexdigest()}"
        return Learned(digest, self._is_whole, self._missing, self._squares)

    def _put(self, tag: str, content: bytes = b"") -> None:
        self._hasher.update(f"{tag}{len(content)}:".encode() + content)

    def _text(self, tag: str, text: str) -> None:
        self._put(tag, text.encode(errors="surrogatepass"))

    def _leave_out(self, path: str, value: Any) -> None:
        self._text("missing", qualified_name(type(value)))
        if len(self._missing) < _MOST_MISSING:
            self._missing.append(f"{path}: {qualified_name(type(value))}")

    # ------------------------------------------------------------------ values

    def _value(self, value: Any, path: str) -> None:
        if type(value) in _PLAIN:
            self._text("v", repr(value))
        elif id(value) in self._apart:
            self._put("apart")
        elif id(value) in self._around or len(self._around) > _DEPTH:
            self._put("around")
        elif not self._reader.take_value():
            self._leave_out(path, value)
        else:
            self._around.add(id(value))
            try:
                self._any(value, path)
            finally:
                self._around.discard(id(value))

    def _any(self, value: Any, path: str) -> None:
        if isinstance(value, np.ma.MaskedArray):  # what is masked may be anything
            self._array(np.ma.getmaskarray(value), path)
            # The array itself would keep what it is filled with.
            self._array(np.asarray(value.view().filled()), path)
        elif isinstance(value, np.ndarray | np.generic):
            self._array(np.asarray(value), path)
        elif isinstance(value, Mapping):
            self._mapping(value, path)
        elif isinstance(value, list | tuple | deque):
            self._sequence(list(value), path)
        elif isinstance(value, set | frozenset):
            self._text("set", repr(sorted(map(_stable, value))))
        elif is_estimator(value):
            self._estimator(value, path)
        else:
            self._other(value, path)

    def _other(self, value: Any, path: str) -> None:
        if isinstance(value, np.random.RandomState | np.random.Generator):
            self._put("generator")  # what is drawn later is not what was learned
        elif isinstance(value, type | np.ufunc) or inspect.isroutine(value):
            self._text("named", qualified_name(value))
        elif isinstance(value, functools.partial):
            self._sequence([value.func, list(value.args), value.keywords], path)
        elif isinstance(value, range | slice | bytearray | np.dtype):
            self._text("v", repr(value))
        else:
            self._object(value, path)

    def _sequence(self, values: list[Any], path: str) -> None:
        self._put(f"list{len(values)}")
        if set(map(type, values)) <= _PLAIN:
            self._text("v", repr(values))
            return
        for number, value in enumerate(values):
            self._value(value, f"{path}.{number}" if path else str(number))

    def _mapping(self, values: Mapping[Any, Any], path: str) -> None:
        self._put(f"map{len(values)}")
        items = sorted(values.items(), key=lambda item: _stable(item[0]))
        learned = [item for item in items if not _DURATIONS.fullmatch(str(item[0]))]
        if {type(part) for item in learned for part in item} <= _PLAIN:
            self._text("v", repr(learned))
            return
        for key, value in learned:
            self._text("key", _stable(key))
            self._value(value, f"{path}.{key}" if path else str(key))

    # ------------------------------------------------------------------ arrays

    def _array(self, array: Any, path: str) -> None:
        self._text("array", f"{_dtype_text(array.dtype)}{array.shape}")
        is_plain = array.dtype.names and not array.dtype.hasobject
        if is_plain and array.nbytes <= _CHUNK_BYTES and self._reader.take_bytes(array.nbytes):
            self._put("fields", b"".join(array[name].tobytes() for name in array.dtype.names))
        elif array.dtype.names:  # between fields there may be bytes of no meaning
            for name in array.dtype.names:
                self._array(array[name], path)
        elif array.dtype.hasobject:
            self._sequence(array.ravel().tolist(), path)
        else:
            self._numbers(array)

    def _numbers(self, array: Any) -> None:
        is_whole = self._reader.take_bytes(array.nbytes)
        self._is_whole = self._is_whole and is_whole
        flat = np.ascontiguousarray(array).reshape(-1)
        length = (_CHUNK_BYTES if is_whole else _SAMPLE_BYTES // 16) // max(1, flat.itemsize) or 1
        last = max(0, flat.size - length)
        for start in range(0, flat.size, length) if is_whole else _spread(last):
            chunk = flat[start : start + length]
            self._hasher.update(chunk.view(np.uint8).data)
            if chunk.dtype.kind == "f":
                with np.errstate(all="ignore"):
                    self._squares += float(
                        np.einsum("i,i->", chunk, chunk, dtype="float64", casting="unsafe")
                    )

    # ------------------------------------------------------------------ objects

    def _estimator(self, estimator: Any, path: str) -> None:
        kind = base_of(type(estimator))
        self._reader.enter(kind)
        self._text("estimator", class_name(estimator))
        given = getattr(estimator, "__dict__", {})
        held = {name: given[name] for name in _HOLDERS if name in given}
        self._attributes(held | dict(own_attributes(estimator)), path)

    def _object(self, value: Any, path: str) -> None:
        kind = type(value)
        package = _package(kind)
        if package == "pandas":
            self._pandas(value, path)
        elif hasattr(value, "toarray") and hasattr(value, "nnz"):
            self._text("sparse", f"{value.format}{value.shape}")
            for name in _SPARSE:
                if isinstance(part := getattr(value, name, None), np.ndarray):
                    self._array(part, path)
        elif package == "xgboost" and hasattr(value, "save_raw"):
            self._put("booster", bytes(value.save_raw("ubj")))
        elif package == "lightgbm" and hasattr(value, "model_to_string"):
            self._text("booster", value.model_to_string())
        elif not self._reader.knows(kind):
            self._leave_out(path, value)
        else:
            self._text("object", qualified_name(kind))
            state = getattr(value, "__dict__", None) or _state(value)
            if isinstance(state, Mapping):
                self._attributes(state, path)
            elif state is not None:
                self._value(state, path)

    def _attributes(self, attributes: Mapping[str, Any], path: str) -> None:
        for name in sorted(attributes):
            if not name.startswith(_OF_CALLBACKS) and not _NOT_LEARNED.fullmatch(name):
                self._text("key", name)
                self._value(attributes[name], f"{path}.{name}" if path else name)

    def _pandas(self, value: Any, path: str) -> None:
        self._text("pandas", type(value).__name__)
        if hasattr(value, "columns"):
            self._sequence([str(name) for name in value.columns], path)
            for position in range(len(value.columns)):
                self._array(value.iloc[:, position].to_numpy(), path)
            return
        self._array(np.asarray(value), path)


# ---------------------------------------------------------------------------- inside


def own_attributes(estimator: Any) -> Iterator[tuple[str, Any]]:
    """Attributes that a fit has set: all but the parameters."""
    given = defaults(base_of(type(estimator)))
    for name, value in list(getattr(estimator, "__dict__", {}).items()):
        if name not in given:
            yield name, value


@functools.lru_cache(maxsize=1_000)
def defaults(kind: type) -> dict[str, Any]:
    """Parameters of a class of estimators with their defaults, also those that its bases take."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        try:
            signature = inspect.signature(vars(base)["__init__"])
        except (KeyError, TypeError, ValueError):
            continue
        found |= {name: one.default for name, one in signature.parameters.items()}
    return found


def together(parts: Iterable[Learned]) -> dict[str, str]:
    """One digest of several, in order, and what it covers."""
    parts = list(parts)
    hasher = hashlib.sha256("".join(part.digest for part in parts).encode())
    covers = "content" if all(part.is_whole for part in parts) else "sample"
    covers = "part" if any(part.missing for part in parts) else covers
    return {"digest": f"sha256:{hasher.hexdigest()}", "digest_of": covers}


def norm(parts: Iterable[Learned]) -> float | None:
    """The norm of all fractions together; None where one of them is not finite."""
    total = math.fsum(part.squares for part in parts)
    return math.sqrt(total) if math.isfinite(total) else None


def _spread(last: int) -> list[int]:
    """The beginnings of samples."""
    return sorted({last * block // 15 for block in range(16)})


@functools.lru_cache(maxsize=100)
def _dtype_text(dtype: Any) -> str:
    return str(dtype.descr if dtype.names else dtype.str)


def _stable(value: Any) -> str:
    """A text of a key that is the same in every process."""
    return repr(value) if type(value) in _PLAIN or isinstance(value, tuple) else str(value)


def _state(value: Any) -> Any:
    """What a compiled object says of itself, such as a tree; None where it says nothing."""
    method = getattr(type(value), "__getstate__", None)
    return None if method is getattr(object, "__getstate__", None) else value.__getstate__()


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
