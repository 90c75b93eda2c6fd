"""Running statistics of many devices: averaged by samples, and no single device decides them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from strategies.buffers import SharedBuffers
from strategies.limits import FACTOR, UploadError

MEAN, VAR, COUNT = "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"


def _first() -> dict[str, Any]:
    return {MEAN: np.zeros(4, np.float32), VAR: np.ones(4, np.float32), COUNT: np.array([10])}


def _sent(device: int, shift: float = 0.1) -> dict[str, Any]:
    rng = np.random.default_rng(device)
    return {
        MEAN: (shift * (1 + 0.2 * rng.random(4))).astype(np.float32),
        VAR: (1 + shift * rng.random(4)).astype(np.float32),
        COUNT: np.array([10 + 2 + device]),
    }


def _round(uploads, *, limited=True):
    buffers = SharedBuffers(_first(), limited=limited)
    buffers.begin()
    for sent, number in uploads:
        buffers.check(sent, uploads=True)
        buffers.add(sent, number)
    buffers.finish()
    return buffers.values


@pytest.mark.parametrize("limited", [True, False])
def test_honest_statistics_are_averaged_by_samples_and_counts_take_the_most(limited):
    uploads = [(_sent(0), 10), (_sent(1), 30), (_sent(2), 60)]
    values = _round(uploads, limited=limited)
    for name in (MEAN, VAR):
        expected = sum(0.01 * number * sent[name].astype(np.float64) for sent, number in uploads)
        np.testing.assert_allclose(values[name], expected, rtol=1e-6)
    assert values[COUNT].tolist() == [14]
    assert values[COUNT].dtype == np.int64


@given(st.floats(1.0, 2.0**127, width=32), st.integers(0, 4), st.booleans())
def test_a_hostile_device_moves_them_no_farther_than_some_honest_one_times_the_limit(size, place, negative):
    """Whatever finite numbers it sends, and wherever in the round it comes."""
    honest = [(_sent(device), 20) for device in range(4)]
    hostile = {
        MEAN: np.full(4, -size if negative else size, np.float32),
        VAR: np.full(4, size, np.float32),
        COUNT: np.array([2**62]),
    }
    with_it = _round([*honest[:place], (hostile, 20), *honest[place:]])
    first = _first()
    for name in (MEAN, VAR):
        farthest = max(np.linalg.norm(sent[name] - first[name]) for sent, _ in honest)
        assert np.isfinite(with_it[name]).all()
        assert np.linalg.norm(with_it[name] - first[name]) <= (4 + FACTOR) / 5 * farthest * (1 + 1e-5)
    assert with_it[COUNT][0] <= 10 + FACTOR * 5
    assert (with_it[VAR] > 0).all()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (VAR, np.array([1, 1, -0.5, 1], np.float32), "-0.5; a variance is at least 0"),
        (MEAN, np.array([0, np.inf, 0, 0], np.float32), "not finite"),
        (MEAN, np.zeros(3, np.float32), r"float32 \(4,\) is expected"),
        (COUNT, np.array([1.0]), "int64"),
    ],
)
def test_what_cannot_be_a_statistic_costs_the_device_its_round(name, value, text):
    with pytest.raises(UploadError, match=text):
        SharedBuffers(_first()).check({**_sent(0), name: value}, uploads=True)


@pytest.mark.parametrize(("limit", "farthest"), [("auto", FACTOR), ("1e9", FACTOR), ("null", 3e6)])
def test_they_are_limited_wherever_updates_are(limit, farthest):
    """Without a limit of norms (of one's own devices, say) statistics may go as far as they like as well."""
    overrides = ["model=resnet8", "model.buffers=shared", "scheme=fedavg"]
    settings = compose_settings([*overrides, f"fleet.upload_norm_limit={limit}"])
    buffers = build_strategy(prepare(settings)).buffers
    first = {name: vector.copy() for name, vector in buffers.values.items()}
    name = next(name for name in first if name.endswith("running_mean"))
    for move in (1.0, 1.0, 3e6):
        buffers.add({**first, name: first[name] + np.float32(move)}, 1.0)
    buffers.finish()
    moved = float(np.mean(buffers.values[name] - first[name]))
    assert moved == pytest.approx((2.0 + farthest) / 3, rel=1e-5)
