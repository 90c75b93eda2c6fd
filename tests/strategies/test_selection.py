"""Which devices take part: by lot as ever, by loss, or by loss and latency; and what a policy must return."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.streams import generator
from strategies.selection import SELECTIONS, Candidates, Selection
from strategies.selection.oort import oort, utility
from strategies.selection.power_of_choice import power_of_choice


def _candidates(loss, latency=None, *, samples=None, last=None, server_round=2, threshold=1.0):
    size = len(loss)
    return Candidates(
        server_round,
        np.arange(size) + 10,  # an index is no position
        np.ones(size) if samples is None else np.asarray(samples, float),
        np.asarray(loss, float),
        np.ones(size) if latency is None else np.asarray(latency, float),
        np.full(size, server_round - 1) if last is None else np.asarray(last),
        threshold,
    )


def test_by_lot_it_is_the_draw_that_it_always_was():
    selection = Selection(samples=[5] * 20)
    for server_round in (1, 7):
        rng = generator(3, "participation", server_round)
        expected = sorted(rng.choice(20, 6, replace=False).tolist())
        assert selection(server_round, range(20), 6, generator(3, "participation", server_round)) == expected


@pytest.mark.parametrize("policy", list(SELECTIONS))
@settings(max_examples=25, deadline=None)
@given(known=st.lists(st.booleans(), min_size=2, max_size=12), seed=st.integers(0, 99), data=st.data())
def test_every_policy_returns_so_many_of_the_candidates_and_repeats(policy, known, seed, data):
    size = len(known)
    number = data.draw(st.integers(1, size))
    some = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=number)))
    selection = Selection(policy, samples=[3] * size)
    for device, told in enumerate(known):
        if told:
            selection.note(1, device, loss=float(device % 3), latency=0.5 + device)
    chosen = selection(2, some, number, np.random.default_rng(seed))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == number
    assert set(chosen) <= set(some)
    assert chosen == selection(2, some, number, np.random.default_rng(seed))
    other = Selection(policy, samples=[3] * size)
    other.restore(selection.state())
    assert other(2, some, number, np.random.default_rng(seed)) == chosen


def test_of_those_drawn_the_largest_losses_are_taken_and_who_is_unknown_first():
    rng = np.random.default_rng(0)
    everyone = _candidates([0.1, 3.0, np.nan, 2.0, 0.5])
    assert set(power_of_choice(everyone, 3, rng, drawn=5)) == {11, 12, 13}
    # drawn = m: the loss decides nothing, and chances are in proportion to the samples.
    heavy = _candidates([0.1, 3.0], samples=[9, 1])
    draws = [power_of_choice(heavy, 1, rng, drawn=1)[0] for _ in range(2000)]
    assert np.mean(np.array(draws) == 10) == pytest.approx(0.9, abs=0.03)


def test_utility_is_samples_times_loss_less_for_the_slow_and_more_for_the_long_unheard():
    one = _candidates([2.0, 2.0, 2.0], [0.5, 2.0, 4.0], samples=[1, 1, 3], server_round=2, last=[1, 1, 1])
    bonus = np.sqrt(0.1 * np.log(2)) * 6.0
    np.testing.assert_allclose(utility(one, 2.0), [2 + bonus, (2 + bonus) / 4, (6 + bonus) / 16])
    unheard = utility(_candidates([1.0, 1.0], server_round=50, last=[1, 49]), 2.0)
    assert unheard[0] > unheard[1]


def test_oort_prefers_what_is_worth_it_and_tries_who_is_new():
    rng = np.random.default_rng(0)
    some = _candidates([5.0, 5.0, 0.1, np.nan, np.nan], [0.5, 50.0, 0.5, np.nan, np.nan])
    chosen = np.array([oort(some, 2, rng, exploration=0.5, decay=1.0) for _ in range(400)])
    new = np.isin(chosen, [13, 14]).sum(1)
    assert (new == 1).all()  # half of two, in every draw
    assert np.isin(chosen, [10]).any(1).all()  # the only one above the cutoff
    none_new = oort(_candidates([1.0, 2.0, 3.0]), 3, rng)
    assert sorted(none_new.tolist()) == [10, 11, 12]


def _twice(candidates, number, rng):
    return np.repeat(candidates.devices[:1], number)


def _stranger(candidates, number, rng):
    return np.arange(number) + 1000


def _broken(candidates, number, rng):
    raise KeyError("loss")


@pytest.mark.parametrize(
    ("policy", "options", "text"),
    [
        ("roulette", {}, "selection.policy = 'roulette' is unknown; .*valid: oort, power_of_choice, uniform"),
        ("oort", {"cuttoff": 0.5}, "has no option 'cuttoff'; did you mean cutoff"),
        ("oort", {"cutoff": 0.0}, r"selection.options.cutoff = 0.0; it must be a share"),
        ("oort", {"penalty": -1.0}, r"selection.options.penalty = -1.0"),
        ("power_of_choice", {"drawn": 0}, r"selection.options.drawn = 0; it must be at least 1"),
        (f"{__name__}:_twice", {}, r"returned \[0, 0, .*; 3 distinct ones of the 4 candidates are expected"),
        (f"{__name__}:_stranger", {}, r"returned \[1000\]; 1 distinct ones of the 4 candidates"),
        (f"{__name__}:_broken", {}, "fails on a first trial: KeyError: 'loss'"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_trained(policy, options, text):
    with pytest.raises(ValueError, match=text):
        Selection(policy, options, samples=[3] * 4)
