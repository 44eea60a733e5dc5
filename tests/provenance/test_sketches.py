"""A sketch tells how values are spread, tells no values that could be private, and stays small."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.provenance import digest, number_sketches, sketches
from tachograph.provenance.data import fingerprint
from tachograph.provenance.number_sketches import NumberSketch
from tachograph.provenance.value_sketches import ValueSketch

GENERATOR = np.random.default_rng(5)
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def sketch(data: Any) -> Any:
    """The one sketch of data, or its sketches by column."""
    document = fingerprint(data)
    return document.get("sketch") or document["column_sketches"]


def expected(values: Any) -> dict[str, Any]:
    """What numpy says of numbers."""
    present = np.asarray(values)[np.isfinite(values)]
    return {
        "mean": pytest.approx(present.mean(), rel=1e-8, abs=1e-8 * abs(present).max()),
        "std": pytest.approx(present.std(), rel=1e-8, abs=1e-8 * abs(present).max()),
        "min": present.min(),
        "max": present.max(),
        "quantiles": list(np.quantile(present, SHARES, method="inverted_cdf")),
    }


# ---------------------------------------------------------------------------- numbers


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32) | st.integers(-5, 5), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_numbers_are_what_numpy_says_however_they_come(values: Any, cuts: list[int]) -> None:
    """With missing and infinite values, in pieces of any length."""
    array = np.array(values, dtype="f8")
    made = NumberSketch(len(array), array.dtype)
    start = 0
    for length in [*cuts, len(array)]:
        made.add(array[start : start + length])
        made._work()  # as if the piece had been long
        start += length
    (document,) = made.documents()
    assert document["missing_values"] == np.isnan(array).sum()
    assert document.get("infinite", 0) == np.isinf(array).sum()
    finite = array[np.isfinite(array)]
    assert document["distinct"] == len(np.unique(finite))
    if len(finite):
        assert {name: document[name] for name in expected(array)} == expected(array)
    else:
        assert document["mean"] is document["quantiles"] is None


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "i8", "u2", "u8"])
def test_every_type_of_number_is_exact_at_its_ends(dtype: str) -> None:
    """The least and the greatest are told as they are, also beyond what a float holds."""
    kind = np.dtype(dtype)
    limits: Any = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    values = np.array([limits.max, limits.min, 3, 0], dtype=kind)
    document = sketch(values)
    assert kind.type(document["max"]) == limits.max
    assert kind.type(document["min"]) == limits.min
    assert fingerprint(values.astype(kind.newbyteorder("=")))["sketch"] == document


def test_columns_of_an_array_are_told_apart() -> None:
    """Up to 50 of them, in any memory layout and from any library."""
    array = GENERATOR.normal(size=(400, 3)) * [1, 10, 1e6] + [0, 5, -1e6]
    array[7, 1] = np.nan
    document = fingerprint(array)
    assert document["more_columns"] == 0
    assert list(document["column_sketches"]) == ["0", "1", "2"]
    for column in range(3):
        found = document["column_sketches"][str(column)]
        assert {name: found[name] for name in expected(array[:, column])} == expected(
            array[:, column]
        )
        assert found["missing_values"] == int(column == 1)
    same = [np.asfortranarray(array), torch.from_numpy(array), np.repeat(array, 2, 1)[:, ::2]]
    for other in same:
        assert fingerprint(other)["column_sketches"] == document["column_sketches"]
    frame = fingerprint(pd.DataFrame(array))["column_sketches"]
    assert frame == document["column_sketches"]


@pytest.mark.parametrize("shape", [(40, 51), (40, 5, 2)], ids=["wide", "of more dimensions"])
def test_of_wide_arrays_all_values_have_one_sketch(shape: tuple[int, ...]) -> None:
    """And distinct values are not counted."""
    array = GENERATOR.integers(0, 255, shape).astype("u1")
    document = fingerprint(array)
    assert "column_sketches" not in document
    found = document["sketch"]
    assert {name: found[name] for name in expected(array)} == expected(array)
    assert found["distinct"] is None
    narrow = fingerprint(GENERATOR.integers(0, 255, (40, 50)))
    assert len(narrow["column_sketches"]) == 50


def test_quantiles_of_many_values_are_close_and_meet_every_phase() -> None:
    """They are of a part of the values, which is not always at the same place of a period."""
    count = 6 * number_sketches._SAMPLE
    for period in (2, 3, 4, 5, 8, 10, 16, 100):
        found = sketch(np.arange(count) % period)["quantiles"]
        truth = [math.ceil(share * period) - 1 for share in SHARES]
        assert found == pytest.approx(truth, abs=max(1, period * 0.01)), period
    values = GENERATOR.normal(size=count).astype("f4")
    assert sketch(values)["quantiles"] == pytest.approx(np.quantile(values, SHARES), abs=0.02)
    assert sketch(values)["distinct"] is None


def test_sums_do_not_show_the_noise_of_rounding() -> None:
    """A column that was centred has the mean 0, whoever added it up."""
    values = GENERATOR.normal(size=10_001)
    values -= values.mean()
    assert sketch(values)["mean"] == sketch(values[::-1])["mean"] == 0
    tiny, huge = sketch(values * 1e-200), sketch(np.full(3, 1.7e308))
    assert tiny["std"] == pytest.approx(values.std() * 1e-200)
    assert huge["max"] == 1.7e308
    assert huge["mean"] in (None, 1.7e308)


def test_tensors_of_types_that_numpy_lacks_have_sketches() -> None:
    """Halves of Google are read as single floats; complex numbers have none."""
    assert sketch(torch.tensor([1.5, 2.5]).bfloat16())["mean"] == 2
    assert sketch(np.array([1.5, 2.5], dtype=ml_dtypes.bfloat16))["mean"] == 2
    assert "sketch" not in fingerprint(torch.ones(3, dtype=torch.complex64))
    assert "sketch" not in fingerprint(np.ones(3, dtype=complex))


def test_a_sparse_matrix_tells_of_its_stored_values() -> None:
    """What is not stored has no part in it."""
    matrix = scipy.sparse.csr_array(np.array([[0, 2.0], [4.0, 0]]))
    assert (sketch(matrix)["mean"], sketch(matrix)["min"]) == (3, 2)


def test_a_matrix_of_xgboost_tells_of_features_and_labels() -> None:
    """What it does not store is missing."""
    array = np.array([[1.0, np.nan], [3.0, 8.0], [5.0, np.nan]])
    matrix = xgboost.DMatrix(
        array,
        label=[
            0,
            1,
            1,
        ][:3],
        feature_names=["age", "pay"],
    )
    document = fingerprint(matrix)
    assert document["column_sketches"]["age"]["mean"] == 3
    assert document["column_sketches"]["pay"]["missing_values"] == 2
    assert document["column_sketches"]["pay"]["max"] == 8
    assert document["label"]["sketch"]["distinct"] == 2
    wide = fingerprint(xgboost.DMatrix(np.where(np.eye(60) > 0, np.nan, 1.0)))
    assert wide["sketch"]["missing_values"] == 60


# ---------------------------------------------------------------------------- categories


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 1, 0, 1, 1]),
        np.array([0, 1, 1, 0, 1, 1], dtype="f4"),
        torch.tensor([0, 1, 1, 0, 1, 1]),
        [0, 1, 1, 0, 1, 1],
        np.array([False, True, True, False, True, True]),
        torch.tensor([False, True, True, False, True, True]),
        [False, True, True, False, True, True],
        np.array(list("abbabb")),
        np.array(list("abbabb"), dtype=object),
        list("abbabb"),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', type(labels[0]))}",
)
def test_classes_of_labels_are_counted(labels: Any) -> None:
    """The target's distribution."""
    found = sketch(labels)
    assert found["distinct"] == 2
    assert list(found["values"].values()) == [4, 2]
    first = str(np.asarray(labels).tolist()[1])
    assert next(iter(found["values"])) == first


def test_classes_are_counted_over_all_pieces() -> None:
    """Of more labels than are read at once."""
    labels = np.arange(400_000) % 8 // 3
    for data in (labels, labels.astype("f4"), labels.tolist(), pd.DataFrame({"y": labels})):
        found = sketch(data)
        counts = found.get("y", found)["values"]
        assert list(counts.values()) == [150_000, 150_000, 100_000]


def test_columns_of_frames_are_told_by_kind() -> None:
    """Alike in pandas, Polars and Arrow: numbers with gaps, texts, truth values, dates."""
    day = datetime.datetime(2024, 5, 1)
    rows = {
        "age": [30, None, 50, 30],
        "city": ["Ulm", "Bonn", None, "Ulm"],
        "member": [True, False, True, True],
        "since": [day, None, day + datetime.timedelta(days=2), day],
        "note": ["quite a long remark on patient 17", "b", "c", "d"],
        "price": [decimal.Decimal("1.5"), None, decimal.Decimal("2.5"), decimal.Decimal("2.5")],
    }
    table = pa.table(rows)
    pandas = pd.DataFrame(rows).astype({"age": "Int64", "member": "bool"})
    for frame in (pandas, pl.from_arrow(table), table):
        found = sketch(frame)
        age, city, since, note = (found[name] for name in ("age", "city", "since", "note"))
        assert (age["missing_values"], age["mean"], age["max"]) == (1, 36.6666667, 50)
        assert age["quantiles"] == [30, 30, 30, 50, 50]
        assert (city["missing_values"], city["distinct"]) == (1, 2)
        assert city["length"] == {"mean": pytest.approx(10 / 3), "min": 3, "max": 4}
        assert found["member"]["values"] == {"True": 3, "False": 1}
        assert since["missing_values"] == 1
        assert since["min"].startswith("2024-05-01T00:00")
        assert since["max"].startswith("2024-05-03T00:00")
        assert (note["distinct"], note["length"]["max"]) == (4, 33)
        assert (found["price"]["min"], found["price"]["max"]) == (1.5, 2.5)
        assert "patient" not in json.dumps(found)


def test_what_is_missing_among_plain_values_is_counted() -> None:
    """None, and NaN also among texts."""
    for values in (["a", math.nan, None], [1.5, math.nan, None], [math.nan, None, 1]):
        for data in (values, np.array(values, dtype=object)):
            assert sketch(data)["missing_values"] == 2
            assert sketch(data)["distinct"] == 1


def test_texts_that_are_no_categories_are_never_told() -> None:
    """Many, long, or hardly repeated ones; and columns with a secret name not even by counts."""
    names = [f"Person Number{number}" for number in range(30)]
    frames = [
        pd.DataFrame({"c": names * 40}),
        pd.DataFrame({"c": [f"{name} " + "x" * 40 for name in names[:3]] * 40}),
        pd.DataFrame({"c": names[:3]}),
        pd.DataFrame({"password": names[:2] * 40}),
        pd.DataFrame({"c": ["Person", ["Person"]]}),
        pd.DataFrame({"c": [b"Person"] * 9}),
        pd.DataFrame({"c": [object(), "Person"]}),
    ]
    for frame in frames:
        assert "Person" not in json.dumps(fingerprint(frame)), frame
        assert "Person" not in json.dumps(fingerprint(pa.table({"c": names * 9})))
    secret = f"ghp_{'a1' * 18}"
    found = sketch(pd.DataFrame({"c": ["plain", secret, secret, "plain"], "d": list("aabb")}))
    assert secret not in json.dumps(found)
    password = sketch(pd.DataFrame({"db_password": [1234] * 9, "n": [1] * 9}))
    assert password["db_password"] == {"redacted": True}
    assert sketch(pd.DataFrame({"c": names * 40}))["c"]["distinct"] == 30


def test_more_distinct_values_than_are_counted_are_no_number() -> None:
    """Up to 1,000 they are counted."""
    for values in (np.arange, lambda n: [f"{i:04}" for i in range(n)], lambda n: list(range(n))):
        assert sketch(values(sketches.DISTINCT))["distinct"] == sketches.DISTINCT
        assert sketch(values(sketches.DISTINCT + 1))["distinct"] is None
        assert sketch(np.tile(values(sketches.DISTINCT), 200))["distinct"] == sketches.DISTINCT
    slowly = np.arange(sketches.DISTINCT + 500).repeat(200)  # few in each piece that is read
    assert sketch(slowly)["distinct"] is None


def test_dates_of_numpy_have_ends() -> None:
    """Missing ones are counted; spans of time alike."""
    dates = np.array(["2024-05-01", "NaT", "2020-01-01"], dtype="M8[D]")
    assert sketch(dates) == {"missing_values": 1, "min": "2020-01-01", "max": "2024-05-01"}
    assert sketch(np.array(["NaT"], dtype="M8[s]"))["max"] is None
    assert sketch(dates[:1] - dates[2:])["min"] == "1582 days"


# ---------------------------------------------------------------------------- bounds


def test_the_document_is_bounded() -> None:
    """Of many columns 100 have a sketch, each below 2 kB; names that occur twice are kept apart."""
    categories = np.tile([f"{'long category':>38}{number:02}" for number in range(20)], 2)
    frame = pd.concat([pd.DataFrame(categories), pd.DataFrame(np.zeros((40, 129)))], axis=1)
    frame.columns = ["x"] * 130
    document = fingerprint(frame)
    assert (len(document["column_sketches"]), document["more_columns"]) == (100, 30)
    assert "x (2)" in document["column_sketches"]
    assert len(document["column_sketches"]["x"]["values"]) == 20
    assert max(len(json.dumps(one)) for one in document["column_sketches"].values()) < 2_000


def test_large_content_is_sketched_from_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the rows that the digest is of, and it says so."""
    monkeypatch.setattr(digest, "EXACT_BYTES", 1 << 16)
    monkeypatch.setattr(digest, "SAMPLE_BYTES", 1 << 14)
    large = GENERATOR.normal(size=100_000)
    rows = np.concatenate([large[a:b] for a, b in digest.spans(100_000, 8, exact=False)])
    document = fingerprint(large)
    assert document["sketch_of"] == "sample"
    assert {name: document["sketch"][name] for name in expected(rows)} == expected(rows)
    frame = fingerprint(pd.DataFrame({"a": large, "t": large.astype("U4").astype(object)}))
    assert frame["sketch_of"] == "sample"
    assert fingerprint(large[:10])["sketch_of"] == "content"


def test_a_sketch_that_fails_costs_neither_digest_nor_other_sketches() -> None:
    """It says the kind of the failure, and nothing of the values."""
    when = datetime.date(2020, 1, 1)
    other = datetime.time(3)
    frame = pd.DataFrame({"bad": [when, other], "good": [1, 2]})
    document = fingerprint(frame)
    assert document["digest"]
    assert document["column_sketches"]["bad"] == {"failed": "TypeError"}
    assert document["column_sketches"]["good"]["mean"] == 1.5
    unreadable = fingerprint(pd.DataFrame({"bad": [object(), 1], "good": [1, 2]}))
    assert unreadable["digest"] is None
    assert unreadable["column_sketches"]["good"]["mean"] == 1.5
    assert unreadable["column_sketches"]["bad"] == {}


def test_the_values_of_a_sketch_are_not_kept() -> None:
    """Once it has its document, it holds no piece of the data."""
    pieces = np.zeros(10)
    made = NumberSketch(10, pieces.dtype)
    made.add(pieces)
    made.documents()
    assert made._waiting == made._kept == []
    assert ValueSketch(3).documents() == [{"missing_values": 0, "distinct": 0}]
