"""Rounds that do not wait: who starts, who is taken, from which version, and with how much of the band."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strategies.modes import NO_RATE, Overlapping
from strategies.plan import Assignment, OfdmaPlan, RoundPlan, Slot
from strategies.versions import Version, staleness_weight


@dataclass
class Cell:
    """A scheme whose devices take the seconds that they are given; all that start share the band equally."""

    seconds: list[float]
    uploads: list[bool] = field(default_factory=list)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))
    plans: list = field(default_factory=list)

    @property
    def present(self):
        return Version(0, self.weights)

    @property
    def empty(self):
        return OfdmaPlan(32, {})

    def choose(self, server_round, devices, number, turn):
        return list(devices)[:number]

    def plan(self, server_round, devices, *, band=1.0):
        self.plans.append((server_round, list(devices), band))
        slots = {
            device: Slot(
                bits=8 if not self.uploads or self.uploads[device] else 0,
                latency=self.seconds[device],
                counts=not self.uploads or self.uploads[device],
                share=band / len(devices),
            )
            for device in devices
        }
        return RoundPlan(tuple(Assignment(device, 0, {}) for device in devices), detail=OfdmaPlan(32, slots))

    def totals(self, rows, absent):
        return {}


def _devices(plan):
    return [assignment.device for assignment in plan.assignments]


def _go(mode, cell, rounds, first=1):
    """Plan rounds, each of which makes a new version; return the plans."""
    plans = []
    for server_round in range(first, first + rounds):
        cell.weights = np.full(3, mode.version, np.float32)  # tells the version
        plans.append(mode.plan(server_round, cell))
        mode.close(changed=True)
    return plans


def test_who_is_late_is_taken_in_the_window_in_which_it_is_done():
    """A tier of 3 windows, as in TT-Prune: its uploads are 2 versions old."""
    mode = Overlapping(3, threshold=1.0)
    plans = _go(mode, Cell([2.5, 0.9, 1.0]), 6)
    assert [_devices(plan) for plan in plans] == [[1, 2], [1, 2], [0, 1, 2]] * 2
    assert [plan.columns["time_s"] for plan in plans] == [1, 2, 3, 4, 5, 6]
    assert [plan.columns["at_work"] for plan in plans] == [1, 1, 0] * 2
    late = plans[5].assignments[0].start
    assert (late.version.number, late.staleness, late.weight) == (3, 2, staleness_weight(2, 0.5))
    assert plans[5].assignments[0].columns == {"version": 3, "staleness": 2}
    assert (late.version.weights == 3).all()  # it was sent version 3
    assert plans[2].columns["staleness"] == pytest.approx(2 / 3)


@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=8), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_band_is_never_given_away_twice_and_time_is_what_the_plans_say(seconds, number, buffered):
    number = min(number, len(seconds))
    mode = Overlapping(
        len(seconds), at_work=number, threshold=1.0, buffer=max(1, number - 1) if buffered else None
    )
    cell, clock = Cell(seconds), 0.0
    started: dict[int, int] = {}
    for server_round in range(1, 12):
        before, had = len(cell.plans), dict(started)
        (plan,) = _go(mode, cell, 1, server_round)
        for _, devices, band in cell.plans[before:]:
            assert 0 < band <= 1
            started |= dict.fromkeys(devices, server_round)
        assert sum(p.slot.share for p in mode._pending.values()) <= 1 + 1e-9
        assert len(mode._pending) <= number
        clock += plan.detail.seconds
        assert plan.columns["time_s"] == pytest.approx(clock)
        for assignment in plan.assignments:
            begun = started[assignment.device]
            assert assignment.start.version.number == begun - 1
            assert assignment.start.staleness == server_round - begun
            if begun < server_round:
                assert had[assignment.device] == begun
        assert plan.assignments or not seconds


def test_a_buffer_closes_a_round_with_its_uploads_and_a_device_is_in_it_once():
    mode = Overlapping(6, at_work=4, threshold=1.0, buffer=3)
    cell = Cell([0.1, 0.2, 5.0, 7.0, 0.3, 0.4])
    plans = _go(mode, cell, 3)
    # 0 ends at 0.1 and rests; 4 takes its place and ends at 0.4 after 1, whose place 5 takes.
    assert _devices(plans[0]) == [0, 1, 4]
    assert plans[0].columns["time_s"] == pytest.approx(0.4)
    assert [turn[1] for turn in cell.plans[:3]] == [[0, 1, 2, 3], [4], [5]]
    assert all(len(set(_devices(plan))) == 3 for plan in plans)


@given(st.lists(st.floats(0.01, 9.0), min_size=2, max_size=8))
@example([0.010000000000000002, 0.01])  # the same time to the clock, which takes the lower index first
def test_a_buffer_of_all_is_a_synchronous_round(seconds):
    mode = Overlapping(len(seconds), threshold=1.0, buffer=len(seconds))
    for plan in _go(mode, Cell(seconds), 3):
        assert _devices(plan) == list(range(len(seconds)))
        assert plan.detail.seconds == max(seconds)
        assert all(assignment.start.staleness == 0 for assignment in plan.assignments)


@pytest.mark.parametrize("buffer", [None, 2])
def test_nobody_waits_for_a_device_that_sends_nothing_and_it_goes_on(buffer):
    mode = Overlapping(3, threshold=10.0, buffer=buffer)
    plans = _go(mode, Cell([4.0, 1.0, 1.0], uploads=[False, True, True]), 4)
    assert [_devices(plan) for plan in plans] == [[1, 2], [1, 2], [1, 2], [0, 1, 2]]
    assert [plan.columns["time_s"] for plan in plans] == [1, 2, 3, 4]


@pytest.mark.parametrize("buffer", [None, 1])
def test_where_nobody_sends_anything_time_goes_on_all_the_same(buffer):
    mode = Overlapping(2, threshold=1.0, buffer=buffer)
    plans = _go(mode, Cell([2.5, 2.5], uploads=[False, False]), 2)
    assert [_devices(plan) for plan in plans] == [[0, 1], [0, 1]]
    assert plans[1].columns["time_s"] == 5.0


def test_a_dead_channel_costs_its_device_the_round():
    cell = Cell([np.inf, 0.5])
    mode = Overlapping(2, threshold=1.0)
    (plan,) = _go(mode, cell, 1)
    assert _devices(plan) == [1]
    assert (plan.absent[0]["status"], plan.absent[0]["reason"]) == ("failed", NO_RATE)
    cell.seconds[0] = 0.25
    assert _devices(_go(mode, cell, 1, 2)[0]) == [0, 1]


def test_a_round_that_changed_nothing_makes_no_version():
    """Staleness counts versions, not rounds."""
    mode = Overlapping(2, threshold=1.0)
    cell = Cell([2.5, 0.5])
    mode.plan(1, cell)
    assert mode.close(changed=False) == {"version": 0}
    _go(mode, cell, 1, 2)
    assert mode.plan(3, cell).assignments[0].start.staleness == 1


@given(
    st.lists(st.floats(0.01, 9.0), min_size=2, max_size=6),
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_what_is_stored_between_rounds_is_all_there_is(seconds, done, at_work, buffered):
    def start():
        return Overlapping(
            len(seconds),
            at_work=min(at_work, len(seconds)),
            threshold=1.0,
            buffer=min(2, len(seconds)) if buffered else None,
        )

    whole = _go(start(), Cell(seconds), done + 4)
    half, rest = start(), start()
    _go(half, Cell(seconds), done)
    rest.restore({name: np.array(value) for name, value in half.state().items()})
    for one, other in zip(_go(rest, Cell(seconds), 4, done + 1), whole[done:], strict=True):
        assert one.columns == other.columns
        assert one.detail == other.detail
        assert _devices(one) == _devices(other)
        for mine, theirs in zip(one.assignments, other.assignments, strict=True):
            assert (mine.start.staleness, mine.start.weight) == (theirs.start.staleness, theirs.start.weight)
            assert (mine.start.version.weights == theirs.start.version.weights).all()


def test_only_versions_in_use_are_kept():
    mode = Overlapping(3, threshold=1.0)
    _go(mode, Cell([7.5, 0.5, 2.5]), 5)  # device 0 began with version 0, device 2 with version 3
    assert mode.state()["version-numbers"].tolist() == [0, 3]
    kept = defaultdict(list)
    for pending in mode._pending.values():
        kept[pending.version.number].append(pending.assignment.device)
    assert dict(kept) == {0: [0], 3: [2]}


@pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (3, 0.5), (8, 1 / 3)])
def test_the_weight_of_a_stale_upload(staleness, weight):
    assert staleness_weight(staleness, 0.5) == pytest.approx(weight)
    assert staleness_weight(staleness, 0.0) == 1.0
