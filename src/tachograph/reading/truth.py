"""Comparing values and joining comparisons, where a value may be missing: true, false, unknown.

Knows no grammar and no store.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from tachograph.reading.facts import Facts

Test = Callable[[Facts], bool | None]
"""From the facts of a run to true, false, or None for unknown, as SQL has it."""


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right or (left != left and right != right))


def _different(left: Any, right: Any) -> bool:
    return not _equal(left, right)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool | None]:
    def test(left: Any, right: Any) -> bool | None:
        for kind in (int | float, str, tuple):  # a tuple is a version
            if isinstance(left, kind) and isinstance(right, kind):
                return compare(left, right)
        return None

    return test


COMPARE: dict[str, Callable[[Any, Any], bool | None]] = {
    "==": _equal,
    "!=": _different,
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "in": lambda value, options: any(_equal(value, option) for option in options),
    "like": lambda value, pattern: bool(pattern.fullmatch(value)) if is_text(value) else None,
}
"""Sign to the test of two values that are both there; None where they cannot be compared."""


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def negation(test: Test) -> Test:
    """Not; unknown stays unknown."""

    def negated(facts: Facts) -> bool | None:
        truth = test(facts)
        return None if truth is None else not truth

    return negated


def all_of(tests: Sequence[Test]) -> Test:
    """And; false wins over unknown."""

    def conjunction(facts: Facts) -> bool | None:
        result: bool | None = True
        for test in tests:
            truth = test(facts)
            if truth is False:
                return False
            if truth is None:
                result = None
        return result

    return tests[0] if len(tests) == 1 else conjunction


def any_of(tests: Sequence[Test]) -> Test:
    """Or; true wins over unknown."""
    if len(tests) == 1:
        return tests[0]
    return negation(all_of([negation(test) for test in tests]))
