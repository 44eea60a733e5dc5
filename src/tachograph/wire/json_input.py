"""JSON from outside: read so that neither its depth nor the number of its values can hurt.

Knows no batch and no query.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

from tachograph.errors import TooLarge, WireError

MOST_DEPTH = 64
"""Objects and lists inside each other; what reads a document later may have less of a stack."""

MOST_VALUES = 1_000_000
"""Values, names and brackets of one document: each takes some 100 bytes when it is read."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # also one that never ends: linear
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")  # as signed bytes: deeper, and back


def read_json(text: bytes) -> Any:
    """A JSON document.

    Parameters
    ----------
    text : bytes
        In UTF-8.

    Raises
    ------
    WireError
        It is no JSON, or nested more than `MOST_DEPTH` times.
    TooLarge
        It has more than `MOST_VALUES` values.
    """
    _check_size(text)
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"this is no JSON: {error}"[:200]) from error


def _check_size(text: bytes) -> None:
    opened = text.count(b"[") + text.count(b"{")
    values = opened + text.count(b",")
    if opened <= MOST_DEPTH and values <= MOST_VALUES:
        return
    bare = _STRING.sub(b"", text)  # seldom: what is said inside of texts does not count
    if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > MOST_VALUES:
        raise TooLarge(f"a document has at most {MOST_VALUES} values; send less at once")
    steps = memoryview(bare.translate(_STEPS, _NO_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > MOST_DEPTH:
        raise WireError(f"objects and lists are nested more than {MOST_DEPTH} times")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not in JSON")
