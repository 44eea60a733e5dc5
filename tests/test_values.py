"""Any value becomes JSON that every store can keep, and nothing raises on the way."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import gc
import json
import math
import pathlib
import subprocess
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.values import (
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_TEXT,
    canonical_json,
    flatten,
    plain,
    qualified_name,
)


class Color(enum.Enum):
    """An enum of mixed values."""

    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    """An enum that is an int."""

    HIGH = 3


class Mode(str, enum.Enum):  # noqa: UP042 - the older form
    """An enum that is a str."""

    FAST = "fast"


@dataclasses.dataclass
class Settings:
    """A dataclass."""

    rate: float
    layers: tuple[int, ...]


class Broken:
    """An object of which nothing works."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __str__(self) -> str:
        raise RuntimeError("no str")


class BrokenMapping(Mapping[str, int]):
    """A mapping that fails when it is read."""

    def __getitem__(self, key: str) -> int:
        raise RuntimeError("gone")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("gone")

    def __len__(self) -> int:
        return 1


class LongRepr:
    """An object with a long repr."""

    def __repr__(self) -> str:
        return "x" * (MAX_TEXT + 5)


def a_function() -> None:
    """Something to name."""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def is_plain(value: Any) -> bool:
    """Whether only the very types of JSON are in it, with no NaN and no broken text."""
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is str:
        return bool(value.encode()) or value == ""
    return value is None or type(value) in (bool, int)


# ---------------------------------------------------------------------------- plain


@given(json_values)
def test_what_json_can_hold_is_kept(value: Any) -> None:
    """JSON values without NaN come back equal from the text."""
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    if "nan" not in text and "inf" not in text:
        assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.int64(7), 7),
        (numpy.bool_(True), True),
        (numpy.str_("text"), "text"),
        (numpy.float64("nan"), "nan"),
        (numpy.array(2.5), 2.5),
        (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (numpy.zeros((5, 7)), {"type": "numpy.ndarray", "shape": [5, 7], "dtype": "float64"}),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (-0.0, -0.0),
        (True, True),
        (Color.RED, "red"),
        (Color.PAIR, [1, 2]),
        (Level.HIGH, 3),
        (Mode.FAST, "fast"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset("ba"), ["a", "b"]),
        ((1, (2, [3])), [1, [2, [3]]]),
        (Settings(0.1, (2, 3)), {"rate": 0.1, "layers": [2, 3]}),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (b"secret bytes", "<12 bytes>"),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "(1, 2)": "c"}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (collections.OrderedDict(b=1), {"b": 1}),
        (int, "int"),
        (collections.OrderedDict, "collections.OrderedDict"),
        (len, "len"),
        (math, "math"),
        (functools.partial(len, "x"), "partial(len)"),
        (numpy.dtype("float32"), "dtype('float32')"),
        (10**30, 10**30),
    ],
)
def test_value_keeps_its_meaning(value: Any, expected: Any) -> None:
    """Scalars, containers, enums, dataclasses, paths, dates, arrays and functions."""
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert is_plain(found)


def test_functions_are_named() -> None:
    """A function is its module and name, a lambda too."""
    assert plain(a_function) == f"{__name__}.a_function" == qualified_name(a_function)
    assert plain(lambda: 0).endswith("<lambda>")


def test_tensors_of_frameworks_are_scalars_or_shapes() -> None:
    """torch, jax and tensorflow: 0-d and small ones by value, others by shape."""
    code = """
import torch
from tachograph.values import plain
assert plain(torch.tensor(1.5, requires_grad=True)) == 1.5
assert plain(torch.tensor([1, 2])) == [1, 2]
assert plain(torch.zeros(4, 5)) == {
    "type": "torch.Tensor", "shape": [4, 5], "dtype": "torch.float32"}
assert plain(torch.tensor(float("nan"))) == "nan"
assert plain(torch.float32) == "torch.float32"
assert plain(torch.Size([1, 2])) == [1, 2]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_tensors_of_tensorflow_and_jax_are_scalars() -> None:
    """Eager tensors, variables and jax arrays, without an `item` method of their own or with."""
    code = """
import jax.numpy, tensorflow, keras
from tachograph.values import plain
assert plain(jax.numpy.float32(1.5)) == 1.5
assert plain(tensorflow.constant(1.5)) == 1.5
assert plain(tensorflow.constant([1, 2])) == [1, 2]
assert plain(tensorflow.Variable(2.0)) == 2.0
assert plain(keras.Variable(3.0)) == 3.0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, capture_output=True)


def test_data_frames_are_shapes_not_data() -> None:
    """A frame that is passed as a parameter leaves none of its values in the record."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"patient": ["secret"] * 30})
    found = plain(frame)
    assert found["shape"] == [30, 1]
    assert "secret" not in canonical_json(frame)


def test_broken_objects_become_some_text() -> None:
    """What raises on every touch still has JSON, alone and inside of containers."""
    broken = Broken()
    for value in (broken, [broken], {broken}, {"a": broken}, {broken: 1}, BrokenMapping()):
        assert is_plain(plain(value))
        assert canonical_json(value)
    for path in flatten({broken: {broken: 1}}):
        assert is_plain(path)


def test_long_texts_and_long_lists_are_cut() -> None:
    """A cut says how much is left out."""
    assert plain("x" * (MAX_TEXT + 5)).endswith("… 5 more characters")
    assert plain(LongRepr()).endswith("… 5 more characters")
    assert plain("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert plain([0] * (MAX_ITEMS + 3))[MAX_ITEMS:] == ["… 3 more"]
    found = plain({str(i): i for i in range(MAX_ITEMS + 3)})
    assert (len(found), found["…"]) == (MAX_ITEMS + 1, "3 more")


def test_nesting_has_an_end() -> None:
    """What is too deep, or holds itself, becomes text instead of a stack overflow."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert is_plain(plain(deep))
    endless: dict[str, Any] = {}
    endless["self"] = endless
    assert is_plain(plain(endless))
    value: Any = "bottom"
    for _ in range(MAX_DEPTH):
        value = [value]
    assert "bottom" in canonical_json(value)


def test_huge_integers_are_text() -> None:
    """An integer with more digits than Python prints does not raise."""
    assert canonical_json(10**5000).startswith('"0x')
    assert canonical_json(-(10**5000)).startswith('"-0x')


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", "é\ud83d"])
def test_lone_surrogates_are_escaped_everywhere(text: str) -> None:
    """Names of files that are not UTF-8 can be stored: as value, key, path, in a repr."""
    for value in (text, {text: text}, [text], pathlib.PurePosixPath(text), {(text,): 1}):
        assert is_plain(plain(value))
        canonical_json(value).encode()
    for path in flatten({text: {text: 1}}):
        path.encode()


def test_nothing_is_kept_alive() -> None:
    """The plain value holds no reference to what it was made of."""

    class Model:
        weights: tuple[int, ...] = ()

    class Text(str):
        __slots__ = ("__weakref__",)

    model, text = Model(), Text("abc")
    seen = [weakref.ref(model), weakref.ref(text)]
    kept = plain({"model": model, "text": text, "method": [model.__init__]})
    del model, text
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
    assert is_plain(kept)


# ---------------------------------------------------------------------------- canonical_json


def test_canonical_json_has_one_text_for_one_value() -> None:
    """Keys are sorted, there are no spaces, text stays readable."""
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})
    assert canonical_json({3, 2, 1}) == canonical_json({1, 2, 3})


# ---------------------------------------------------------------------------- flatten


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ({"a": {"b": {"c": 1}}, "d": [1, {"e": 2}]}, {"a.b.c": 1, "d": [1, {"e": 2}]}),
        ({"a": {}}, {"a": {}}),
        ({1: {None: 2}}, {"1.None": 2}),
    ],
)
def test_flatten_gives_dotted_paths(values: Any, expected: Any) -> None:
    """Nested mappings become paths; lists and empty mappings stay values."""
    assert flatten(values) == expected


def test_flatten_starts_from_a_prefix() -> None:
    """Several mappings can share one namespace."""
    assert flatten({"a": {"b": 1}}, "model") == {"model.a.b": 1}


def test_flatten_has_an_end() -> None:
    """A mapping that holds itself is cut off, not followed for ever."""
    endless: dict[str, Any] = {"x": 1}
    endless["self"] = endless
    flat = flatten(endless)
    assert flat["x"] == 1
    assert len(flat) < 100


def test_what_holds_itself_is_not_followed() -> None:
    """A tree whose nodes know their parent has finitely many values."""
    tree: dict[str, Any] = {"nodes": {}}
    for number in range(8):
        tree["nodes"][str(number)] = {"parent": tree, "list": [tree]}
    assert flatten(tree)["nodes.0.parent"] == "<circular>"
    assert plain(tree)["nodes"]["0"] == {"parent": "<circular>", "list": ["<circular>"]}
    shared = [1]
    assert plain([shared, shared]) == [[1], [1]]
