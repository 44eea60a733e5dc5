"""Rows of an evaluation that are among the training rows are told; a clean split raises nothing."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import train_test_split

from tachograph import start_run
from tachograph.provenance.row_hashes import hash_rows
from tachograph.recording import splits
from tachograph.run import Run
from tachograph.testing.callback_contract import QUIET, Record

RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((1_000, 5))
CLEAN = RNG.standard_normal((100, 5))
LEAKY = np.concatenate([TRAIN[:12], CLEAN[12:]])


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return QUIET | {"backend": f"sqlite:///{tmp_path}/runs.sqlite", "project": "tests"}


Found = tuple[list[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def found(config: dict[str, Any]) -> Callable[[Callable[[Run], Any]], Found]:
    """Calls a function with a run; gives the events on overlaps, and the run's document."""

    def call(record: Callable[[Run], Any]) -> Found:
        with start_run(config=config) as run:
            record(run)
        stored = Record(config["backend"])
        events = [json.loads(row["data"]) for row in stored.rows("events", kind="warning")]
        documents = stored.rows("provenance", run_id=run.run_id, section="splits")
        return events, json.loads(documents[0]["document"]) if documents else {}

    return call


Call = Callable[[Callable[[Run], Any]], Found]


def test_an_overlap_is_one_event_with_its_count(found: Call) -> None:
    """Whatever is logged first; and once where a split is logged again."""

    def record(run: Run) -> None:
        run.log_data(LEAKY, "test")
        run.log_data({"x": TRAIN, "y": TRAIN[:, 0]}, "train")
        run.log_data(LEAKY, "test")

    events, document = found(record)
    counted = {"train": "train", "evaluation": "test", "rows": 12, "of": 100, "share": 0.12}
    counted["counted"] = "exact"
    assert events == [counted]
    assert document["overlaps"] == [counted | {"finding": "overlap"}]
    assert document["splits"]["test"] == {
        "role": "evaluation",
        "rows": 100,
        "distinct": 100,
        "duplicates": 0,
        "counted": "exact",
    }


def test_the_event_says_it_in_a_line(config: dict[str, Any]) -> None:
    """As a warning."""
    with start_run(config=config) as run:
        run.log_data(np.tile(TRAIN, (2, 1)), "X")
        run.log_data(np.tile(TRAIN, (2, 1)), "validation")
    (event,) = Record(config["backend"]).rows("events", kind="warning")
    assert event["message"] == (
        "2,000 of 2,000 rows of 'validation' are among the training rows ('X')"
    )
    assert event["level"] == "warning"


def test_a_clean_split_was_looked_at(found: Call) -> None:
    """The document says so; labels, which are always alike, are no rows."""

    def record(run: Run) -> None:
        for name, rows in (("train", TRAIN), ("val", CLEAN)):
            run.log_data(rows, f"X_{name}")
            run.log_data((rows[:, 0] > 0).astype(int), f"y_{name}")

    events, document = found(record)
    assert events == []
    assert set(document["splits"]) == {"X_train", "X_val"}
    (overlap,) = document["overlaps"]
    assert (overlap["rows"], overlap["of"], overlap["finding"]) == (0, 100, "none")


def test_no_overlap_where_nothing_is_trained_on_or_evaluated(found: Call) -> None:
    """Of names that do not tell nothing is known, and validation and test may be the same."""

    def record(run: Run) -> None:
        for name in ("data", "val", "test", "images"):
            run.log_data(TRAIN, name)

    events, document = found(record)
    assert events == document["overlaps"] == []


def test_rows_that_cannot_be_read_are_missing(found: Call) -> None:
    """With the reason."""

    def record(run: Run) -> None:
        run.log_data(TRAIN, "train")
        run.log_data(iter([1]), "test")

    events, document = found(record)
    assert events == document["overlaps"] == []
    assert "not read" in document["splits"]["test"]["missing"]


def test_a_look_at_the_training_data_is_none(found: Call) -> None:
    """Where a framework is asked for it; but a part of them is."""

    def record(run: Run) -> None:
        run.log_data(TRAIN, "train")
        run.log_data(TRAIN[::-1], "validation_0", role="watched")
        run.log_data(TRAIN[:50], "validation_1", role="watched")
        run.log_data(TRAIN[:50], "predict")

    events, document = found(record)
    assert [(event["evaluation"], event["rows"]) for event in events] == [("validation_1", 50)]
    findings = {one["evaluation"]: one["finding"] for one in document["overlaps"]}
    assert findings == {
        "validation_0": "same data",
        "validation_1": "overlap",
        "predict": "prediction",
    }


LITTLE = {
    "one small number": RNG.integers(0, 5, (1_000, 1)),
    "ten flags": RNG.integers(0, 2, (1_000, 10)),
    "categories as flags": np.hstack([np.eye(30)[RNG.integers(0, 30, 1_000)] for _ in range(3)]),
    "constant": np.ones((1_000, 40)),
    "text": np.array([f"word {i}" for i in RNG.integers(0, 90, 1_000)]),
    "iris": load_iris().data,
    "digits": load_digits().data,
}


@pytest.mark.parametrize("name", LITTLE)
def test_rows_that_tell_little_are_alike_by_chance(name: str) -> None:
    """A random split of them is clean, whatever rows are in both."""
    for seed in range(20):
        train, test = train_test_split(LITTLE[name], test_size=0.2, random_state=seed)
        fitted, seen = hash_rows(train), hash_rows(test)
        rows, _ = seen.rows_among(fitted)
        assert not rows or splits.is_chance(rows, seen, fitted)


def test_what_chance_explains_raises_nothing(found: Call) -> None:
    """It is a fact in the document."""

    def record(run: Run) -> None:
        run.log_data(LITTLE["ten flags"][:800], "train")
        run.log_data(LITTLE["ten flags"][800:], "test")

    events, document = found(record)
    (overlap,) = document["overlaps"]
    assert (events, overlap["finding"]) == ([], "chance")
    assert overlap["rows"] > 50


def test_rows_that_tell_little_may_still_be_too_many(found: Call) -> None:
    """More than what the repetitions in the training rows explain."""
    rows = np.unique(RNG.integers(0, 4, (2_000, 7)), axis=0)
    RNG.shuffle(rows)

    def record(run: Run) -> None:
        run.log_data(rows[:1000], "train")
        run.log_data(rows[900:1200], "test")

    assert [event["rows"] for event in found(record)[0]] == [100]


def test_repeating_rows_before_the_split_is_found(found: Call) -> None:
    """As many training rows have twins as test rows: that is the leak, and no chance."""
    train, test = train_test_split(np.tile(TRAIN, (2, 1)), random_state=0)

    def record(run: Run) -> None:
        run.log_data(train, "train")
        run.log_data(test, "test")

    (event,) = found(record)[0]
    assert event["rows"] == np.isin(test[:, 0], train[:, 0]).sum()


# ---------------------------------------------------------------------------- several runs


def study(run: Run, kind: str, *pairs: tuple[Any, Any]) -> None:
    for number, (train, test) in enumerate(pairs):
        with run.child(kind, f"{kind} {number}") as part:
            part.log_data(train, "train")
            part.log_data(test, "test")


def test_a_split_that_all_runs_share_is_clean(found: Call) -> None:
    """However many they are; its hashes are there once."""
    events, document = found(lambda run: study(run, "trial", *[(TRAIN, CLEAN)] * 5))
    assert (events, document) == ([], {})
    family = next(reversed(splits._families.values()))
    assert len(family.hashes) == 2


def test_test_rows_of_one_run_in_the_training_of_another(found: Call) -> None:
    """One event on the root, however many pairs of runs there are."""
    parts = np.split(TRAIN, [50, 200, 500])
    pairs = [(np.concatenate(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(4)]
    events, document = found(lambda run: study(run, "trial", *pairs))
    assert len(events) == 1
    assert (events[0]["rows"], events[0]["of"]) == (50, 50)
    assert events[0]["train_run"] != events[0]["evaluation_run"]
    assert document["across_runs"] == [events[0] | {"finding": "overlap"}]


def test_what_a_run_has_told_itself_is_not_told_again(found: Call) -> None:
    """Test rows of its own training, where another run has trained on the same."""
    events, _ = found(lambda run: study(run, "trial", (TRAIN, CLEAN), (TRAIN, LEAKY)))
    assert [(event["rows"], "train_run" in event) for event in events] == [(12, False)]


def test_folds_are_compared_alone(found: Call) -> None:
    """One fold's test rows are the training rows of all others, by design."""
    parts = np.array_split(TRAIN, 4)
    pairs = [(np.concatenate(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(4)]

    def record(run: Run) -> None:
        run.log_data(TRAIN, "X")
        study(run, "fold", *pairs)
        for fold, (train, test) in enumerate(pairs):
            run.compare_rows(train, "train", fold=fold)
            run.compare_rows(test, "test", fold=fold)
        run.compare_rows(parts[3][:7], "test", fold=0)

    events, document = found(record)
    assert [(event["evaluation"], event["rows"]) for event in events] == [("fold-0.test", 7)]
    assert set(document["splits"]) == {"X"}


def test_each_fold_has_a_document(found: Call, config: dict[str, Any]) -> None:
    """Processes that have a fold each do not replace what others have said."""
    parts = np.arange(500), np.arange(490, 1_000)

    def record(run: Run) -> None:
        run.compare_rows(TRAIN[parts[0]], "train", fold=1)
        run.compare_rows(TRAIN[parts[1]], "test", fold=1)
        run.compare_folds(TRAIN, [parts])

    events, _ = found(record)
    assert [event["rows"] for event in events] == [10, 10]
    rows = Record(config["backend"]).rows("provenance")
    sections = {row["section"]: json.loads(row["document"]) for row in rows}
    for fold in range(2):
        document = sections[f"splits.fold-{fold}"]
        assert set(document["splits"]) == {f"fold-{fold}.train", f"fold-{fold}.test"}
        assert [pair["rows"] for pair in document["overlaps"]] == [10]


def test_the_data_of_a_study_and_those_of_its_trials(found: Call) -> None:
    """Test data that are said of the study count for all of its runs."""

    def record(run: Run) -> None:
        run.log_data(LEAKY, "test")
        study(run, "trial", (TRAIN, CLEAN[20:]), (TRAIN, CLEAN[20:]))

    assert [event["rows"] for event in found(record)[0]] == [12]


def test_hashes_make_room_and_data_are_not_kept(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the runs recorded last; what was forgotten is not compared, and raises nothing."""
    monkeypatch.setattr(splits, "MOST_BYTES", 30_000)
    data = TRAIN.copy()
    reference = weakref.ref(data)
    with start_run(config=config) as run:
        run.log_data(data, "train")
        for number in range(4):
            run.log_data(TRAIN + number, f"test.{number}")
    with start_run(config=config) as other:
        other.log_data(data, "test")
    del data
    Record(config["backend"])  # once all has been done
    gc.collect()
    assert reference() is None
    assert set(splits._families) == {other.run_id}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "training") for name in ("train", "X", "X_train", "dtrain", "train.X", "fit")),
        *((name, "training") for name in ("trainset", "trainloader", "train_data")),
        *((name, "evaluation") for name in ("testset", "valLoader", "dev", "held_out")),
        *((name, "evaluation") for name in ("val", "val.0", "validation_0.X", "XTest", "dtest")),
        *((name, "evaluation") for name in ("valid", "eval set", "evaluation", "holdout")),
        *((name, "other") for name in ("data", "values", "images", "develop", "0")),
        *((name, None) for name in ("y", "y_test", "train.y", "test_labels", "targets")),
        ("predict", "prediction"),
    ],
)
def test_names_tell_what_a_split_is_for(name: str, role: str | None) -> None:
    """Of training, evaluation or neither; of what has no features nothing."""
    assert splits.role_of(name) == role
