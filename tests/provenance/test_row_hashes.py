"""Equal rows have equal hashes in whatever they lie, other rows others; targets do not count."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn.utils
import torch
import xgboost
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from tachograph.provenance import row_hashes, row_sources
from tachograph.provenance.row_hashes import RowHashes, hash_rows
from tachograph.provenance.row_values import NotHashed

ROWS = np.array([[0.0, 1.0, 2.5], [3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [7.0, 8.0, 9.0]])
LABELS = np.array([0, 1, 0, 1])
NAMES = ["a", "b", "c"]


def frame(rows: Any = ROWS) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=NAMES)


def same(one: RowHashes, two: RowHashes) -> bool:
    return one.digest == two.digest


class Held(Dataset[Any]):
    """A data set with samples in memory, as torchvision's are; counts how often it is asked."""

    def __init__(self, **held: Any) -> None:
        self.__dict__ |= held
        self.asked = 0

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return ROWS[index]


TENSOR = torch.from_numpy(ROWS)
SAME: dict[str, Any] = {
    "float32": ROWS.astype("float32"),
    "big endian": ROWS.astype(">f8"),
    "Fortran": np.asfortranarray(ROWS),
    "view": np.repeat(ROWS, 2, axis=1)[:, ::2],
    "objects": ROWS.astype(object),
    "shape": ROWS.reshape(4, 3, 1),
    "negative zero": np.where(ROWS == 0, -0.0, ROWS),
    "tensor": TENSOR,
    "half": TENSOR.half(),
    "bfloat16": TENSOR.bfloat16(),
    "parameter": torch.nn.Parameter(TENSOR),
    "masked": np.ma.masked_array(ROWS, mask=False),
    "Bunch": sklearn.utils.Bunch(data=ROWS, target=LABELS, feature_names=NAMES),
    "csr": scipy.sparse.csr_array(ROWS),
    "csc": scipy.sparse.csc_matrix(ROWS),
    "matrix": xgboost.DMatrix(ROWS, label=LABELS),
    "pandas": frame().astype({"a": "int64", "b": "float32"}),
    "index": frame().set_index(pd.Index([9, 8, 7, 6])),
    "polars": pl.from_pandas(frame()),
    "arrow": pa.Table.from_pandas(frame()),
    "x and y": (ROWS, LABELS),
    "x, y by name": {"x": ROWS, "y": LABELS, "sample_weight": LABELS},
    "inputs": {"a": ROWS[:, :1], "b": ROWS[:, 1:], "label": LABELS},
    "list of inputs": [ROWS[:, :1], ROWS[:, 1:]],
    "inputs and target": ([ROWS[:, :1], ROWS[:, 1:]], LABELS),
    "TensorDataset": TensorDataset(TENSOR, torch.from_numpy(LABELS)),
    "DataLoader": DataLoader(TensorDataset(TENSOR), shuffle=True),
    "Subset": Subset(TensorDataset(TENSOR.flip(0), TENSOR[:, 0]), [3, 2, 1, 0]),
    "ConcatDataset": ConcatDataset([TensorDataset(TENSOR[:1]), TensorDataset(TENSOR[1:])]),
    "picked from two": Subset(
        ConcatDataset([TensorDataset(TENSOR[2:]), TensorDataset(TENSOR[:2])]), [2, 3, 0, 1]
    ),
    "data and targets": Held(data=ROWS, targets=LABELS),
    "frame and labels": Held(frame=frame(), labels=LABELS.tolist()),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_rows_have_equal_hashes(name: str) -> None:
    """In all libraries and types that hold the same numbers."""
    assert same(hash_rows(SAME[name]), hash_rows(ROWS))


def test_every_value_and_every_place_counts() -> None:
    """Also the last bit, the order of the columns, their number, and a missing value."""
    rng = np.random.default_rng(0)
    base = hash_rows(ROWS)
    for place in np.ndindex(*ROWS.shape):
        for value in (np.nextafter(ROWS[place], 9e9), np.nan, -ROWS[place] - 1):
            other = ROWS.copy()
            other[place] = value
            assert hash_rows(other).rows_among(base) == (3, True)
    swapped = ROWS[:, [1, 0, 2]]
    assert hash_rows(swapped).rows_among(base)[0] == 1  # that of zeros alone
    assert hash_rows(np.hstack([ROWS, ROWS[:, :1] * 0])).rows_among(base)[0] == 0
    many = rng.integers(0, 4, (50_000, 12))
    assert hash_rows(many).distinct == len(np.unique(many, axis=0))
    large = np.arange(1 << 60, (1 << 60) + 1000)
    assert hash_rows(large).distinct == hash_rows(large.astype("u8")).distinct == 1000


def test_missing_values_are_equal() -> None:
    """NaN of any bits, None, and what pandas makes of them."""
    odd = np.array([0x7FF8000000000001], dtype="u8").view("f8")
    for data in (odd, np.array([None]), pd.Series([None], dtype="Int64"), pd.Series([None])):
        assert same(hash_rows(data), hash_rows(np.array([np.nan])))
    gaps = np.array([[np.nan, 0.0], [0.0, np.nan]])
    assert same(hash_rows(xgboost.DMatrix(gaps)), hash_rows(gaps))
    assert hash_rows(xgboost.DMatrix(gaps)).distinct == 2


def test_texts_dates_and_categories_count_by_value() -> None:
    """The same in pandas, Polars and Arrow."""
    table = pd.DataFrame({"t": ["x", "y", None], "n": [1, 2, 3]})
    expected = hash_rows(table)
    assert same(hash_rows(table.astype({"t": "category", "n": "Int64"})), expected)
    assert same(hash_rows(pl.from_pandas(table)), expected)
    assert same(hash_rows(pa.Table.from_pandas(table)), expected)
    assert same(hash_rows(np.array(["x", "y"])), hash_rows(["x", "y"]))
    assert hash_rows(table.assign(t=["x", "z", None])).rows_among(expected) == (2, True)
    when = pd.date_range("2020", periods=3)
    assert same(hash_rows(pd.Series(when)), hash_rows(pd.Series(when.tz_localize("UTC"))))
    assert hash_rows(["a", "b"]).rows_among(hash_rows([["a"], "b"])) == (1, True)


def test_samples_of_a_data_set_count_by_their_first_part() -> None:
    """Paths with classes, arrays with targets; the data set itself is asked for none."""
    files = Held(samples=[(f"{i}.png", i % 2) for i in range(4)], targets=[0, 1, 0, 1])
    relabelled = Held(samples=[(f"{i}.png", 9) for i in (3, 2, 1, 7)])
    assert hash_rows(relabelled).rows_among(hash_rows(files)) == (3, True)
    arrays = Held(items=[(row, 1) for row in ROWS])
    tensors = Held(items=[(row, 0) for row in TENSOR])
    assert same(hash_rows(arrays), hash_rows(tensors))
    assert hash_rows(arrays).distinct == 4
    assert files.asked == arrays.asked == 0


def test_a_subset_has_the_rows_that_were_picked() -> None:
    """And no others; of a subset of a subset too."""
    data = TensorDataset(TENSOR, TENSOR[:, 0])
    inner = Subset(Subset(data, [3, 1, 2]), [0, 0])
    assert hash_rows(ROWS).rows_among(hash_rows(Subset(data, [3, 1]))) == (2, True)
    assert same(hash_rows(inner), hash_rows(ROWS[[3, 3]]))


def test_many_columns_are_read_together() -> None:
    """Of one type; with the same hashes."""
    wide = pd.DataFrame(np.arange(4_000.0).reshape(4, -1))
    mixed = wide.astype({0: "int64"})
    assert same(hash_rows(wide), hash_rows(mixed))
    assert hash_rows(wide).bits == hash_rows(mixed).bits


def test_many_arrays_in_a_list_are_samples() -> None:
    """A model has no hundred inputs; of samples with a target the array counts."""
    images = [np.full((4, 4), number) for number in range(100)]
    assert hash_rows(images).rows == 100
    assert hash_rows([torch.from_numpy(one) for one in images[:60]]).rows_among(
        hash_rows(images)
    ) == (60, True)
    assert same(
        hash_rows([(image, number) for number, image in enumerate(images)]), hash_rows(images)
    )
    assert same(hash_rows(tuple(np.arange(3.0))), hash_rows([0, 1, 2]))


def test_rows_are_counted_with_their_repetitions() -> None:
    """In a split, and those of one that are in another."""
    train = np.concatenate([ROWS, ROWS[:2], ROWS[:1]])
    hashes = hash_rows(train)
    assert (hashes.rows, hashes.distinct, hashes.repeated) == (7, 4, 5 / 7)
    assert hash_rows(ROWS[[0, 0, 1]]).rows_among(hashes) == (3, True)
    assert hashes.rows_among(hash_rows(ROWS[:1])) == (3, True)


def test_of_many_rows_the_same_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an estimate is near the count, also against a small split that is kept whole."""
    monkeypatch.setattr(row_hashes, "KEPT", 10_000)
    rng = np.random.default_rng(1)
    train = rng.standard_normal((100_000, 2))
    half = hash_rows(train)
    assert len(half.hashes) == pytest.approx(10_000, rel=0.05)
    assert half.distinct == pytest.approx(100_000, rel=0.05)
    test = np.concatenate([train[::20], rng.standard_normal((4_000, 2))])
    count, is_exact = hash_rows(test).rows_among(half)
    assert not is_exact
    assert count == pytest.approx(5_000, rel=0.15)


def test_what_a_row_tells() -> None:
    """Columns of which most values differ tell much, others log2 of their values."""
    assert hash_rows(np.zeros((100, 5))).bits == 0
    assert hash_rows(np.arange(400).reshape(-1, 1) % 4).bits == pytest.approx(2)
    assert hash_rows(np.arange(400.0)).bits == 64
    assert hash_rows(scipy.sparse.csr_array(np.arange(400).reshape(-1, 1) % 4)).bits < 4


class Stream(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Any:
        raise AssertionError("nobody may ask")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (torch.ones(2, 2, device="meta"), "meta"),
        (Stream(), "stream"),
        (DataLoader(Held()), "makes its samples"),
        (np.float64(3), "not read"),
        (np.array(3), "no rows"),
        (np.ones((0, 3)), "empty"),
        ([object()], "object"),
        (iter([1]), "not read"),
        (xgboost.QuantileDMatrix(ROWS), "QuantileDMatrix"),
        ({"a": ROWS, "b": ROWS[:2]}, "different numbers"),
        (np.broadcast_to(np.float64(1), (1 << 20, 1 << 10)), "GiB"),
    ],
)
def test_what_cannot_be_read_says_why(data: Any, reason: str) -> None:
    """It is no row, a stream, elsewhere, or too large."""
    with pytest.raises(NotHashed, match=reason):
        hash_rows(data)


def test_data_stay_as_they_are_and_are_not_kept() -> None:
    """No warning, no number drawn, no change, no reference."""
    rows, matrix = ROWS.copy(), scipy.sparse.csc_array(ROWS)
    torch.manual_seed(0)
    np.random.seed(0)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (rows, matrix, xgboost.DMatrix(rows), np.array([np.inf, -np.inf, np.nan])):
            hash_rows(data)
    assert (rows == ROWS).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numbers).all()
    gone = weakref.ref(rows)
    del rows, data
    gc.collect()
    assert gone() is None


def test_targets_by_name() -> None:
    """Names of what is no feature."""
    assert all(row_sources.is_target(name) for name in ("y", "Labels", "sample_weight"))
    assert not row_sources.is_target("x")
