"""Download and upload by two clocks: exact where the clocks agree, never negative where they do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.journeys import BEGAN, DOWNLOAD, ENDED, UPLOAD, Journeys

seconds = st.floats(0.0, 1e4)


class Clock:
    def __init__(self) -> None:
        self.time = 1e9

    def __call__(self) -> float:
        return self.time


def exchange(journeys, clock, download, work, upload, ahead, device=0):
    """Let an order be carried out by a node whose clock is ahead."""
    journeys.sent(device)
    clock.time += download
    began = clock.time + ahead
    clock.time += work
    ended = clock.time + ahead
    clock.time += upload
    journeys.heard(device)
    return journeys.columns(device, {BEGAN: began, ENDED: ended})


@given(seconds, seconds, seconds)
def test_clocks_that_agree_tell_download_and_upload(download, work, upload):
    clock = Clock()
    found = exchange(Journeys(clock), clock, download, work, upload, ahead=0.0)
    assert found[DOWNLOAD] == pytest.approx(download, abs=1e-5)
    assert found[UPLOAD] == pytest.approx(upload, abs=1e-5)


@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=8), st.floats(-1e5, 1e5))
def test_whatever_the_clock_their_sum_is_right_and_neither_is_negative(exchanges, ahead):
    clock = Clock()
    journeys = Journeys(clock)
    for download, work, upload in exchanges:
        found = exchange(journeys, clock, download, work, upload, ahead)
        assert min(found.values()) >= 0
        assert sum(found.values()) == pytest.approx(download + upload, abs=1e-4)


def test_a_clock_that_is_wrong_is_found_out_by_the_fastest_journeys():
    """A node an hour ahead: once an upload took no time the clock is known, and downloads with it."""
    clock = Clock()
    journeys = Journeys(clock)
    exchange(journeys, clock, 2.0, 5.0, 0.0, ahead=3600.0)
    assert exchange(journeys, clock, 1.5, 5.0, 0.5, ahead=3600.0) == pytest.approx(
        {DOWNLOAD: 1.5, UPLOAD: 0.5}
    )


def test_a_clock_that_was_set_is_not_held_against_its_past():
    clock = Clock()
    journeys = Journeys(clock)
    exchange(journeys, clock, 1.0, 5.0, 0.0, ahead=3600.0)
    assert exchange(journeys, clock, 1.0, 5.0, 2.0, ahead=0.0) == pytest.approx({DOWNLOAD: 1.0, UPLOAD: 2.0})


@pytest.mark.parametrize(
    "reported",
    [
        {}, {BEGAN: 1e9}, {BEGAN: 1e9 + 5, ENDED: 1e9}, {BEGAN: 1e9, ENDED: 1e9 + 100},
        {BEGAN: -1e308, ENDED: 1e308},
    ],
)  # fmt: skip
def test_what_cannot_be_is_not_recorded(reported):
    clock = Clock()
    journeys = Journeys(clock)
    journeys.sent(0)
    clock.time += 10
    journeys.heard(0)
    assert journeys.columns(0, reported) == {}
    assert journeys.columns(0, {BEGAN: 1e9, ENDED: 1e9}) == {}  # each exchange counts once


def test_each_device_has_a_clock_of_its_own():
    clock = Clock()
    journeys = Journeys(clock)
    exchange(journeys, clock, 1.0, 1.0, 0.0, ahead=3600.0, device=0)
    assert exchange(journeys, clock, 1.0, 1.0, 2.0, ahead=0.0, device=1) == pytest.approx(
        {DOWNLOAD: 1.0, UPLOAD: 2.0}
    )
