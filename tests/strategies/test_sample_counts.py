"""A device counts with the images that it has, whatever it claims."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.sample_counts import SampleCounts

CLAIMS = st.integers(1, 2**52) | st.just(10**400)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.lists(CLAIMS, min_size=1, max_size=5))
def test_never_more_than_the_partition_gives_it(dealt, claims):
    counts = SampleCounts(dealt)
    for claim in claims:
        assert 1 <= counts.counted(0, claim) <= min(dealt[0], claims[0], claim)
    honest = SampleCounts(dealt)
    assert [honest.counted(k, own) for k, own in enumerate(dealt)] == dealt


@given(claims=st.lists(CLAIMS, min_size=1, max_size=5))
def test_own_images_count_up_to_the_operators_limit_and_never_more_than_at_first(claims):
    counts = SampleCounts([50], own_limit=2000)
    for claim in claims:
        assert counts.counted(0, claim) == min(claim, claims[0], 2000)


def test_a_resumed_run_remembers_the_first_claim():
    counts = SampleCounts([50, 50], own_limit=2000)
    counts.counted(1, 700)
    other = SampleCounts([50, 50], own_limit=2000)
    other.restore(counts.state())
    assert other.counted(1, 900) == 700
    assert other.counted(0, 900) == 900


def test_the_operator_is_told_once(caplog):
    counts = SampleCounts([50])
    for _ in range(3):
        assert counts.counted(0, 10**18) == 50
    assert [record.getMessage() for record in caplog.records] == [
        "device 0 claims more than 2^53 training images; it counts with 50 "
        "(what the partition gives it; for images of its own set fleet.max_own_images)"
    ]


@pytest.mark.parametrize("claim", [10**400, 2**63], ids=["10^400", "2^63"])
def test_numbers_that_no_float_holds(claim):
    assert SampleCounts([50]).counted(0, claim) == 50
    assert SampleCounts().counted(0, claim) <= 2**53
