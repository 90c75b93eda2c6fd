"""The emulated clock: events in the order of (time, device), and windows that close when they should."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.clock import Clock, Work, window

SECONDS = st.floats(0.001, 50.0)
WORKS = st.lists(st.tuples(SECONDS, st.booleans()), min_size=1, max_size=12).map(
    lambda found: [Work(device, left, awaited=awaited) for device, (left, awaited) in enumerate(found)]
)


@given(WORKS)
def test_works_end_in_the_order_of_time_and_device(works):
    clock = Clock(0.0, works)
    order = [clock.pop() for _ in works]
    assert order == sorted(works, key=lambda work: (round(work.left * 1e9), work.device))
    assert clock.first() is None


def test_equal_times_come_in_the_order_of_the_devices_whatever_the_last_bit():
    """Or a run would depend on how a machine rounds a logarithm."""
    later, sooner = 0.024250458585858586, 0.024250458585858583
    clock = Clock(0.0, [Work(7, sooner), Work(3, later)])
    assert [clock.pop().device, clock.pop().device] == [3, 7]


@given(WORKS, st.floats(0.01, 20.0))
def test_a_window_closes_at_a_deadline_by_which_somebody_is_done_or_with_the_last_who_is_worth_it(
    works, threshold
):
    clock = Clock(0.0, works)
    seconds = window(clock, threshold)
    first = min(work.left for work in works)
    awaited = [work.left for work in works if work.awaited] or [work.left for work in works]
    assert seconds >= first * (1 - 1e-9)
    assert seconds <= max(awaited) or math.isclose(seconds / threshold, round(seconds / threshold))
    assert seconds < first + threshold * (1 + 1e-9) or seconds == max(awaited)
    if max(awaited) <= threshold:
        assert seconds == max(awaited)  # to the last bit: nobody waits where all are in time
    assert clock.until(seconds)


@given(WORKS, st.floats(0.01, 20.0))
def test_every_work_takes_its_time_however_many_windows_it_spans(works, threshold):
    clock = Clock(0.0, works)
    ended: dict[int, float] = {}
    while clock.works:
        opened, seconds = clock.time, window(clock, threshold)
        done = clock.until(seconds)
        clock.close(seconds)
        ended |= {work.device: opened + work.left for work in done}
    for work in works:
        assert ended[work.device] == pytest.approx(work.left, rel=1e-9, abs=1e-9 * len(works))


def test_what_fills_the_window_up_to_rounding_is_in_time():
    clock = Clock(0.0, [Work(0, 0.1 * 3), Work(1, 5.0)])  # 0.30000000000000004
    assert window(clock, 0.3) == 0.3
    assert [work.device for work in clock.until(0.3)] == [0]


def test_nobody_at_work_waits_for_the_deadline():
    assert window(Clock(), 2.0) == 2.0


def test_who_is_at_work_cannot_start_again_nor_who_would_never_end():
    clock = Clock(0.0, [Work(1, 2.0)])
    with pytest.raises(ValueError, match="device 1 is at work already"):
        clock.start(Work(1, 1.0))
    with pytest.raises(ValueError, match="device 2 would be done after inf s"):
        clock.start(Work(2, math.inf))
    clock.pop()
    with pytest.raises(ValueError, match="nobody"):
        clock.pop()
