"""Laws of copying: nothing is lost, nothing is twice, and the digests prove it."""

from __future__ import annotations

import hashlib
import itertools
import math
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tachograph import registry
from tachograph.backends.base import Backend, Query, SupportsArtifacts
from tachograph.errors import RunNotFound, StoreError
from tachograph.reading import portions
from tachograph.reading.digests import digest_table
from tachograph.testing.builders import dump, make_batch, make_block
from tachograph.transfer.copying import copy_store

KINDS = ("memory", "sqlite", "parquet")
Opener = Callable[[str], Backend]


@pytest.fixture
def open_new(tmp_path: Path) -> Iterator[Opener]:
    """Makes a new empty store of a kind."""
    made: list[Backend] = []

    def make(kind: str) -> Backend:
        place = f"/{tmp_path}/{len(made)}" if kind != "memory" else uuid.uuid4().hex
        url = f"{kind}://{place}" + (".sqlite" if kind == "sqlite" else "")
        made.append(registry.open_backend(url, create=True))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def fill(backend: Backend) -> None:
    """Two runs of one writer, a child, a second attempt, an edit, a deleted run."""
    special = {"loss": [math.nan, math.inf, -math.inf, -0.0], "acc": [0.1, 1e-320, 1e308, 0.0]}
    blocks = [
        make_block(
            "a", special, seqs=[2, 3, 4, 5], steps=[0, 1, None, 3], epochs=[0.5, None, 1, 2]
        ),
        make_block("a", {"loss": [1.0]}, seqs=[6], context='{"phase":"test"}', rank=1),
        make_block("b", {"loss": [2.0, 3.0]}, seqs=[7, 8]),
        make_block("a", {"loss": [9.0]}, seqs=[9], steps=[3], attempt=2),
    ]
    batch = make_batch(
        "w1",
        0,
        11,
        blocks=blocks,
        heartbeat=1_800_000_000_000_000,
        writers=[{"host": "h", "pid": 1, "rank": 0, "seq": 0}],
        runs=[
            {"run_id": "a", "root_id": "a", "status": "running", "project": "p", "seq": 0},
            {"run_id": "b", "root_id": "a", "parent_id": "a", "status": "finished", "seq": 1},
            {"run_id": "a", "status": "failed", "seq": 10},
        ],
        attempts=[
            {"run_id": "a", "attempt": 1, "first_step": 0, "seq": 0},
            {"run_id": "a", "attempt": 2, "first_step": 3, "seq": 9},
        ],
        params=[{"run_id": "a", "path": "ü.x", "value": '"é😀"', "source": "user", "seq": 1}],
        tags=[{"run_id": "a", "key": "k", "value": "v", "seq": 1}],
        provenance=[{"run_id": "a", "section": "git", "document": "{}", "digest": "d", "seq": 1}],
        artifacts=[{"run_id": "b", "path": "m", "sha256": "0" * 64, "bytes": 3, "seq": 8}],
        events=[
            {"run_id": "a", "time": 1, "level": "info", "kind": "note", "data": "{}", "seq": 2}
        ],
        tensors=[{"run_id": "b", "name": "t", "kind": "weight", "mean": 0.5, "nan": 1, "seq": 8}],
    )
    backend.write(batch)
    late = {"changed_at": batch.rows["runs"][2]["changed_at"] + 10}
    backend.write(
        make_batch(
            "w2",
            0,
            runs=[{"run_id": "a", "verdict": "good", **late}, {"run_id": "c", "root_id": "c"}],
            tags=[{"run_id": "a", "key": "k", "deleted": 1, **late}],
            params=[{"run_id": "c", "path": "x", "value": "1"}],
        )
    )
    backend.write(make_batch("w3", 0, runs=[{"run_id": "c", "deleted": 1, **late}]))


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_copy_of_a_copy_equals_the_original(first: str, second: str, open_new: Opener) -> None:
    """Every row, NaN, infinity, -0, attempt, edit and tombstone comes through two copies."""
    origin, middle, last = open_new("memory"), open_new(first), open_new(second)
    fill(origin)
    copy_store(origin, middle)
    report = copy_store(middle, last)
    assert report.runs == 2
    assert list(report.digests["source"]) == list(report.digests["destination"])
    assert dump(last) == dump(origin)


def test_digests_differ_where_tables_do(open_new: Opener) -> None:
    """A changed, missing or doubled row changes the digest of its table and of no other."""
    one, two = open_new("memory"), open_new("memory")
    tag = {"run_id": "a", "key": "k", "value": "v"}
    one.write(make_batch("w", 0, tags=[tag], runs=[{"run_id": "a"}]))
    two.write(make_batch("w", 0, tags=[tag | {"value": "V"}], runs=[{"run_id": "a"}]))
    assert digest_table(one, "tags") != digest_table(two, "tags")
    assert digest_table(one, "runs") == digest_table(two, "runs")
    assert digest_table(one, "events") == "0" * 64
    without = ["changed_at", "seq", "writer", "deleted"]
    expected = hashlib.sha256(b'["a","k","v"]').hexdigest()
    assert digest_table(one, "tags", without=without) == expected


def test_second_copy_sends_nothing(open_new: Opener) -> None:
    """Copying again changes nothing; what came since is all that is sent."""
    source, destination = open_new("sqlite"), open_new("sqlite")
    fill(source)
    assert copy_store(source, destination).points == 12
    again = copy_store(source, destination)
    assert (again.records, again.points, again.rows) == (0, 0, 0)
    source.write(make_batch("w1", 11, blocks=[make_block("a", {"loss": [7.0]}, seqs=[11])]))
    more = copy_store(source, destination)
    assert (more.records, more.points) == (1, 1)
    assert dump(destination) == dump(source)


class _Breaking:
    """A store that fails after some batches, as on a full disk."""

    def __init__(self, backend: Backend, batches: int) -> None:
        self._backend, self._left = backend, batches

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def write(self, batch: object) -> int:
        """Write, or fail."""
        if not self._left:
            raise StoreError("no space left")
        self._left -= 1
        return self._backend.write(batch)  # type: ignore[arg-type]


def test_copy_cut_short_goes_on(open_new: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages of a few points, broken off at every batch, the copy still gets complete."""
    monkeypatch.setattr(portions, "PAGE", 4)
    source, destination = open_new("memory"), open_new("sqlite")
    fill(source)
    broken = 0
    for _ in range(40):
        try:
            copy_store(source, _Breaking(destination, 1))  # type: ignore[arg-type]
        except StoreError:
            broken += 1
        else:
            break
    assert broken >= 3
    assert dump(destination) == dump(source)


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_runs_and_then_all(kind: str, open_new: Opener) -> None:
    """Runs of one writer may be copied one after the other, then all; no point is twice."""
    source, destination = open_new("memory"), open_new(kind)
    fill(source)
    assert copy_store(source, destination, run_ids=["b"]).runs == 1
    assert set(destination.read(Query("runs"))["run_id"]) == {"b"}
    assert set(destination.read(Query("params"))["run_id"]) == set()
    assert destination.read(Query("writers"))["host"] == ["h"]
    source.write(make_batch("w1", 11, blocks=[make_block("b", {"loss": [7.0]}, seqs=[11])]))
    assert copy_store(source, destination, run_ids=["a"]).runs == 2, "with its child"
    assert copy_store(source, destination, run_ids=["a", "b"]).points == 0
    copy_store(source, destination)
    source.write(make_batch("w1", 12, blocks=[make_block("b", {"loss": [8.0]}, seqs=[12])]))
    assert copy_store(source, destination, run_ids=["b"]).points == 1
    assert copy_store(source, destination).points == 0
    for table in ("all_metrics", "runs", "params", "events", "tensors", "summaries"):
        assert digest_table(destination, table, without=["writer"]) == digest_table(
            source, table, without=["writer"]
        )


def test_copy_leaves_other_runs_alone(open_new: Opener) -> None:
    """A destination with runs of its own keeps them, and the digests are of the copied ones."""
    source, destination = open_new("memory"), open_new("sqlite")
    fill(source)
    destination.write(make_batch("own", 0, runs=[{"run_id": "mine", "name": "n"}]))
    assert copy_store(source, destination).runs == 2
    assert set(destination.read(Query("runs"))["run_id"]) == {"a", "b", "mine"}


def test_difference_is_an_error(open_new: Opener) -> None:
    """A destination that has the same run with other content is not called equal."""
    source, destination = open_new("memory"), open_new("memory")
    fill(source)
    destination.write(make_batch("x", 0, params=[{"run_id": "a", "path": "lr", "value": "1"}]))
    with pytest.raises(StoreError, match=r"differs from .* in params"):
        copy_store(source, destination)


def test_unknown_run_is_an_error(open_new: Opener) -> None:
    """A run that is not there is named, and nothing is copied."""
    source, destination = open_new("memory"), open_new("memory")
    fill(source)
    with pytest.raises(RunNotFound, match="no run nobody"):
        copy_store(source, destination, run_ids=["a", "nobody"])
    assert len(destination.read(Query("runs"))) == 0


def test_files_are_copied_once(open_new: Opener, tmp_path: Path) -> None:
    """Files go along by content; of chosen runs only theirs."""
    source, destination = open_new("sqlite"), open_new("parquet")
    assert isinstance(source, SupportsArtifacts)
    assert isinstance(destination, SupportsArtifacts)
    digests = {}
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
        digests[name] = hashlib.sha256(name.encode() * 1000).hexdigest()
        source.put_artifact(tmp_path / name, digests[name])
    rows = [
        {"run_id": name, "path": "file", "sha256": digests[name], "bytes": 1000} for name in digests
    ]
    source.write(make_batch("w", 0, runs=[{"run_id": "a"}, {"run_id": "b"}], artifacts=rows))
    assert copy_store(source, destination, run_ids=["a"]).artifacts == 1
    report = copy_store(source, destination)
    assert (report.artifacts, report.artifact_bytes) == (1, 1000)
    with destination.open_artifact(digests["b"]) as file:
        assert file.read() == b"b" * 1000


def test_progress_counts_records(open_new: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress ends at the number of records that there were to send."""
    monkeypatch.setattr(portions, "PAGE", 4)
    source, destination = open_new("memory"), open_new("memory")
    fill(source)
    seen: list[tuple[str, int, int]] = []
    copy_store(source, destination, progress=lambda *told: seen.append(told))
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == ("records", 14, 14)
