"""Reads UBJSON as XGBoost writes it, which takes both a tenth of the time that JSON takes.

Arrays of numbers become numpy arrays that share the memory of what was read. Positions are passed
along instead of kept, and lengths are read where they stand: a tree has twenty of them.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy

_NUMBERS = {
    ord(letter): struct.Struct(format_)
    for letter, format_ in {
        "i": ">b",
        "U": ">B",
        "I": ">h",
        "l": ">i",
        "L": ">q",
        "d": ">f",
        "D": ">d",
    }.items()
}
_TYPES = {mark: numpy.dtype(number.format) for mark, number in _NUMBERS.items()}
_CONSTANTS = {ord("Z"): None, ord("T"): True, ord("F"): False}
_OBJECT, _END_OF_OBJECT, _ARRAY, _END_OF_ARRAY, _TEXT, _TYPE, _COUNT, _LONG = b"{}[]S$#L"

_read_length = struct.Struct(">cq").unpack_from
"""A length is marked as a long number, and takes nine bytes."""

_Found = tuple[Any, int]
"""A value, and the position behind it."""


def read(raw: bytes | bytearray) -> Any:
    """The value that a document holds.

    Raises
    ------
    ValueError
        It is not what XGBoost writes.
    """
    try:
        return _value(raw, 0)[0]
    except (LookupError, struct.error) as error:
        raise ValueError(f"not UBJSON as XGBoost writes it: {error!r}") from error


def _value(raw: bytes | bytearray, at: int) -> _Found:
    mark = raw[at]
    if mark == _ARRAY:
        return _array(raw, at + 1)
    if mark == _OBJECT:
        return _object(raw, at + 1)
    if mark == _TEXT:
        return _text(raw, at + 1)
    if mark in _CONSTANTS:
        return _CONSTANTS[mark], at + 1
    number = _NUMBERS[mark]
    return number.unpack_from(raw, at + 1)[0], at + 1 + number.size


def _text(raw: bytes | bytearray, at: int) -> _Found:
    _, length = _read_length(raw, at)
    end = at + 9 + length
    return raw[at + 9 : end].decode(), end


def _object(raw: bytes | bytearray, at: int) -> _Found:
    found = {}
    while raw[at] != _END_OF_OBJECT:
        name, at = _text(raw, at)
        found[name], at = _value(raw, at)
    return found, at + 1


def _array(raw: bytes | bytearray, at: int) -> _Found:
    if raw[at] == _TYPE:
        type_ = _TYPES[raw[at + 1]]
        _, length = _read_length(raw, at + 3)
        at += 12
        return numpy.frombuffer(raw, type_, length, at), at + length * type_.itemsize
    found = []
    if raw[at] == _COUNT:
        _, length = _read_length(raw, at + 1)
        at += 10
        for _ in range(length):
            one, at = _value(raw, at)
            found.append(one)
        return found, at
    while raw[at] != _END_OF_ARRAY:
        one, at = _value(raw, at)
        found.append(one)
    return found, at + 1
