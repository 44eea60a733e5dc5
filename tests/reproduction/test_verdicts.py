"""What is called the same and what is not, on runs that were recorded here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tachograph
from tachograph.reproduction.evidence import gather
from tachograph.reproduction.verdict import (
    DIFFERENT,
    EXACT,
    FAILED,
    STATISTICAL,
    Change,
    Verdict,
    judge,
)
from tachograph.run import Run

Record = Callable[[Run], None]
Judge = Callable[..., Verdict]


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """The verdict on what two functions record."""
    stores = (f"sqlite:///{tmp_path}/{number}.sqlite" for number in itertools.count())
    monkeypatch.setenv("TACHOGRAPH_RECORD_SYSTEM", "false")
    monkeypatch.setenv("TACHOGRAPH_RECORD_CODE", "allow")

    def record(write: Record) -> str:
        run = tachograph.start_run()
        try:
            write(run)
        except ArithmeticError as error:
            run.finish("failed", error)
        run.finish()
        return run.run_id

    def judge_both(
        first: Record, second: Record, *changes: Change, lacks: tuple[str, ...] = ()
    ) -> Verdict:
        url = next(stores)  # so that the runs of another call are not of the same group
        monkeypatch.setenv("TACHOGRAPH_BACKEND", url)
        ids = record(first), record(second)
        with tachograph.open(url) as store:
            return judge(store, *ids, gather(store, *ids), changes, lacks=lacks)

    return judge_both


def points(*values: float, name: str = "x", start: int = 0) -> Record:
    """Records a metric from a step on."""

    def write(run: Run) -> None:
        for step, value in enumerate(values, start):
            run.log({name: value}, step)

    return write


def together(*records: Record) -> Record:
    """Records one after the other."""

    def write(run: Run) -> None:
        for record in records:
            record(run)

    return write


UNSEEDED = Change("seed", "seeds.numpy.state", "aa", "bb")
DATA = Change("data", "data.train.digest", "aa", "bb")
RATE = Change("configuration", "params.rate", 0.1, 0.2)
SEED = Change("seed", "params.seed", 1, 2)
GIVEN = Change("configuration", "argv.arguments", [], ["-v"])
LACKING = Change("environment", "packages.versions.a", None, "1")
VERSION = Change("environment", "packages.versions.b", "1", "2")
NO_CAUSE = Change("other", "git.dirty", False, True)


def test_the_first_cause_is_what_nothing_else_explains(judged: Judge) -> None:
    """A generator that nobody seeds is in another state each time, and an environment has more
    than the program uses: neither is named in the place of another cause."""
    found = [NO_CAUSE, LACKING, UNSEEDED, RATE, VERSION, DATA, SEED, GIVEN]
    verdict = judged(points(1.0), points(2.0), *found)
    assert verdict.changes == [GIVEN, SEED, VERSION, DATA, RATE, UNSEEDED, LACKING, NO_CAUSE]
    assert (verdict.cause, verdict.doubt) == (GIVEN, None)


def test_a_cause_in_doubt_is_said_to_be_in_doubt(judged: Judge) -> None:
    """With what the record lacks, once."""
    one, two = points(1.0), points(2.0)
    perhaps = judged(one, two, UNSEEDED, LACKING, NO_CAUSE).doubt
    assert perhaps is not None
    assert perhaps.startswith("perhaps numpy, which began in another state, or one of 1 packages")
    lacks = ("numpy is not known to be seeded",)
    assert judged(one, two, UNSEEDED, lacks=lacks).doubt == lacks[0]
    assert judged(one, two, NO_CAUSE).doubt == "nothing that was recorded differs"
    assert judged(one, two, RATE, UNSEEDED, lacks=lacks).doubt is None
    assert judged(one, one, UNSEEDED, lacks=lacks).doubt is None


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(("first", "second"), [(INF, 1.0), (1.0, INF), (INF, -INF), (NAN, 1.0)])
def test_no_number_is_near_to_what_is_none(judged: Judge, first: float, second: float) -> None:
    """However large a share of infinity may be."""
    assert judged(points(0.0, first), points(0.0, second)).verdict == DIFFERENT


def test_a_point_that_one_lacks_is_told_at_its_step(judged: Judge) -> None:
    """Not as two values of the same step."""
    for pair, values in (((0, 2), (1.0, None)), ((2, 0), (None, 1.0))):
        verdict = judged(points(1.0, 1.0, start=pair[0]), points(1.0, 1.0, start=pair[1]))
        departure = verdict.departure
        assert departure is not None
        assert (departure.step, departure.first, departure.second) == (0, *values)


def test_of_metrics_that_part_at_once_the_first_by_name_is_named(judged: Judge) -> None:
    """The same one in every process, whatever the hashes of texts."""
    names = "hgfedcba"
    verdict = judged(
        lambda run: run.log(dict.fromkeys(names, 1.0), 0),
        lambda run: run.log(dict.fromkeys(names, 2.0), 0),
    )
    assert [departure.metric for departure in verdict.evidence.departures] == sorted(names)


def test_metrics_that_recording_had_no_time_for_are_not_missed(judged: Judge) -> None:
    """Those of the training are."""
    often, seldom = together(points(1.0), points(1.0, name="gradient_norm")), points(1.0)
    assert judged(often, seldom).verdict == EXACT
    assert judged(seldom, often).verdict == EXACT
    assert judged(together(points(1.0), points(1.0, name="y")), seldom).verdict == DIFFERENT


def test_parts_whose_names_look_numbered_are_all_compared(judged: Judge) -> None:
    """None stands for another."""

    def parts(second: float) -> Record:
        def write(run: Run) -> None:
            for name, value in (("a", 1.0), ("a", second), ("a (2)", 3.0)):
                with run.child("fold", name) as part:
                    part.log({"x": value}, 0)

        return write

    verdict = judged(parts(2.0), parts(2.0))
    assert (verdict.verdict, verdict.evidence.points) == (EXACT, 3)
    assert judged(parts(2.0), parts(2.5)).verdict == DIFFERENT


def outcome(*values: float | str) -> Record:
    """Records predictions."""
    return lambda run: run.log_outcome(np.array(values), "predictions")


def test_an_outcome_that_is_lacking_is_a_difference(judged: Judge) -> None:
    """One that the original lacks is told, and compared with nothing."""
    both = together(points(1.0), outcome(1.0))
    assert judged(both, both).verdict == EXACT
    assert judged(both, points(1.0)).verdict == DIFFERENT
    more = judged(points(1.0), both)
    assert more.verdict == EXACT
    assert "predictions: not recorded in both" in more.reason


def test_outcomes_alone_are_near_only_where_their_norms_are(judged: Judge) -> None:
    """Texts have none."""
    assert judged(outcome("a", "b"), outcome("a", "b")).verdict == EXACT
    assert judged(outcome("a", "b"), outcome("a", "c")).verdict == DIFFERENT
    assert judged(outcome(1.0, 2.0), outcome(1.0, 2.0 + 1e-12)).verdict == STATISTICAL
    assert judged(outcome(1.0, 2.0), outcome(1.0, 3.0)).verdict == DIFFERENT


def test_a_sample_alone_proves_nothing(judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though equal, it is not every bit."""
    from tachograph.provenance import outcomes

    monkeypatch.setattr(outcomes, "EXACT_BYTES", 1 << 10)
    monkeypatch.setattr(outcomes, "SAMPLE_BYTES", 1 << 10)
    large = outcome(*map(float, range(100_000)))
    assert judged(large, large).verdict != EXACT
    verdict = judged(together(points(1.0), large), together(points(1.0), large))
    assert verdict.verdict == EXACT
    assert "predictions: same in a sample" in verdict.reason


def test_one_that_failed_and_one_that_did_not_are_not_the_same(judged: Judge) -> None:
    """Where they have recorded the same points, too."""

    def fails(run: Run) -> None:
        points(1.0)(run)
        raise ArithmeticError

    assert judged(points(1.0), fails).verdict == FAILED
    assert judged(fails, points(1.0)).verdict == FAILED
    assert judged(fails, fails).verdict == EXACT


def test_runs_without_results_are_not_the_same(judged: Judge) -> None:
    """Nor are runs of whose metrics one has none; contexts and ranks are metrics of their own."""
    nothing: Record = lambda run: None  # noqa: E731
    assert judged(nothing, nothing).verdict == FAILED
    assert judged(nothing, points(1.0)).verdict == DIFFERENT
    assert judged(points(1.0), nothing).verdict == DIFFERENT
    test: Record = lambda run: run.log({"x": 1.0}, 0, context={"phase": "test"})  # noqa: E731
    assert judged(points(1.0), test).verdict == DIFFERENT


def test_parts_that_end_otherwise_are_different(judged: Judge) -> None:
    """A trial that was pruned has not finished, whatever it recorded."""

    def trial(status: str) -> Record:
        def write(run: Run) -> None:
            part = run.child("trial", "trial")
            part.log({"x": 1.0}, 0)
            part.finish(status)

        return write

    assert judged(trial("pruned"), trial("pruned")).verdict == EXACT
    verdict = judged(trial("pruned"), trial("finished"))
    assert (verdict.verdict, verdict.reason) == (
        DIFFERENT,
        "trial ended as finished, not as pruned",
    )


def test_many_digests_are_counted_and_not_listed(judged: Judge) -> None:
    """A study has some for each trial."""

    def digests(count: int) -> Record:
        return lambda run: [run.log_outcome([1.0], f"made.{n}") for n in range(count)] and None

    assert judged(digests(5), digests(5)).reason == (
        "5 digests of what was made are the same bit for bit"
    )
    assert "outcome.made.0 and outcome.made.1 are" in judged(digests(2), digests(2)).reason
