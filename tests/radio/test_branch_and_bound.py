"""Branch and bound: its bounds hold in exact arithmetic, it finds what every set tried finds, and says so."""

from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.beamforming import beamform, set_upper_bound
from radio.beamforming.ascent import ascend, polish
from radio.beamforming.problem import gains, random_beams
from radio.branching import Progress, search
from radio.branching.dual import bound
from radio.branching.nodes import FREE, IN, OUT, Node, Sector, gather, narrow, reachable, thirds, tighten
from radio.scheduling import schedule
from radio.scheduling.problem import best_for_beam

CLOSE = 10 ** (0.001 / 10)  # the default gap


def rayleigh(rng, users, antennas, spread_db=0.0):
    pairs = rng.standard_normal((2, users, antennas))
    level = 10 ** (spread_db * rng.standard_normal((users, 1)) / 20)
    return level * (pairs[0] + 1j * pairs[1]) / np.sqrt(2)


def long_search(channels, count, rng, starts=3000):
    """Return the best gain that many climbs and exact polishes find."""
    first = random_beams(rng, starts, channels.shape[1])
    beams, values = ascend(channels, first, count=count, iterations=40, growth=1.12)
    best = 0.0
    for index in np.argsort(-values)[:60]:
        users = best_for_beam(channels, beams[index], count)
        best = max(best, polish(channels[users], beams[index])[1])
    return best


# Bounds -------------------------------------------------------------------------------------------


def exact(value):
    return Fraction(float(value.real)), Fraction(float(value.imag))


def times(a, b):
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def conjugate(a):
    return a[0], -a[1]


def is_positive_definite(matrix):
    """Gaussian elimination on the real form of a Hermitian matrix of exact complex numbers."""
    size = len(matrix)
    real = [
        [matrix[i % size][j % size][0 if (i < size) == (j < size) else 1] for j in range(2 * size)]
        for i in range(2 * size)
    ]
    for i in range(size):
        for j in range(size):
            real[i][size + j] = -real[i][size + j]
    for k in range(2 * size):
        if real[k][k] <= 0:
            return False
        for i in range(k + 1, 2 * size):
            factor = real[i][k] / real[k][k]
            for j in range(k, 2 * size):
                real[i][j] -= factor * real[k][j]
    return True


def exactly_proved(given, found, row):
    """Whether a subproblem's claim follows from its multipliers, in rational arithmetic.

    ||m||^2 >= D + [m; 1]^H Z [m; 1] for every m of the subproblem; so if Z + e I >= 0 with
    e = (D - claim) / 2, then ||m||^2 >= claim or ||m||^2 > 1.
    """
    users, antennas = given.channels.shape[1:]
    h = [[exact(x) for x in user] for user in given.channels[row]]
    weights = [Fraction(float(x)) for x in found.at.weights[row]]
    cap = Fraction(float(found.at.cap[row]))
    pulls = [Fraction(float(x)) for x in found.at.pulls[row]]
    free, forced = given.free[row], given.forced[row]
    assert all(w >= 0 for w in weights)
    assert all(w <= cap for w, f in zip(weights, free, strict=True) if f)
    assert all(w == 0 for w, a in zip(weights, free | forced, strict=True) if not a)
    spare = int(free.sum()) - int(given.needed[row])
    value = sum(weights) - spare * cap
    drag = [(Fraction(0), Fraction(0))] * antennas
    for pull, user, turn, floor in zip(
        pulls, given.cut_user[row], given.turn[row], given.floor[row], strict=True
    ):
        assert pull >= 0
        value += pull * Fraction(float(floor))
        c = exact(turn)
        for i in range(antennas):
            part = times(c, h[user][i])
            drag[i] = (drag[i][0] + pull * part[0], drag[i][1] + pull * part[1])
    matrix = [
        [(Fraction(int(i == j)), Fraction(0)) for j in range(antennas + 1)] for i in range(antennas + 1)
    ]
    for k in range(users):
        for i in range(antennas):
            for j in range(antennas):
                part = times(h[k][i], conjugate(h[k][j]))
                old = matrix[i][j]
                matrix[i][j] = (old[0] - weights[k] * part[0], old[1] - weights[k] * part[1])
    y = found.beam[row]
    level = Fraction(float((np.vdot(0.5 * given_drag(given, found, row), y)).real))
    for i in range(antennas):
        matrix[i][antennas] = (-drag[i][0] / 2, -drag[i][1] / 2)
        matrix[antennas][i] = conjugate(matrix[i][antennas])
    matrix[antennas][antennas] = (level, Fraction(0))
    excess = (value - level - Fraction(float(found.value[row]))) / 2
    assert excess > 0
    for i in range(antennas + 1):
        matrix[i][i] = (matrix[i][i][0] + excess, Fraction(0))
    return is_positive_definite(matrix)


def given_drag(given, found, row):
    pulling = given.channels[row][given.cut_user[row]] * given.turn[row][:, None]
    return found.at.pulls[row] @ pulling if len(pulling) else np.zeros(given.channels.shape[2])


def tiny_problems(rng, cut):
    channels = rayleigh(rng, 5, 2, spread_db=6.0)
    roles = np.array([[IN, FREE, FREE, FREE, OUT], [IN, IN, FREE, FREE, FREE], [IN, IN, IN, OUT, OUT]])
    sectors = {}
    if cut:
        sectors = {0: Sector(0.0, 0.0), 1: Sector(float(rng.uniform(-3, 3)), float(rng.uniform(0.05, 1.5)))}
        roles[0, 1] = IN
    return gather(channels, [Node(role, sectors=sectors) for role in roles], roles, 3).given


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_every_bound_follows_from_its_multipliers_in_rational_arithmetic(seed, cut):
    problems = tiny_problems(np.random.default_rng(seed), cut)
    for target in (0.3, 1.0):
        found = bound(problems, target=target)
        for row in range(len(found.value)):
            assert exactly_proved(problems, found, row)


def test_the_rational_check_refuses_a_bound_that_is_too_good():
    problems = tiny_problems(np.random.default_rng(1), cut=False)
    found = bound(problems, target=1.0)
    found.value[:] = found.at.weights.sum(axis=1)  # as if no user could go unserved
    with pytest.raises(AssertionError):
        assert all(exactly_proved(problems, found, row) for row in range(2))


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_for_every_beam_of_the_node(seed):
    rng = np.random.default_rng(seed)
    channels = rayleigh(rng, 6, 3)
    channels *= 3.0  # so that the powers sought are below one
    role = np.array([[IN, IN, FREE, FREE, FREE, OUT]])
    sector = Sector(0.4, 0.8)
    plain = bound(gather(channels, [Node(role[0])], role, 3).given, target=1.0)
    cut_node = Node(role[0], sectors={0: Sector(0.0, 0.0), 1: sector})
    cut = bound(gather(channels, [cut_node], role, 3).given, target=1.0)
    assert cut.value[0] >= plain.value[0] - 1e-6
    beams = random_beams(rng, 200_000, 3)
    reach = beams.conj() @ channels.T
    reach = reach * np.exp(-1j * np.angle(reach[:, :1]))
    power = np.abs(reach) ** 2
    level = np.minimum(power[:, :2].min(axis=1), power[:, 2:5].max(axis=1))
    inside = np.abs(np.angle(reach[:, 1].conj() * np.exp(-1j * 0.4))) <= 0.8  # conj: reach is m^H h
    assert (1.0 / level).min() >= plain.value[0]
    assert (1.0 / level[inside]).min() >= cut.value[0]


def test_no_beam_of_a_node_reaches_further_than_told():
    rng = np.random.default_rng(3)
    for _ in range(5):
        channels = rayleigh(rng, 9, 3)
        best = schedule(channels, 4)
        scaled = channels / np.sqrt(0.8 * best.min_gain)  # an incumbent a fifth worse than the best
        role = np.full((1, 9), FREE)
        batch = gather(scaled, [Node(role[0])], role, 4)
        found = bound(batch.given, target=1.0)
        most = reachable(batch.given, found, 1.0)[0]
        beams = random_beams(rng, 20_000, 3)
        beams = np.concatenate([best.beam[None], best.beam + 0.2 * beams])
        beams /= np.linalg.norm(beams, axis=1, keepdims=True)
        power = np.abs(beams.conj() @ scaled[batch.users[0]].T) ** 2
        good = np.sort(power, axis=1)[:, -4] >= 1.0
        assert good.any()
        assert (power[good] <= most).all()


def test_users_are_decided_without_losing_a_better_set():
    decided = 0
    for seed in range(6):
        channels = rayleigh(np.random.default_rng([37, seed]), 9, 3, 4.0)
        scaled = channels / np.sqrt(0.85 * schedule(channels, 4).min_gain)
        better = [
            chosen for chosen in combinations(range(9), 4) if beamform(scaled[list(chosen)]).min_gain > 1
        ]
        assert better
        role = np.full((1, 9), FREE)
        batch = gather(scaled, [Node(role[0])], role, 4)
        found = bound(batch.given, target=1.0)
        after, changed = tighten(batch, found, reachable(batch.given, found, 1.0), 1.0)
        for chosen in better:
            assert (after[0, list(chosen)] > OUT).all()
            assert set(np.flatnonzero(after[0] == IN)) <= set(chosen)
        decided += bool(changed[0])
    assert decided >= 3


# Nodes --------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_narrowing_keeps_every_set_of_compatible_users(seed, count):
    rng = np.random.default_rng(seed)
    compatible = rng.random((8, 8)) < 0.7
    compatible |= compatible.T
    np.fill_diagonal(compatible, rng.random(8) < 0.9)
    role = rng.choice([OUT, FREE, IN], p=[0.1, 0.8, 0.1], size=(1, 8)).astype(np.int8)
    sets = [
        chosen
        for chosen in combinations(range(8), count)
        if compatible[np.ix_(chosen, chosen)].all()
        and (role[0, list(chosen)] > OUT).all()
        and set(np.flatnonzero(role[0] == IN)) <= set(chosen)
    ]
    narrowed = role.copy()
    alive = narrow(narrowed, compatible, count)
    assert alive[0] or not sets
    if alive[0]:
        for chosen in sets:
            assert (narrowed[0, list(chosen)] > OUT).all()
            assert set(np.flatnonzero(narrowed[0] == IN)) <= set(chosen)


@settings(deadline=None)
@given(st.floats(-4, 4), st.floats(0.0, 1.6), st.floats(-4, 4), st.floats(-1, 1), st.floats(1.0, 50.0))
def test_sectors_split_without_gaps_and_their_cut_holds(centre, width, split_at, place, size):
    sector = Sector(centre, width)
    phase = centre + place * width

    def holds(part):
        return abs((phase - part.centre + np.pi) % (2 * np.pi) - np.pi) <= part.width + 1e-15

    assert any(holds(part) for part in sector.halves(split_at))
    assert any(holds(part) for part in thirds(split_at))
    cut = sector.cut()
    if cut is not None:
        turn, floor = cut
        assert (np.conj(turn) * size * np.exp(1j * phase)).real >= floor - 1e-13 * size


# The joint choice ---------------------------------------------------------------------------------

CASES = [(12, 4, 4, 0.0), (14, 2, 5, 8.0), (10, 8, 5, 8.0)]


def check_against_every_set(case, seeds):
    users, antennas, count, spread = case
    for seed in seeds:
        channels = rayleigh(np.random.default_rng([7, seed]), users, antennas, spread)
        best = schedule(channels, count, method="brute_force")
        found = schedule(channels, count, method="branch_and_bound")
        assert found.proved
        assert found.min_gain == pytest.approx(best.min_gain, rel=1e-5)
        assert best.min_gain <= found.upper_bound <= found.min_gain * CLOSE * (1 + 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_equals_every_set_tried(case):
    check_against_every_set(case, range(5))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
def test_equals_every_set_tried_on_200_draws(case):
    check_against_every_set(case, range(200))


@pytest.mark.parametrize(("users", "antennas", "count"), [(20, 4, 5), (20, 4, 10)])
def test_proves_the_optimum_of_what_cannot_be_tried(users, antennas, count):
    for seed in range(3):
        channels = rayleigh(np.random.default_rng([11, seed]), users, antennas)
        found = schedule(channels, count, method="branch_and_bound")
        assert found.proved
        assert found.gap_db <= 0.001 + 1e-9
        assert found.min_gain >= schedule(channels, count).min_gain
        assert found.upper_bound >= long_search(channels, count, np.random.default_rng(seed))


@pytest.mark.parametrize("spread", [0.0, 10.0])
def test_the_bound_is_never_below_a_better_point(spread):
    """Started from a poor choice, with a better one known: the bound holds whenever the search stops."""
    unproved = 0
    for seed in range(4):
        rng = np.random.default_rng([13, seed])
        channels = rayleigh(rng, 24, 4, spread)
        known = long_search(channels, 6, rng)
        poor = np.sort(rng.choice(24, 6, replace=False))
        beam = beamform(channels[poor]).beam
        seen: list[Progress] = []
        found = search(channels, poor, beam, gap_db=0.01, max_nodes=10**6, watch=seen.append)
        assert all(state.upper_bound >= known for state in seen)
        assert found.status == "proved"
        assert found.gain >= known / 10**0.001
        stopped = search(channels, poor, beam, gap_db=0.01, max_nodes=5)
        assert stopped.status == "proved" or stopped.nodes >= 5
        assert stopped.upper_bound >= known
        coarse = search(channels, poor, beam, gap_db=6.0, max_nodes=10**6)
        assert coarse.upper_bound >= known
        unproved += coarse.gain < known * 0.99
    assert unproved  # so that the coarse bound is put to the test


def test_a_planted_choice_is_found_from_a_poor_start():
    rng = np.random.default_rng(5)
    channels = rayleigh(rng, 40, 6)
    beam = random_beams(rng, 1, 6)[0]
    planted = np.sort(rng.choice(40, 7, replace=False))
    channels[planted] += 2.0 * np.exp(1j * rng.uniform(0, 6, (7, 1))) * beam
    poor = np.sort(rng.choice(np.setdiff1d(np.arange(40), planted), 7, replace=False))
    found = search(channels, poor, beamform(channels[poor]).beam, gap_db=0.01, max_nodes=10**5)
    assert found.gain >= gains(channels[planted], beam).min()


def test_gain_rises_and_bound_falls():
    channels = rayleigh(np.random.default_rng(2), 30, 4)
    seen: list[Progress] = []
    poor = np.arange(8)
    search(channels, poor, beamform(channels[poor]).beam, gap_db=0.0001, max_nodes=10**5, watch=seen.append)
    assert len(seen) > 3
    for before, after in pairwise(seen):
        assert after.gain >= before.gain
        assert after.upper_bound <= before.upper_bound * (1 + 1e-9) or after.upper_bound <= after.gain * 1.001
        assert after.nodes >= before.nodes
    assert seen[-1].upper_bound >= seen[-1].gain


def test_scale_order_and_basis_do_not_matter():
    rng = np.random.default_rng(17)
    channels = rayleigh(rng, 14, 4, 5.0)
    base = schedule(channels, 5, method="branch_and_bound")
    order = rng.permutation(14)
    unitary = np.linalg.qr(rayleigh(rng, 4, 4))[0]
    turned = 1e-7 * np.exp(1j * rng.uniform(0, 6, (14, 1))) * (channels[order] @ unitary)
    found = schedule(turned, 5, method="branch_and_bound")
    assert np.sort(order[found.users]).tolist() == base.users.tolist()
    assert found.min_gain == pytest.approx(1e-14 * base.min_gain, rel=1e-4)


def test_equal_seeds_give_equal_results_and_limits_are_checked():
    channels = rayleigh(np.random.default_rng(19), 20, 4)
    first, second = (
        schedule(channels, 8, method="branch_and_bound", rng=np.random.default_rng(4), max_nodes=20)
        for _ in range(2)
    )
    assert first.beam.tobytes() == second.beam.tobytes()
    assert first.upper_bound == second.upper_bound
    stopped = schedule(channels, 8, method="branch_and_bound", time_limit_s=0.0)
    assert stopped.status == "time_limit"
    assert not stopped.proved
    for wrong in ({"gap_db": -1.0}, {"time_limit_s": -1.0}, {"max_nodes": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            schedule(channels, 8, method="branch_and_bound", **wrong)


# A fixed set --------------------------------------------------------------------------------------


def test_global_closes_the_gap_of_the_semidefinite_bound():
    closed = 0
    for seed in range(6):
        channels = rayleigh(np.random.default_rng([23, seed]), 7, 6)
        relaxed = set_upper_bound(channels)
        found = beamform(channels, method="global")
        assert found.status == "proved"
        assert found.min_gain <= found.upper_bound <= found.min_gain * CLOSE * (1 + 1e-9)
        assert found.min_gain >= beamform(channels).min_gain * (1 - 1e-9)
        closed += relaxed > found.upper_bound * 1.001
    assert closed >= 2  # of these draws the relaxation is loose


def test_global_matches_a_grid_of_all_beams_of_two_antennas():
    tilt, turn = np.meshgrid(np.linspace(0, np.pi / 2, 700), np.linspace(0, 2 * np.pi, 1400), indexing="ij")
    beams = np.stack([np.cos(tilt).ravel(), np.sin(tilt).ravel() * np.exp(1j * turn.ravel())], axis=1)
    for seed in range(4):
        channels = rayleigh(np.random.default_rng([29, seed]), 7, 2)
        best = (np.abs(beams.conj() @ channels.T) ** 2).min(axis=1).max()
        found = beamform(channels, method="global")
        assert best <= found.upper_bound
        assert best >= 0.98 * found.min_gain


def test_global_beats_the_local_search_where_that_stops_short():
    better = 0
    for seed in range(4):
        channels = rayleigh(np.random.default_rng([1000, seed]), 20, 4)
        found = beamform(channels, method="global", max_nodes=300)
        local = beamform(channels, starts=1, finished=1)
        assert found.min_gain >= local.min_gain * (1 - 1e-9)
        better += found.min_gain > local.min_gain * 1.02
    assert better


def test_global_knows_orthogonal_users():
    levels = np.array([1.0, 0.5, 2.0])
    found = beamform(np.diag(levels).astype(complex), method="global")
    assert found.min_gain == pytest.approx(1.0 / (1.0 / levels**2).sum(), rel=1e-4)
    assert found.upper_bound == pytest.approx(found.min_gain, rel=3e-4)
