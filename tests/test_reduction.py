"""A reduced series: what is kept of it, in which order, and that nothing that matters is hidden."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.backends.base import Query
from tachograph.backends.memory import MemoryBackend
from tachograph.errors import QueryError
from tachograph.query import Store
from tachograph.reading import point_query
from tachograph.reading.reduction import reduce
from tachograph.records import split_special
from tachograph.table import Table
from tachograph.testing.builders import START, make_batch, make_block

_NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]),
)


def series(values: list[Any]) -> Table:
    """Points that tell by their time which they are."""
    return Table({"step": [*range(len(values))], "time": [*range(len(values))], "value": values})


@given(st.lists(_NUMBERS, max_size=300), st.integers(2, 60))
def test_points_are_some_of_the_series_in_their_order(values: list[float], count: int) -> None:
    """At most `count` points, each with all its columns, first and last among them."""
    points = series(values)
    kept = reduce(points, count)
    assert len(kept) <= count
    assert list(kept["time"]) == sorted(set(kept["time"]))
    assert repr(list(kept)) == repr([row for row in points if row["time"] in set(kept["time"])])
    if values:
        assert {0, len(values) - 1} <= set(kept["time"])


@given(st.lists(_NUMBERS, min_size=1, max_size=300), st.integers(7, 60))
def test_extremes_and_every_kind_of_non_finite_value_stay(values: list[float], count: int) -> None:
    """What a reader looks for is never hidden: the least, the greatest, NaN and infinities."""
    kept = reduce(series(values), count)["value"]
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        assert min(finite) in kept
        assert max(finite) in kept
    assert {str(v) for v in values if not math.isfinite(v)} <= {str(v) for v in kept}


def test_each_stretch_keeps_its_own_extremes() -> None:
    """A spike stays where it was, however many points lie around it."""
    values = [float(n % 7) for n in range(10_000)]
    for at in (1234, 5678, 9012):
        values[at] = 1000.0
        values[at + 400] = -1000.0
    kept = reduce(series(values), 100)
    assert {1234, 1634, 5678, 6078, 9012, 9412} <= set(kept["time"])
    assert len(kept) > 90  # the room is used


def test_a_stretch_of_nan_begins_where_it_began_and_lasts() -> None:
    """Values that turned NaN for good are seen to have done so, over all of the rest."""
    values = [1.0] * 500 + [math.nan] * 500
    kept = reduce(series(values), 40)
    nan = [time for time, value in zip(kept["time"], kept["value"], strict=True) if value != value]
    assert 500 <= nan[0] < 600
    assert len(nan) > 5
    assert nan[-1] == 999


def test_one_nan_costs_no_more_than_its_own_place() -> None:
    """The stretches stay as short as they would be without it."""
    values = [float(n % 7) for n in range(10_000)]
    values[5000] = math.nan
    kept = reduce(series(values), 100)
    assert 5000 in kept["time"]
    assert len(kept) > 90


def test_where_there_is_room_for_few_a_nan_goes_before_an_extreme() -> None:
    """Three points: the first, the last, and what is wrong with the series."""
    kept = reduce(series([1.0, 9.0, math.nan, -9.0, 2.0]), 3)
    assert list(kept["time"]) == [0, 2, 4]


def test_values_with_a_column_of_their_own_for_what_is_not_finite() -> None:
    """As a server sends them; NULL without a word is a NaN."""
    values = [math.sin(n) for n in range(1000)]
    values[300], values[600] = math.nan, math.inf
    numbers, special = zip(*map(split_special, values), strict=True)
    points = Table({"time": [*range(1000)], "value": numbers, "special": special})
    expected = reduce(series(values), 20)["time"]
    assert reduce(points, 20)["time"] == expected
    assert {300, 600} <= set(expected)
    values[600] = math.nan
    empty = [None if value != value else value for value in values]
    assert reduce(series(empty), 20)["time"] == reduce(series(values), 20)["time"]


def test_a_short_series_is_left_as_it_is() -> None:
    """Nothing is cut that has room."""
    points = series([1.0, 2.0, 3.0])
    assert reduce(points, 3) == points
    assert reduce(series([]), 2) == series([])


def test_fewer_than_two_points_are_refused() -> None:
    """A series has a first and a last point."""
    with pytest.raises(QueryError, match="2 points or more, not to 1"):
        reduce(series([1.0, 2.0, 3.0]), 1)


# ---------------------------------------------------------------------------- of a store


class Asked(MemoryBackend):
    """A store that remembers which tables were read."""

    def __init__(self, url: str) -> None:
        super().__init__(url, create=True)
        self.tables: list[str] = []

    def read(self, query: Query) -> Table:
        """Read rows."""
        self.tables.append(query.table)
        return super().read(query)


@pytest.fixture
def store() -> Iterator[Store]:
    """A run with a long loss that two ranks have, and a short one with a NaN in two contexts."""
    loss = [math.sin(n / 50) + (n == 1500) * 9 for n in range(3000)]
    short = {"short": [1.0, math.nan, -0.0]}
    blocks = [
        make_block("r", {"loss": loss}),
        make_block("r", {"loss": [0.0] * 10}, rank=1, seqs=range(3000, 3010)),
        make_block("r", short, seqs=range(3010, 3013), steps=[2, 1, None]),
        make_block("r", short, seqs=range(3013, 3016), context='{"phase":"val"}'),
    ]
    runs = [{"run_id": "r", "root_id": "r", "status": "finished", "started_at": START, "seq": 0}]
    backend = Asked(f"memory://{uuid.uuid4()}")
    backend.write(make_batch("w", 0, 3016, blocks=blocks, runs=runs))
    with Store(backend) as opened:
        yield opened


def test_series_comes_reduced_where_that_is_asked_for(store: Store) -> None:
    """The same points as those of the whole series that `reduce` chooses."""
    whole = store.series("r", "loss")
    few = store.series("r", "loss", points=50)
    assert few == reduce(whole, 50)
    assert len(few) == 50
    assert 1500 in few["step"]
    both = store.series("r", "loss", rank="all", points=50)
    assert both.columns == (*few.columns, "rank")


def test_curves_are_the_series_one_by_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read together or each for itself: the same points."""
    rows = list(store.metrics_of("r"))
    together = store.curves("r", rows, 60)
    assert len(together) == len(rows) == 4
    for (name, context, rank), points in together.items():
        alone = store.series("r", name, context=context, rank=rank, points=60)
        assert repr(list(points)) == repr(list(alone))
    # Names, contexts and ranks that are asked for together fit others, too.
    some = [row for row in rows if row["rank"] == 1 or "val" in row["context"]]
    for key, points in store.curves("r", some, 60).items():
        assert repr(list(points)) == repr(list(together[key]))
    monkeypatch.setattr(point_query, "TOGETHER", 10)
    for key, points in store.curves("r", rows, 60).items():
        assert repr(list(points)) == repr(list(together[key]))


def test_short_curves_are_read_with_one_question(store: Store) -> None:
    """A page about a run with many metrics asks a store that is far away few times."""
    rows = list(store.metrics_of("r"))
    run = store.resolve("r")
    assert isinstance(store.backend, Asked)
    store.backend.tables.clear()
    store.curves(run, rows, 60)
    assert store.backend.tables == ["metrics"]
