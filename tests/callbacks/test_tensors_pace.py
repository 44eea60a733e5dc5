"""When tensors are recorded: within the budget by a clock of the test, or exactly as asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.callbacks.tensors_pace import FREE_SECONDS, Every, Pace, Schedule

BUDGET = 0.02


class Clock:
    """A clock that goes as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def train(
    steps: int, step_seconds: float, cost: float, *, estimate: float = 0.0, ratio: float = 3.0
) -> tuple[list[int], list[float], list[float]]:
    """Train with everything on 'auto': recorded steps; per step the time and the cost so far."""
    clock = Clock()
    schedule = Schedule(budget=BUDGET, estimate=estimate, snapshots="auto", clock=clock)
    recorded, times, costs = [], [], []
    spent = 0.0
    for step in range(steps):
        clock.now += step_seconds
        if plan := schedule.plan(step):
            parts = (cost, ratio * cost * plan.histograms, cost * plan.snapshot)
            clock.now += sum(parts)
            spent += sum(parts)
            schedule.spent(step, *parts)
            recorded.append(step)
        times.append(clock.now - 1000.0)
        costs.append(spent)
    assert schedule.spent_seconds == pytest.approx(spent)
    return recorded, times, costs


@pytest.mark.parametrize("step_seconds", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.01, 0.1])
def test_auto_keeps_to_the_budget_from_the_first_step_on(step_seconds: float, cost: float) -> None:
    """At no time has more been spent than the share, and the few ms that each kind has free."""
    recorded, times, costs = train(2000, step_seconds, cost, estimate=cost)
    for time, spent in zip(times, costs, strict=True):
        assert spent <= BUDGET * time + 3 * FREE_SECONDS
    if times[-1] > 2 * cost / BUDGET:
        assert recorded
    if times[-1] > 100 * cost / BUDGET:  # and it makes use of what it has
        assert costs[-1] >= 0.2 * min(BUDGET * times[-1], 2000 * 4 * cost)


@settings(max_examples=25, deadline=None)
@given(
    step_seconds=st.floats(0.0005, 2.0),
    cost=st.floats(0.00005, 0.2),
    error=st.floats(0.3, 3.0),
)
def test_a_wrong_estimate_costs_one_record(step_seconds: float, cost: float, error: float) -> None:
    """However wrong the estimate is, only the first records can be too early."""
    _, times, costs = train(800, step_seconds, cost, estimate=error * cost)
    first = 5 * cost  # moments, a histogram and a snapshot
    for time, spent in zip(times, costs, strict=True):
        assert spent <= BUDGET * time + 3 * FREE_SECONDS + first


@settings(max_examples=25, deadline=None)
@given(seconds=st.lists(st.floats(0.001, 0.5), min_size=200, max_size=400))
def test_steps_of_changing_length_keep_to_the_budget(seconds: list[float]) -> None:
    """What counts is time, not the number of steps."""
    clock = Clock()
    pace = Pace("auto", BUDGET, clock=clock)
    spent = 0.0
    for step, passed in enumerate(seconds):
        clock.now += passed
        if pace.due(step):
            clock.now += 0.005
            spent += 0.005
            pace.spent(step, 0.005)
        assert spent <= BUDGET * (clock.now - 1000.0) + 0.005


def test_ranks_of_different_speed_share_steps() -> None:
    """Each records at multiples of a power of two, so the slower pace finds the other's steps."""
    fast, slow = (set(train(4000, seconds, 0.004)[0][20:]) for seconds in (0.05, 0.02))
    assert len(fast & slow) >= 0.9 * min(len(fast), len(slow))


def test_what_a_device_tells_later_is_waited_for_too() -> None:
    """Late costs move the next record as early ones do."""
    clock = Clock()
    pace = Pace("auto", BUDGET, clock=clock)
    assert pace.due(0)
    pace.spent(0, 0.001)
    pace.late(0.019)
    clock.now += 0.9
    assert not pace.due(1)
    clock.now += 0.2
    assert pace.due(2)
    assert pace.spent_seconds == pytest.approx(0.02)
    pace.spent(2, 0.001)
    pace.late(0.0, 0.019)  # writing the record down, when it has come from there
    clock.now += 0.9
    assert not pace.due(3)
    assert (pace.spent_seconds, pace.late_seconds) == pytest.approx((0.04, 0.019))


# ---------------------------------------------------------------------------- exactly as asked


def planned(steps: Sequence[int], **arguments: Every) -> dict[int, tuple[bool, bool]]:
    """Recorded steps with whether they have histograms and snapshots; each costs an hour."""
    clock = Clock()
    schedule = Schedule(**arguments, clock=clock)  # type: ignore[arg-type]
    found = {}
    for step in steps:
        clock.now += 0.001
        if plan := schedule.plan(step):
            found[step] = (plan.histograms, plan.snapshot)
            schedule.spent(step, 3600.0, 3600.0 * plan.histograms, 3600.0 * plan.snapshot)
    return found


@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize("first", [0, 5, 1000])
def test_every_n_is_exact(every: int, first: int) -> None:
    """The steps that n divides, whatever it costs and wherever the fit begins."""
    steps = range(first, first + 500)
    assert list(planned(steps, every=every)) == [step for step in steps if step % every == 0]


def test_a_step_that_is_left_out_has_the_next_one_stand_for_it() -> None:
    """A framework that says where it is at every tenth step only is recorded all the same."""
    assert list(planned(range(9, 200, 10), every=40)) == [49, 89, 129, 169]
    assert list(planned(range(9, 60, 10), every=2)) == [19, 29, 39, 49, 59]
    seldom = Clock()
    pace = Pace("auto", BUDGET, clock=seldom)
    found = []
    for step in range(9, 4000, 10):
        seldom.now += 0.1
        if pace.due(step):
            found.append(step)
            pace.spent(step, 0.02)
    assert len(found) > 20


def test_a_step_that_is_asked_twice_gets_one_answer() -> None:
    """Two optimizers of one step record both or neither."""
    schedule = Schedule(every=10)
    for step in range(50):
        assert (schedule.plan(step) is None) is (schedule.plan(step) is None) is (step % 10 > 0)


def test_histograms_have_an_interval_of_their_own() -> None:
    """A given one counts steps; one that is found out counts records."""
    found = planned(range(100), every=5, histograms=20)
    assert [step for step, (histogram, _) in found.items() if histogram] == [0, 20, 40, 60, 80]
    found = planned(range(100), every=5, histograms=12)
    assert [step for step, (histogram, _) in found.items() if histogram] == [
        *(0, 15, 25, 40, 50, 60, 75, 85),  # the first record at or behind each multiple of 12
    ]
    assert not any(histogram for histogram, _ in planned(range(9), histograms="off").values())
    assert planned(range(3), every=1, histograms="auto") == {
        **{0: (True, False), 1: (False, False), 2: (False, False)}
    }


def test_snapshots_that_are_asked_for_are_taken_at_their_steps() -> None:
    """Also where nothing else would be recorded there."""
    found = planned(range(100), every=16, snapshots=[5, 32, 70])
    assert [step for step, (_, snapshot) in found.items() if snapshot] == [5, 32, 70]
    assert set(found) == {*range(0, 100, 16), 5, 70}
    found = planned(range(100), every="auto", histograms="off", snapshots=25)
    assert [step for step, (_, snapshot) in found.items() if snapshot] == [0, 25, 50, 75]
    assert list(planned(range(9, 100, 10), every=50, snapshots=[12, 13])) == [19, 59]


def test_off_is_off() -> None:
    """Neither histograms nor snapshots come where they are switched off."""
    found = planned(range(50), every=1, histograms="off", snapshots="off")
    assert set(found.values()) == {(False, False)}
