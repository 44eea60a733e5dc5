"""Tensors as a reader finds them: chosen, merged over ranks, of the latest attempt, of parts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tachograph
from tachograph import registry
from tachograph.backends.base import Backend
from tachograph.callbacks import tensors_host
from tachograph.errors import QueryError
from tachograph.query import Store
from tachograph.records import Row
from tachograph.tensors.histograms import to_text
from tachograph.tensors.ranking import worst_first
from tachograph.testing.builders import START, make_batch


@pytest.fixture(params=["memory", "sqlite", "parquet"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty store of each kind."""
    place = f"/{tmp_path}/runs" + (".sqlite" if request.param == "sqlite" else "")
    url = f"{request.param}://{place if request.param != 'memory' else uuid.uuid4()}"
    opened = registry.open_backend(url, create=True)
    yield opened
    opened.close()


def run_row(run_id: str, **columns: Any) -> Row:
    """A finished root run."""
    return {
        "run_id": run_id,
        "root_id": run_id,
        "status": "finished",
        "started_at": START,
    } | columns


def tensor(
    name: str, kind: str = "weight", step: int | None = 0, l2: float = 1.0, **more: Any
) -> Row:
    """A row of the table `tensors` in few words."""
    counts = {"size": 4, "zeros": 0, "nan": 0, "inf": 0, "shape": "[2,2]", "dtype": "float32"}
    moments = {"mean": 0.5, "std": 0.1, "min": 0.0, "max": 1.0, "l2": l2}
    place = {"run_id": "r", "context": "{}", "rank": 0, "attempt": 1, "time": START}
    return place | counts | moments | {"name": name, "kind": kind, "step": step} | more


def store_of(backend: Backend, *rows: Row, runs: list[Row] | None = None, **tables: Any) -> Store:
    """A store with these rows of tensors."""
    runs = runs or [run_row("r")]
    backend.write(make_batch("w", 0, 40, tensors=list(rows), runs=runs, **tables))
    return Store(backend)


def pairs(table: Any, *columns: str) -> list[tuple[Any, ...]]:
    """The values of some columns, row by row."""
    return list(zip(*(table[name] for name in columns), strict=True))


NAMES = ("fc_1.weight", "fcX1.weight", "fc_1.bias")


def test_filters_by_kind_name_pattern_and_step(backend: Backend) -> None:
    """One or several kinds, names or patterns, a step, a range, the last; sorted by step."""
    rows = [
        tensor(name, kind, step)
        for step in (20, 0, 10)
        for name in NAMES
        for kind in ("weight", "gradient")
    ]
    store = store_of(backend, *rows)
    assert len(store.tensors("r")) == 18
    assert list(store.tensors("r", "gradient", "fc_1.bias")["step"]) == [0, 10, 20]
    assert len(store.tensors("r", ["weight", "gradient"], ["fc_1.bias", "fcX1.weight"])) == 12
    assert set(store.tensors("r", name="fc_1.*")["name"]) == {"fc_1.weight", "fc_1.bias"}
    assert set(store.tensors("r", name="fc_1%")["name"]) == {"fc_1.weight", "fc_1.bias"}
    assert len(store.tensors("r", name=["*.bias", "fcX1*"], step=10)) == 4
    assert set(store.tensors("r", step=range(5, 15))["step"]) == {10}
    assert set(store.tensors("r", step=range(0, 21, 20))["step"]) == {0, 20}
    assert set(store.tensors("r", step="last")["step"]) == {20}
    few = store.tensors("r", "weight", step=0, columns=["step", "name"])
    assert few.columns == ("name", "step")
    assert sorted(few["name"]) == sorted(NAMES)
    with pytest.raises(QueryError, match="no column 'norm'"):
        store.tensors("r", columns=["norm"])


def test_the_last_row_of_each_tensor(backend: Backend) -> None:
    """Two optimizers take turns: each tensor has a last step of its own."""
    store = store_of(backend, *(tensor("ab"[step % 2], step=step) for step in range(6)))
    assert sorted(pairs(store.tensors("r", step="last"), "name", "step")) == [("a", 4), ("b", 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gradients"}, "no tensors of kind 'gradients'; did you mean 'gradient'"),
        ({"name": "fc.wieght"}, "no tensor fc.wieght; did you mean 'fc.weight'.* it has: fc.bias"),
        ({"name": "conv*"}, r"no tensor conv\*; it has: fc.bias, fc.weight"),
        ({"step": 7}, "at step 7; there are some from 0 to 3"),
        ({"kind": "gradient", "name": "fc.bias"}, "satisfy all of this"),
        ({"context": {"stage": "clipped"}}, "satisfy all of this"),
    ],
)
def test_what_is_not_there_is_told(backend: Backend, arguments: Any, message: str) -> None:
    """An unknown kind, name or step lists what there is, and the nearest."""
    store = store_of(
        backend, tensor("fc.weight", "gradient"), tensor("fc.weight"), tensor("fc.bias", step=3)
    )
    with pytest.raises(QueryError, match=message):
        store.tensors("r", **arguments)


def test_a_run_without_tensors(backend: Backend) -> None:
    """All of nothing is nothing; a certain one is a mistake."""
    store = store_of(backend, runs=[run_row("r")])
    assert len(store.tensors("r")) == 0
    assert "l2" in store.tensors("r").columns
    assert len(store.tensors_of("r")) == 0
    with pytest.raises(QueryError, match="no tensors are recorded of run r"):
        store.tensors("r", kind="weight")


def test_contexts_choose(backend: Backend) -> None:
    """Rows whose context has the wanted keys."""
    clipped = '{"optimizer":1,"stage":"clipped"}'
    store = store_of(backend, tensor("a"), tensor("a", context=clipped, l2=2.0))
    assert list(store.tensors("r", context={"stage": "clipped"})["l2"]) == [2.0]
    assert len(store.tensors("r")) == 2


def test_the_latest_attempt_replaces_from_its_first_step_on(backend: Backend) -> None:
    """Also where it has not recorded a tensor yet; all of it when asked for."""
    rows = [tensor("a", step=step, l2=1.0) for step in range(4)]
    rows.append(tensor("a", step=2, attempt=2, l2=2.0))
    attempts = [
        {"run_id": "r", "attempt": attempt, "first_step": first}
        for attempt, first in ((1, 0), (2, 2))
    ]
    store = store_of(backend, *rows, attempts=attempts)
    found = store.tensors("r")
    assert pairs(found, "step", "l2") == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert pairs(store.tensors("r", step="last"), "step", "l2") == [(2, 2.0)]
    assert len(store.tensors("r", attempts="all")) == 5
    assert pairs(store.tensors_of("r"), "first_step", "last_step", "count") == [(0, 2, 3)]


def test_index_says_when_each_tensor_was_recorded(backend: Backend) -> None:
    """By name as people number layers; what two ranks recorded whole counts twice."""
    rows = [tensor(f"layer{n}", step=step) for n in (10, 2) for step in (0, 4, 8)]
    rows += [tensor("layer2", step=8, rank=1), tensor("layer2", "gradient", 4)]
    rows.append(tensor("once", step=None))
    found = store_of(backend, *rows).tensors_of("r")
    assert pairs(found, "name", "kind", "first_step", "last_step", "count") == [
        ("layer2", "gradient", 4, 4, 1),
        ("layer2", "weight", 0, 8, 4),
        ("layer10", "weight", 0, 8, 3),
        ("once", "weight", None, None, 1),
    ]


# ---------------------------------------------------------------------------- ratios


def test_update_ratio_is_that_of_the_same_step(backend: Backend) -> None:
    """Of weights alone; None where there is no update, or a weight of zeros."""
    store = store_of(
        backend,
        *(tensor("a", step=step, l2=4.0) for step in (0, 1, 2)),
        *(tensor("a", "update", step, l2=step + 1.0) for step in (0, 1)),
        tensor("zero", step=0, l2=0.0),
        tensor("zero", "update", 0, l2=1.0),
    )
    ratios = store.tensors("r", "weight", columns=["name", "step", "update_ratio"])
    assert pairs(ratios, "name", "step", "update_ratio") == [
        *(("a", 0, 0.25), ("zero", 0, None), ("a", 1, 0.5), ("a", 2, None)),
    ]
    both = store.tensors("r", step=0, name="a")
    assert sorted(pairs(both, "kind", "update_ratio")) == [("update", None), ("weight", 0.25)]
    assert list(store.tensors("r", "update", "a")["update_ratio"]) == [None, None]


def test_update_ratio_of_optimizers(backend: Backend) -> None:
    """The update in the weight's context counts; else the only one."""
    one, two = '{"optimizer":1}', '{"optimizer":2}'
    store = store_of(
        backend,
        tensor("only", l2=2.0),
        tensor("only", "update", context=one, l2=1.0),
        tensor("both", l2=2.0),
        *(tensor("both", "update", context=context, l2=1.0) for context in (one, two)),
        *(tensor("own", context=context, l2=2.0) for context in (one, two)),
        *(tensor("own", "update", context=c, l2=l2) for c, l2 in ((one, 1.0), (two, 4.0))),
    )
    found = store.tensors("r", "weight", columns=["name", "context", "update_ratio"])
    assert sorted(pairs(found, "name", "context", "update_ratio")) == [
        *(("both", "{}", None), ("only", "{}", 0.5), ("own", one, 0.5), ("own", two, 2.0)),
    ]


# ---------------------------------------------------------------------------- ranks and parts


def shard(rank: int, step: int, part: Any, whole: int) -> Row:
    """What a rank records of its shard of a weight."""
    names = ("mean", "std", "min", "max", "l2", "zeros", "nan", "inf")
    numbers = dict(zip(names, tensors_host.Meter().measure(part), strict=True))
    return tensor(
        "w",
        step=step,
        rank=rank,
        context='{"scope":"rank"}',
        logical_shape=f"[{whole}]",
        shape=f"[{part.size}]",
        **numbers | {"size": part.size, "zeros": int(numbers["zeros"]), "nan": 0, "inf": 0},
        histogram=to_text(dict(tensors_host.histogram(part))),
    )


def test_shards_of_ranks_are_one_tensor(backend: Backend) -> None:
    """By default merged, at whole steps only; each rank's own when asked for."""
    values = np.arange(1.0, 11.0)
    rows = [shard(rank, 0, part, 10) for rank, part in enumerate(np.split(values, [3]))]
    rows += [shard(0, 5, values[:3], 10), tensor("bias", step=0), tensor("bias", step=5)]
    store = store_of(backend, *rows)
    found = store.tensors("r", name="w", histograms=True)
    (row,) = found
    assert (row["size"], row["shape"], row["context"], row["shards"]) == (10, (10,), "{}", 2)
    assert row["mean"] == pytest.approx(values.mean())
    assert row["std"] == pytest.approx(values.std(), rel=1e-6)
    assert dict(row["histogram"]) == dict(tensors_host.histogram(values))
    assert list(store.tensors("r", name="w", columns=["l2"])["l2"]) == [
        pytest.approx(np.linalg.norm(values))
    ]
    assert sorted(pairs(store.tensors("r", step="last"), "name", "step")) == [("bias", 5), ("w", 0)]
    assert sorted(store.tensors("r", name="w", ranks="all")["rank"]) == [0, 0, 1]
    assert pairs(store.tensors("r", ranks=1), "rank", "size") == [(1, 7)]
    assert {row["name"]: row["last_step"] for row in store.tensors_of("r")} == {"w": 0, "bias": 5}


def test_shards_without_the_others_are_told(backend: Backend) -> None:
    """A part is never shown as the whole."""
    store = store_of(backend, shard(1, 0, np.ones(3), 10))
    with pytest.raises(QueryError, match="some ranks are not here; ranks='all'"):
        store.tensors("r")


def test_a_trial_has_the_tensors_of_its_trainings(backend: Backend) -> None:
    """A run without tensors shows those of its parts, at any depth, and each row says whose."""
    runs = [
        run_row("study"),
        run_row("t1", parent_id="study", root_id="study", started_at=START + 1),
        run_row("t2", parent_id="study", root_id="study", started_at=START + 2),
        run_row("fit2", parent_id="t2", root_id="study", started_at=START + 3),
    ]
    rows = [tensor("a", step=s, run_id=run_id) for s in (1, 0) for run_id in ("fit2", "t1")]
    store = store_of(backend, *rows, runs=runs)
    assert pairs(store.tensors("t2"), "run_id", "step") == [("fit2", 0), ("fit2", 1)]
    assert list(store.tensors("study")["run_id"]) == ["t1", "t1", "fit2", "fit2"]
    assert pairs(store.tensors("study", step="last"), "run_id", "step") == [("t1", 1), ("fit2", 1)]
    assert len(store.tensors("t2", children=False)) == 0
    assert len(store.tensors("t1", children=True)) == 2
    assert [row["run_id"] for row in store.tensors_of("study")] == ["t1", "fit2"]


# ---------------------------------------------------------------------------- live


@pytest.mark.parametrize("url", ["sqlite:///{}/live.sqlite", "parquet:///{}/live"])
def test_a_running_training_is_seen_up_to_now(tmp_path: Path, url: str) -> None:
    """What is in the journal alone is merged in, with its histograms, in the order of the model."""
    address = url.format(tmp_path)
    config = {"backend": address, "record": {"system": False, "console": False}}
    array = np.array([1.0, 0.0, np.nan], np.float32)
    names = ("z.weight", "a.weight")
    keys = tuple(tensors_host.key(name, "weight", array) for name in names)
    packed = tensors_host.pack([tensors_host.Meter().measure(array)] * 2)
    found = [tensors_host.histogram(array)] * 2
    with tachograph.start_run(name="live", config=config) as run:
        run.log_statistics(keys, packed, 0)
        run.log_statistics(keys, packed, 1, histograms=found)
        with tachograph.open(address, config=config) as store:
            rows = store.tensors("live", histograms=True)
    assert pairs(rows, "step", "name") == [(step, name) for step in (0, 1) for name in names]
    assert rows["histogram"][0] is None
    assert dict(rows["histogram"][3]) == {0: 1, 508: 1}
    assert (rows["nan"][0], rows["shape"][0], rows["mean"][0]) == (1, (3,), 0.5)
    with tachograph.open(address, config=config) as store:
        assert sorted(store.tensors("live", step=1)["name"]) == sorted(names)
        assert rows.to_arrow().num_rows == 4
        assert rows.to_polars().shape[0] == rows.to_pandas().shape[0] == 4


# ---------------------------------------------------------------------------- worst first


def test_worst_first(backend: Backend) -> None:
    """NaN, then zero everywhere, then far from its peers or from what is usual, then the rest."""
    store = store_of(
        backend,
        *(tensor(f"usual{i}", "gradient", l2=1.0 + i / 10) for i in range(3)),
        tensor("small", "gradient", l2=1e-5),
        tensor("dead", "gradient", l2=0.0, zeros=4),
        tensor("bad", "gradient", nan=1, inf=1),
        tensor("worse", "gradient", nan=4, l2=None),
        tensor("fast", l2=1.0),
        tensor("fast", "update", l2=0.5),
        tensor("new bias", l2=0.0, zeros=4),
    )
    ranked = worst_first(store.tensors("r", step="last"))
    assert list(ranked["name"][:5]) == ["worse", "bad", "dead", "small", "fast"]
    assert list(ranked["remark"][:5]) == [
        "4 NaN of 4",
        "1 NaN and 1 Inf of 4",
        "zero everywhere",
        "110,000 × below peers",
        "update is 50% of it",
    ]
    assert set(ranked["remark"][5:]) == {""}
    assert len(ranked) == 10
