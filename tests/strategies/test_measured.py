"""Ratios follow measured compute and uplink, and stay within the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import TrainReport
from radio import payload
from strategies.base import NOT_CONNECTED
from strategies.fleet import Fleet
from strategies.measured import MeasuredLink, MeasuredStrategy, RunningMedian, num_kept
from strategies.records import RoundLog

N = 20_000


@given(
    compute=st.floats(0, 2),
    rate=st.floats(1e3, 1e10),
    margin=st.floats(0.1, 1),
    bits=st.sampled_from([32, 16, 8]),
)
def test_compute_plus_transfer_fits_the_budget_and_no_weight_more_would(compute, rate, margin, bits):
    link = MeasuredLink(threshold=1.0, margin=margin, bits_per_weight=bits)
    kept = num_kept(link, N, compute, rate)

    def total(number):
        return compute + (payload.payload_bits(N, number, bits) if number else 0) / rate

    if kept:
        assert total(kept) <= margin * (1 + 1e-9)
    if kept < N:
        assert total(kept + 1) > margin * (1 - 1e-9)


def test_nothing_known_means_the_initial_ratio():
    link = MeasuredLink(threshold=1.0, initial_pruning_ratio=0.25)
    assert num_kept(link, N, None, 1e6) == num_kept(link, N, 0.1, None) == 0.75 * N


def test_the_largest_ratio_is_respected():
    assert num_kept(MeasuredLink(threshold=1.0, max_pruning_ratio=0.9), N, 5.0, 1e3) == 0.1 * N


def test_one_odd_sample_does_not_move_the_median():
    estimate = RunningMedian(3)
    for sample in (1.0, 1.1, 100.0):
        estimate.add(sample)
    assert estimate.value == 1.1
    estimate.add(100.0)
    assert estimate.value == 100.0


def _strategy(**options):
    return MeasuredStrategy(
        link=MeasuredLink(threshold=1.0, **options), seed=1, num_weights=N, spec="", fleet=Fleet(2)
    )


def _round(strategy, number, rates, compute=0.1):
    strategy.log = RoundLog(number)
    plan = strategy.plan(number, [0, 1])
    for assignment in plan.assignments:
        rate = rates[assignment.device]
        if rate is None:
            continue
        metrics = {"measured-compute-seconds": compute, "stated-uplink-bps": rate}
        columns = plan.detail.account(assignment.device, N - assignment.num_pruned)
        strategy.accepted(assignment.device, TrainReport(None, 1, metrics), columns)
    strategy.close_round(plan)
    return [assignment.num_pruned / N for assignment in plan.assignments]


def test_a_link_at_a_tenth_raises_the_ratio_within_three_rounds_and_recovers():
    strategy, rate = _strategy(), 1e6
    before = [_round(strategy, n, (rate, rate)) for n in range(1, 6)][-1]
    slow = [_round(strategy, n, (rate, rate / 10)) for n in range(6, 10)][-1]
    assert slow[1] > before[1] + 0.5
    assert slow[0] == before[0]
    kept = N - round(slow[1] * N)
    assert 0.1 + payload.payload_bits(N, kept) / (rate / 10) <= 1.0
    after = [_round(strategy, n, (rate, rate)) for n in range(10, 14)][-1]
    assert after == before


def test_a_device_that_misses_rounds_is_given_less_until_it_answers():
    strategy = _strategy()
    for number in (1, 2):
        _round(strategy, number, (1e6, 1e6))
    ratios = [_round(strategy, number, (1e6, None))[1] for number in (3, 4, 5)]
    assert ratios == sorted(ratios)
    assert ratios[-1] > ratios[0]
    _round(strategy, 6, (1e6, 1e6))
    assert _round(strategy, 7, (1e6, 1e6))[1] == ratios[0]


def test_a_device_that_is_away_for_long_neither_counts_as_slow_nor_breaks_the_plan():
    strategy = _strategy()
    for number in (1, 2):
        _round(strategy, number, (1e6, 1e6))
    for number in range(3, 6):
        plan = strategy.plan(number, [0, 1])
        strategy.log.device(1, {"reason": NOT_CONNECTED})
        strategy.close_round(plan)
    strategy.log.devices.clear()
    assert strategy.plan(6, [1]).assignments[0].num_pruned == 0
    for number in range(1500):  # connected and mute: 2^1500 is no number
        _round(strategy, number, (1e6, None))


def test_a_round_with_too_few_replies_still_tells_who_was_slow():
    """The global part stays as it was, and the estimates move all the same."""
    strategy = _strategy(initial_pruning_ratio=0.0)
    strategy.min_replies = 2
    for number in (1, 2):
        _round(strategy, number, (1e6, 1e6))
    strategy._plan = strategy.plan(3, [0, 1])
    for device in (0, 1):
        strategy.log.device(device, {"status": "failed"})
    strategy._weights = np.zeros(N, np.float32)
    assert strategy.aggregate_train(3, []) == (None, None)
    assert all(assignment.num_pruned > 0 for assignment in strategy.plan(4, [0, 1]).assignments)


def test_a_resumed_run_remembers_the_estimates():
    strategy = _strategy()
    for number in (1, 2):
        _round(strategy, number, (1e6, 1e5))
    other = _strategy()
    other.restore(strategy.state())
    assert _round(other, 3, (1e6, 1e5)) == _round(strategy, 3, (1e6, 1e5))


@pytest.mark.parametrize("options", [{"window": 0}, {"margin": 0}, {"margin": 1.1}, {"max_pruning_ratio": 2}])
def test_wrong_settings_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MeasuredLink(threshold=1.0, **options)


def test_the_samples_are_plain_numbers():
    assert all(isinstance(array, np.ndarray) for array in _strategy().state().values())
