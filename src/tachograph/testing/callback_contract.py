"""Laws that every callback obeys, for authors of callbacks. Knows no framework."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tachograph import recorder, registry
from tachograph.backends.base import Condition, Query
from tachograph.errors import StoreNotFound
from tachograph.records import Row
from tachograph.start import start_run
from tachograph.tensors import histograms
from tachograph.warning import forget_warnings

FAULTS = (
    "tachograph.callbacks.base.start_run",
    "tachograph.run.Run.log",
    "tachograph.run.Run.log_params",
    "tachograph.run.Run.log_provenance",
    "tachograph.run.Run.log_data",
    "tachograph.run.Run.log_outcome",
    "tachograph.run.Run.event",
    "tachograph.run.Run.finish",
    "tachograph.recorder.Recorder.rows",
)
"""What a test makes raise, to see that no training notices."""

QUIET = {"record": {"system": False}}
"""Settings for tests that look at what a callback records, not at the machine."""


EACH_STEP = {"every": 1, "histograms": 1, "snapshots": 1, "weights": "full", "gradients": "full"}
"""Settings that record all there is of weights and gradients at each step."""


class Broken(Exception):
    """What recording raises where a test breaks it."""


class Record:
    """What a store holds after everything on its way there has arrived.

    Parameters
    ----------
    url : str
        URL of the store.
    """

    def __init__(self, url: str) -> None:
        recorder.close_all()
        self.url = url

    def rows(self, table: str, **equal: Any) -> list[Row]:
        """Rows of a table with these values in order of writing; none where there is no store."""
        try:
            backend = registry.open_backend(self.url)
        except StoreNotFound:
            return []
        try:
            where = [Condition(column, "=", value) for column, value in equal.items()]
            order = ["time", "seq"] if table in ("metrics", "all_metrics", "events") else []
            return list(backend.read(Query(table, where, order=order)))
        finally:
            backend.close()

    def runs(self, **equal: Any) -> list[Row]:
        """Runs in order of their start."""
        return sorted(self.rows("runs", **equal), key=lambda row: row["started_at"])

    def run(self, **equal: Any) -> Row:
        """The only run without a parent."""
        roots = [row for row in self.runs(**equal) if row["parent_id"] is None]
        assert len(roots) == 1, roots
        return roots[0]

    def params(self, run_id: str) -> dict[str, Any]:
        """The params of a run, decoded."""
        return {row["path"]: json.loads(row["value"]) for row in self.rows("params", run_id=run_id)}

    def series(self, name: str, /, **context: Any) -> list[tuple[int | None, float]]:
        """Steps and values of a metric whose context has these keys, over all runs and ranks."""
        return [
            (row["step"], row["value"])
            for row in self.rows("metrics", name=name)
            if context.items() <= json.loads(row["context"]).items()
        ]

    def metrics(self, **equal: Any) -> set[tuple[str, str]]:
        """Names and contexts of all metrics."""
        return {(row["name"], row["context"]) for row in self.rows("metrics", **equal)}


class CallbackContract:
    """Subclass it in a test file, and say how the framework trains.

    Attributes
    ----------
    interrupt_becomes : type of BaseException
        What a KeyboardInterrupt in the training reaches the user as.
    tensor_kinds : set of str
        Kinds of tensors that a training leaves in the record.
    """

    interrupt_becomes: ClassVar[type[BaseException]] = KeyboardInterrupt
    tensor_kinds: ClassVar[frozenset[str]] = frozenset()

    # ------------------------------------------------------------------ for the author

    def make_callback(self, **keywords: Any) -> Any:
        """A new callback; `keywords` are those that all callbacks take."""
        raise NotImplementedError

    def train(self, callbacks: Sequence[Any]) -> bytes:
        """Train a small model from a fixed seed, with shuffled data and random numbers in it.

        Returns
        -------
        bytes
            What must not depend on callbacks: the model's weights, its predictions, and the
            state of every random generator after the training.
        """
        raise NotImplementedError

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        """Train a model whose training raises `error` in the middle, and let it through."""
        raise NotImplementedError

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        """Train, and return weak references to the model and its data, kept by nobody here."""
        pytest.skip("says nothing of its references")

    def resume(self, folder: Path, make_callback: Callable[[], Any]) -> None:
        """Train with a new callback, and go on with another from a checkpoint in `folder`."""
        pytest.skip("has no checkpoints")

    def train_processes(self, folder: Path, config: dict[str, Any]) -> None:
        """Train one model in two processes that record with `config`; return when both ended."""
        pytest.skip("trains in one process")

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        """URL of a store that does not exist yet."""
        return f"sqlite:///{tmp_path}/runs.sqlite"

    @pytest.fixture
    def config(self, store_url: str) -> dict[str, Any]:
        """The callback's `config` argument."""
        return QUIET | {"backend": store_url, "project": "contract"}

    @pytest.fixture(autouse=True)
    def _anew(self) -> Iterable[None]:
        forget_warnings()
        yield
        recorder.close_all()

    # ------------------------------------------------------------------ laws

    @pytest.mark.parametrize("record", [{}, EACH_STEP], ids=["by default", "each step"])
    def test_training_is_unchanged(self, config: dict[str, Any], record: dict[str, Any]) -> None:
        """Weights, predictions and random numbers are the same bits with and without it."""
        without = self.train([])
        assert without == self.train([]), "the training is not deterministic by itself"
        config = config | {"record": config["record"] | record}
        assert self.train([self.make_callback(config=config)]) == without

    def test_tensors_are_recorded(self, config: dict[str, Any], store_url: str) -> None:
        """Statistics of the kinds that the framework shows, whole and in agreement; or none."""
        each_step = config | {"record": config["record"] | EACH_STEP}
        self.train([self.make_callback(config=each_step)])
        rows = Record(store_url).rows("tensors")
        assert {row["kind"] for row in rows} == self.tensor_kinds
        for row in rows:
            assert row["name"]
            assert row["size"] == math.prod(json.loads(row["shape"]))
            counted = row["size"] - row["nan"] - row["inf"]
            if row["histogram"] is not None:
                assert sum(histograms.from_text(row["histogram"]).values()) == counted
            if counted:
                assert row["min"] <= row["mean"] + abs(row["mean"]) * 1e-6
                assert row["mean"] <= row["max"] + abs(row["mean"]) * 1e-6
                spread = row["std"] ** 2 + row["mean"] ** 2
                assert row["l2"] ** 2 == pytest.approx(counted * spread, rel=1e-3, abs=1e-60)

    def test_tensors_can_be_left_out(self, config: dict[str, Any], store_url: str) -> None:
        """With weights and gradients off there are none."""
        callback = self.make_callback(config=config, weights="off", gradients="off", every=1)
        self.train([callback])
        assert Record(store_url).rows("tensors") == []

    def test_fit_is_one_finished_run(self, config: dict[str, Any], store_url: str) -> None:
        """A fit leaves one run with its end, its framework, metrics and the framework's params."""
        self.train([self.make_callback(config=config)])
        record = Record(store_url)
        run = record.run()
        assert run["status"] == "finished"
        assert run["ended_at"] >= run["started_at"]
        assert run["framework"]
        assert record.rows("metrics")
        assert record.rows("params", source="framework")

    def test_each_fit_is_a_run(self, config: dict[str, Any], store_url: str) -> None:
        """A second fit with the same callback is a second run."""
        callback = self.make_callback(config=config)
        self.train([callback])
        self.train([callback])
        roots = [row for row in Record(store_url).runs() if row["parent_id"] is None]
        assert [row["status"] for row in roots] == ["finished", "finished"]

    def test_keywords(self, config: dict[str, Any], store_url: str) -> None:
        """Name, tags, params and notes given to the callback are those of the run."""
        callback = self.make_callback(
            config=config, name="first", tags=["a"], params={"given": 1}, notes="hello"
        )
        self.train([callback])
        record = Record(store_url)
        run = record.run()
        assert run["name"] == "first"
        assert record.params(run["run_id"])["given"] == 1
        assert record.rows("tags", run_id=run["run_id"], key="a")
        assert record.rows("events", kind="note", message="hello")

    def test_run_of_user_is_taken_and_left_open(
        self, config: dict[str, Any], store_url: str
    ) -> None:
        """Inside a user's run the fit records into it; the user alone ends it."""
        with start_run(config=config) as run:
            self.train([self.make_callback()])
            assert run.is_open
        record = Record(store_url)
        assert record.run()["run_id"] == run.run_id
        assert record.rows("metrics", run_id=run.run_id)

    def test_given_run_is_taken(self, config: dict[str, Any], store_url: str) -> None:
        """A run given as `run=` is recorded into, also where it is not current."""
        run = start_run(config=config, make_current=False)
        self.train([self.make_callback(run=run)])
        assert run.is_open
        run.finish()
        record = Record(store_url)
        assert record.run()["run_id"] == run.run_id
        assert record.rows("metrics", run_id=run.run_id)

    def test_failure_is_recorded_and_reaches_the_user(
        self, config: dict[str, Any], store_url: str
    ) -> None:
        """The exception of a training is the user's, unchanged; the run says what it was."""
        with pytest.raises(ZeroDivisionError) as caught:
            self.fail([self.make_callback(config=config)], ZeroDivisionError("planted"))
        assert str(caught.value) == "planted"
        record = Record(store_url)
        run = record.run()
        assert run["status"] == "failed"
        assert "planted" in run["error"]
        (event,) = record.rows("events", kind="error", run_id=run["run_id"])
        assert "Traceback" in json.loads(event["data"])["traceback"]

    def test_interrupt_is_recorded(self, config: dict[str, Any], store_url: str) -> None:
        """Ctrl-C ends the training as ever, and the run as interrupted."""
        with pytest.raises(self.interrupt_becomes):
            self.fail([self.make_callback(config=config)], KeyboardInterrupt())
        assert Record(store_url).run()["status"] == "interrupted"

    @pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
    @pytest.mark.parametrize("fault", FAULTS)
    def test_broken_recording_changes_nothing(
        self, config: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever raises inside recording, the training is the same, and so is its failure."""
        without = self.train([])

        def broken(*_: Any, **__: Any) -> Any:
            raise Broken(fault)

        monkeypatch.setattr(fault, broken)
        assert self.train([self.make_callback(config=config)]) == without
        with pytest.raises(ZeroDivisionError, match="planted"):
            self.fail([self.make_callback(config=config)], ZeroDivisionError("planted"))

    @pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
    def test_broken_store_changes_nothing(self, tmp_path: Path) -> None:
        """A store and a journal that cannot be made cost the record, and not the training."""
        (tmp_path / "file").write_text("in the way")
        config = QUIET | {
            "backend": f"sqlite:///{tmp_path}/file/runs.sqlite",
            "journal": f"{tmp_path}/file/journal",
        }
        assert self.train([self.make_callback(config=config)]) == self.train([])
        with pytest.raises(ZeroDivisionError, match="planted"):
            self.fail([self.make_callback(config=config)], ZeroDivisionError("planted"))

    def test_disabled_is_inert(
        self, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With TACHOGRAPH_DISABLED=1 the training is the same, and nothing is written."""
        without = self.train([])
        before = set(tmp_path.rglob("*"))
        monkeypatch.setenv("TACHOGRAPH_DISABLED", "1")
        assert self.train([self.make_callback(config=config)]) == without
        recorder.close_all()
        assert not [path for path in set(tmp_path.rglob("*")) - before if "sqlite" in path.name]

    @pytest.mark.parametrize("twin", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
    def test_copies_record(
        self, config: dict[str, Any], store_url: str, twin: Callable[[Any], Any]
    ) -> None:
        """A copy, also one made after a fit, is the keywords alone; it records its own run."""
        callback = self.make_callback(config=config, name="twin")
        self.train([callback])
        self.train([twin(callback)])
        roots = [row for row in Record(store_url).runs() if row["parent_id"] is None]
        assert [row["name"] for row in roots] == ["twin", "twin"]

    def test_nothing_is_kept(self, config: dict[str, Any]) -> None:
        """After the fit the callback keeps neither the model nor its data alive."""
        callback = self.make_callback(config=config)
        references = list(self.leave([callback]))
        recorder.close_all()
        gc.collect()
        assert [reference() for reference in references] == [None] * len(references)

    @pytest.mark.slow
    def test_resume_goes_on_with_the_run(
        self, config: dict[str, Any], store_url: str, tmp_path: Path
    ) -> None:
        """A fit from a checkpoint is the next attempt at the same run, and hides no point."""
        self.resume(tmp_path, lambda: self.make_callback(config=config))
        record = Record(store_url)
        run = record.run()
        attempts = record.rows("attempts", run_id=run["run_id"])
        first, second = sorted(attempts, key=lambda row: row["attempt"])
        assert (first["attempt"], second["attempt"], run["attempt"]) == (1, 2, 2)
        assert second["first_step"] > 0
        earlier = [row for row in record.rows("metrics") if row["attempt"] == 1 and row["step"]]
        assert max(row["step"] for row in earlier) == second["first_step"] - 1

    @pytest.mark.slow
    def test_processes_share_one_run(
        self, config: dict[str, Any], store_url: str, tmp_path: Path
    ) -> None:
        """Two processes of one training record one run; each metric's point is there once."""
        self.train_processes(tmp_path, config)
        record = Record(store_url)
        run = record.run()
        assert run["status"] == "finished"
        points = record.rows("metrics")
        assert {row["run_id"] for row in points} == {run["run_id"]}
        assert {row["rank"] for row in points} <= {0, 1}
