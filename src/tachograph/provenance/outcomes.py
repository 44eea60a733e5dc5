"""What a training has made, as digests: whether another run has made the same bits.

Reads values where they lie, at once and without copies of more than one tensor, because a training
that goes on changes them. From an accelerator it copies, in pieces, what it reads.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.provenance import Document, data, encodable, missing
from tachograph.provenance.digest import (
    Column,
    NotPlain,
    column_header,
    combine,
    digest_columns,
    plain_bytes,
    spans,
)
from tachograph.values import qualified_name

EXACT_BYTES = 512 << 20
"""A value up to this size, all its parts together, is read in full."""

SAMPLE_BYTES = 64 << 20
"""Of larger ones about this much is read, an equal share of each part."""

MAX_PARTS = 2_000
"""So many parts are named; the digest covers all."""

_DEPTH = 10
_SHORT = 100  # a longer list without tensors is one part of plain values
_PLAIN_BYTES = 64  # what a plain value is taken for when a size is estimated
_NOT_TENSORS = {"pandas", "polars", "pyarrow", "scipy"}  # have readers of their own
_NUMBERS = "fiub"  # kinds of dtype that numpy sums as they are


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of any library, flat: `read` gives elements as a numpy array on the host."""

    shape: tuple[int, ...]
    dtype: str
    elements: int
    item_bytes: int
    read: Callable[[int, int], Any]

    @property
    def bytes(self) -> int:
        return self.elements * self.item_bytes


@dataclass(frozen=True, slots=True)
class _Digest:
    """What reading a part has given; without a digest, `missing` says why."""

    digest: str | None
    is_whole: bool = True
    squares: float | None = None
    missing: str | None = None


def outcome(value: Any, *, batches: bool = False) -> Document:
    """Describe what a training has made so that the same bits can be recognised.

    Parameters
    ----------
    value : any
        Arrays and tensors (numpy, torch, jax, tensorflow, Keras) on any device, mappings, lists
        and tuples of them, also nested, bytes, frames, plain values, or the path of a file.
    batches : bool, default False
        Whether `value` is a sequence of batches, to be read as if they were put together along
        their first axis.

    Returns
    -------
    dict
        `kind` and, as far as they are known, `shape`, `dtype`, `bytes`, `parts`, `l2`, `digest`.
        `digest_of` says what the digest covers: 'content', or 'sample' above 512 MiB. Never
        raises: where something fails, `missing` says why.
    """
    kind = qualified_name(type(value))
    try:
        document = _batches(value) if batches else _one(value)
    except Exception as error:
        document = {"digest": None, **missing(error)}
    found: Document = encodable({"kind": kind, **document})
    return found


def _one(value: Any) -> Document:
    if isinstance(value, bytes | bytearray | memoryview):
        return _content(memoryview(value).cast("B"))
    if _is_tensor(value):
        return _single([value])
    if isinstance(value, Mapping) or _holds_tensors(value):
        return _parts({name: [leaf] for name, leaf in _leaves(value, "", 0)})
    if isinstance(value, bool | int | float | complex):
        return _single([value])
    return {name: item for name, item in data.fingerprint(value).items() if name != "kind"}


def _batches(batches: Sequence[Any]) -> Document:
    """Of each leaf the pieces of all batches, in order."""
    found: dict[str, list[Any]] = {}
    for batch in batches:
        for name, leaf in _leaves(batch, "", 0):
            found.setdefault(name, []).append(leaf)
    count = {"batches": len(batches)}
    if list(found) == [""]:
        return count | _single(found[""])
    return count | _parts(found)


def _content(view: memoryview) -> Document:
    """The digest of bytes that are read in full is their SHA-256, as of a file with them."""
    size = {"bytes": len(view)}
    if len(view) <= EXACT_BYTES:
        digest = f"sha256:{hashlib.sha256(view).hexdigest()}"
        return size | {"digest": digest, "digest_of": "content"}
    column = Column("", "bytes", 1, lambda start, stop: bytes(view[start:stop]))
    return size | digest_columns(len(view), [column])


# ---------------------------------------------------------------------------- structures


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """What a structure holds, under dotted names; lists without tensors are one leaf."""
    if depth < _DEPTH and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key), depth + 1)
    elif depth < _DEPTH and isinstance(value, list | tuple) and _holds_tensors(value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}" if name else str(index), depth + 1)
    else:
        yield name, value


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    if _is_tensor(value):
        return True
    if depth > _DEPTH or not isinstance(value, Mapping | list | tuple):
        return False
    items = value.values() if isinstance(value, Mapping) else value[:_SHORT]
    return any(_holds_tensors(item, depth + 1) for item in items)


def _is_tensor(value: Any) -> bool:
    """Whether it has a shape and one dtype, as no data frame has."""
    has_both = hasattr(value, "shape") and hasattr(value, "dtype")
    return has_both and _package(type(value)) not in _NOT_TENSORS and not isinstance(value, type)


# ---------------------------------------------------------------------------- documents


def _single(pieces: list[Any]) -> Document:
    joined = _join(pieces)
    found = _digest(joined, EXACT_BYTES, SAMPLE_BYTES)
    return _shape(joined) | _common([found]) | {"digest": found.digest}


def _parts(leaves: Mapping[str, list[Any]]) -> Document:
    joined = {name: _join(pieces) for name, pieces in leaves.items()}
    size = sum(_bytes(one) for one in joined.values())
    share = max(64 << 10, SAMPLE_BYTES // max(1, len(joined)))
    exact = EXACT_BYTES if size <= EXACT_BYTES else share
    found = {name: _digest(one, exact, share) for name, one in joined.items()}
    return {
        "count": len(found),
        "bytes": size,
        "digest": combine(one.digest for one in found.values()),
        **_common(found.values()),
        "parts": {name: one.digest for name, one in list(found.items())[:MAX_PARTS]},
        "more_parts": max(0, len(found) - MAX_PARTS),
    }


def _common(found: Iterable[_Digest]) -> Document:
    """What digests cover, the norm of all numbers together, and why one is missing."""
    found = list(found)
    reasons = [one.missing for one in found if one.missing]
    document: Document = {}
    if not reasons:
        document["digest_of"] = "content" if all(one.is_whole for one in found) else "sample"
    squares = [one.squares for one in found if one.squares is not None]
    if squares and not reasons:
        norm = math.sqrt(sum(squares)) if all(map(math.isfinite, squares)) else None
        document["l2"] = norm
    return document | ({"missing": reasons[0]} if reasons else {})


# ---------------------------------------------------------------------------- tensors


Joined = list[_Tensor] | list[Any] | str
"""Tensors that are read one behind the other, plain values, or why neither can be read."""


def _join(pieces: list[Any]) -> Joined:
    if not all(_is_tensor(piece) for piece in pieces):
        return pieces
    try:
        return [_tensor(piece) for piece in pieces]
    except Exception as error:
        return str(missing(error)["missing"])


def _bytes(joined: Joined) -> int:
    if isinstance(joined, str):
        return 0
    return sum(one.bytes if isinstance(one, _Tensor) else _PLAIN_BYTES for one in joined)


def _shape(joined: Joined) -> Document:
    if isinstance(joined, str) or not all(isinstance(one, _Tensor) for one in joined):
        return {}
    first, rest = joined[0].shape, [one.shape for one in joined[1:]]
    document = {"dtype": joined[0].dtype, "bytes": _bytes(joined)}
    if not rest:
        return {"shape": list(first)} | document
    if all(shape[1:] == first[1:] for shape in rest) and first:
        rows = sum(one.shape[0] for one in joined)
        return {"shape": [rows, *first[1:]]} | document
    return document


def _digest(joined: Joined, exact: int, sample: int) -> _Digest:
    if isinstance(joined, str):
        return _Digest(None, missing=joined)
    try:
        if all(isinstance(one, _Tensor) for one in joined):
            return _tensors_digest(joined, exact, sample)
        return _Digest(f"sha256:{hashlib.sha256(plain_bytes(joined)).hexdigest()}")
    except NotPlain as error:
        return _other(joined[0]) if len(joined) == 1 else _Digest(None, missing=str(error))
    except Exception as error:
        return _Digest(None, missing=str(missing(error)["missing"]))


def _other(value: Any) -> _Digest:
    """Of frames, sparse matrices and the like."""
    found = data.fingerprint(value)
    is_whole = found.get("digest_of") == "content"
    return _Digest(found.get("digest"), is_whole, missing=found.get("missing"))


def _tensors_digest(tensors: list[_Tensor], exact: int, sample: int) -> _Digest:
    """Digest of tensors put together along their first axis, the same as of the data so made."""
    shape, dtype = tensors[0].shape, tensors[0].dtype
    if any(one.shape[1:] != shape[1:] or one.dtype != dtype for one in tensors):
        return _ragged(tensors, exact, sample)
    rows = sum(one.shape[0] if one.shape else 1 for one in tensors)
    elements = sum(one.elements for one in tensors)
    is_whole = _bytes(tensors) <= exact
    hasher = hashlib.sha256(column_header(str(list(shape[1:])), dtype, rows))
    squares: float | None = 0.0
    for start, stop in spans(elements, tensors[0].item_bytes, exact=is_whole, sample=sample):
        for chunk in _range(tensors, start, stop):
            if chunk.dtype.hasobject:
                hasher.update(plain_bytes(chunk.tolist()))
            else:
                hasher.update(chunk.view("uint8") if chunk.size else b"")
            own = _squares(chunk, dtype)
            squares = None if own is None or squares is None else squares + own
    return _Digest(f"sha256:{hasher.hexdigest()}", is_whole, squares)


def _ragged(tensors: list[_Tensor], exact: int, sample: int) -> _Digest:
    """Digest of tensors of several shapes: of one after the other."""
    found = [_tensors_digest([one], exact, sample) for one in tensors]
    squares = [one.squares for one in found if one.squares is not None]
    return _Digest(
        combine(one.digest for one in found),
        all(one.is_whole for one in found),
        sum(squares) if len(squares) == len(found) else None,
    )


def _range(tensors: list[_Tensor], start: int, stop: int) -> Iterator[Any]:
    """The elements from `start` to `stop` of all tensors."""
    offset = 0
    for one in tensors:
        first, last = max(start - offset, 0), min(stop - offset, one.elements)
        if first < last:
            yield one.read(first, last)
        offset += one.elements


def _squares(chunk: Any, dtype: str) -> float | None:
    """Sum of the squares of numbers; None where they are none."""
    numpy = sys.modules["numpy"]
    kind = chunk.dtype.kind
    if kind == "c":
        chunk = chunk.view(f"f{chunk.dtype.itemsize // 2}")
    elif "float" in dtype and kind == "V":  # a type of another library, such as jax has
        chunk = chunk.astype("float32")
    elif dtype == "bfloat16" and kind == "u":  # its bits
        chunk = (chunk.astype("uint32") << 16).view("float32")
    elif kind not in _NUMBERS or (dtype.startswith("float") and kind == "u"):
        return None
    with numpy.errstate(all="ignore"):
        return float(numpy.einsum("i,i->", chunk, chunk, dtype="float64", casting="unsafe"))


# ---------------------------------------------------------------------------- libraries


def _tensor(value: Any) -> _Tensor:
    """Any library's tensor; raises where it cannot be read from here."""
    kind: Any = type(value)
    packages = _packages(kind)
    if "keras" in packages:  # a variable
        return _tensor(value.value)
    if "torch" in packages:
        return _torch(value)
    if "jaxlib" in packages and not value.is_fully_addressable:
        raise ValueError("spread over processes")
    numpy = sys.modules["numpy"]
    array = value.numpy() if "tensorflow" in packages else numpy.asarray(value)
    flat = numpy.ascontiguousarray(array).reshape(-1)
    return _Tensor(
        tuple(int(size) for size in array.shape),
        str(array.dtype),
        int(flat.size),
        _PLAIN_BYTES if array.dtype.hasobject else int(array.dtype.itemsize),
        lambda start, stop: flat[start:stop],
    )


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@functools.lru_cache(maxsize=100)
def _packages(kind: Any) -> frozenset[str]:
    """The packages that a class and its bases are from."""
    return frozenset(map(_package, kind.__mro__))


def _torch(value: Any) -> _Tensor:
    if hasattr(value, "to_local"):
        raise ValueError("spread over processes")
    torch = sys.modules["torch"]
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"lies on {value.device} as {value.layout}, not read")
    flat = value.detach().resolve_conj().resolve_neg().contiguous().view(-1)

    has_bits = value.dtype in _without_numpy(torch)

    def read(start: int, stop: int) -> Any:
        chunk = flat[start:stop].cpu()
        if not has_bits:
            return chunk.numpy()
        bits = chunk.view(torch.int16 if chunk.element_size() == 2 else torch.uint8)
        return bits.numpy().view(f"u{chunk.element_size()}")

    dtype = str(value.dtype).removeprefix("torch.")  # the same content has one digest everywhere
    shape = tuple(int(size) for size in value.shape)
    return _Tensor(shape, dtype, flat.numel(), value.element_size(), read)


@functools.cache
def _without_numpy(torch: Any) -> set[Any]:
    """Types of floating point that numpy does not have."""
    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    return {getattr(torch, name) for name in names if hasattr(torch, name)}
