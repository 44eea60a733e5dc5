"""The law behind the laws: any store, fed in pieces, equals the plain model fed at once."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tachograph.backends.base import Backend
from tachograph.records import Batch, MetricBlock, Row, Series
from tachograph.registry import backend_class
from tachograph.testing.builders import START, dump, make_batch
from tachograph.testing.fixtures import StoreFixtures

Record = tuple[str, dict[str, Any]]

RUN_IDS = ("r1", "r2")

small = st.integers(0, 3)
numbers = st.floats() | st.sampled_from([0.0, -0.0, 1.5])
numbers = numbers.filter(lambda value: not 1e300 < abs(value) < float("inf"))  # no mean overflows
optional_text = st.sampled_from([None, "x", "y"])
changes: dict[str, Any] = {"changed_at": st.integers(START, START + 5)}
deletes: dict[str, Any] = changes | {"deleted": st.sampled_from([0, 0, 0, 1])}


def _rows(table: str, **columns: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    fixed: dict[str, Any] = {"run_id": st.sampled_from(RUN_IDS)}
    return st.tuples(st.just(table), st.fixed_dictionaries(fixed | columns))


record: st.SearchStrategy[Record] = st.one_of(
    _rows(
        "metrics",
        values=st.dictionaries(st.sampled_from("abc"), numbers, min_size=1),
        attempt=st.integers(1, 3),
        rank=st.integers(0, 1),
        step=st.none() | small,
        epoch=st.none() | st.just(0.5),
    ),
    _rows("runs", name=optional_text, status=optional_text, **deletes),
    _rows("attempts", attempt=st.integers(1, 3), first_step=st.none() | small, **changes),
    _rows("tags", key=st.sampled_from("ab"), value=optional_text, **deletes),
    _rows("params", path=st.sampled_from("ab"), value=st.sampled_from(["1", '"x"']), **changes),
    _rows("events", message=optional_text),
    _rows("tensors", name=st.just("w"), mean=st.just(0.5), step=small),
)
history = st.lists(record, max_size=25)


def batch_of(writer: str, first: int, records: list[Record], prefix: str) -> Batch:
    """The records of a writer from number `first` on, as a drain would batch them."""
    blocks: dict[Series, list[Any]] = {}
    tables: dict[str, list[Row]] = {}
    for seq, (table, columns) in enumerate(records, first):
        row = columns | {"run_id": prefix + columns["run_id"], "seq": seq}
        if table == "metrics":
            names = tuple(row["values"])
            series = Series(row["run_id"], names, "{}", row["rank"], row["attempt"])
            point = (seq, START + seq, row["step"], row["epoch"], tuple(row["values"].values()))
            blocks.setdefault(series, []).append(point)
        else:
            tables.setdefault(table, []).append(row)
    packed = [MetricBlock.pack(series, rows) for series, rows in blocks.items()]
    last = first + len(records)
    return make_batch(writer, first, last, blocks=packed, **tables)  # type: ignore[arg-type]


class ModelLaws(StoreFixtures):
    """Splits, repeats, overlaps, interleaving and reopening leave no trace."""

    examples = 40
    """How many random histories are tried."""

    def test_store_equals_the_model(self, backend: Backend, backend_url: str) -> None:
        """Random histories in random pieces read as the model reads them in one piece."""
        numbers_of_examples = itertools.count()
        stores = [backend]

        @settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(history, history), st.data())
        def check(histories: tuple[list[Record], ...], data: st.DataObject) -> None:
            prefix = f"{next(numbers_of_examples)}-"
            model = backend_class("memory")(f"memory://{uuid.uuid4()}", create=True)
            by_writer = {f"{prefix}w{i}": records for i, records in enumerate(histories)}
            for writer, records in by_writer.items():
                model.write(batch_of(writer, 0, records, prefix))
            self._write_in_pieces(stores, backend_url, by_writer, prefix, data)
            run_ids = [prefix + run_id for run_id in RUN_IDS]
            assert dump(stores[-1], run_ids) == dump(model, run_ids)

        try:
            check()
        finally:
            stores[-1].close()

    def _write_in_pieces(
        self,
        stores: list[Backend],
        url: str,
        by_writer: dict[str, list[Record]],
        prefix: str,
        data: st.DataObject,
    ) -> None:
        """Send every record at least once, a piece of one writer after a piece of another."""
        cursors = dict.fromkeys(by_writer, 0)
        while waiting := [w for w in by_writer if cursors[w] < len(by_writer[w])]:
            writer = data.draw(st.sampled_from(waiting))
            expected, records = cursors[writer], by_writer[writer]
            first = max(0, expected - data.draw(st.integers(0, 3)))
            last = min(len(records), expected + data.draw(st.integers(1, 12)))
            batch = batch_of(writer, first, records[first:last], prefix)
            cursors[writer] = last
            for _ in range(data.draw(st.sampled_from([1, 1, 2]))):
                assert stores[-1].write(batch) == last
            if data.draw(st.integers(0, 5)) == 5:
                stores[-1].close()
                stores.append(self.open_backend(url, create=False))
