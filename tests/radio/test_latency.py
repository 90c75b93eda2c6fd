from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from radio.latency import ComputeModel, device_latency, round_latency, slack
from radio.profiles import get_profile

MODEL = ComputeModel(52_096, 402_826)


def test_times_of_the_paper_defaults() -> None:
    """T0 = 0.695 ms, G = 5.371 ms, and the importance step 2.69 ms at 20 cycles and 3 GHz."""
    plain = replace(MODEL, include_importance_cost=False)
    assert plain.fixed_time(3e9) == pytest.approx(0.695e-3, abs=1e-6)
    assert MODEL.compute_time(3e9) == pytest.approx(5.371e-3, abs=1e-6)
    assert MODEL.fixed_time(3e9) - plain.fixed_time(3e9) == pytest.approx(2.6855e-3, abs=1e-7)


def test_cycles_may_differ_between_parts_and_devices() -> None:
    model = replace(MODEL, personal_cycles=np.array([20.0, 4000.0]), include_importance_cost=False)
    t0 = model.fixed_time(3e9)
    assert t0[1] == pytest.approx(200 * t0[0])
    assert model.compute_time(np.array([3e9, 1.5e9]))[1] == pytest.approx(2 * model.compute_time(3e9))


def test_latency_adds_up_and_a_silent_device_needs_only_its_fixed_time() -> None:
    t = device_latency([1.0, 1.0], [2.0, 2.0], [0.5, 0.0], [30.0, 0.0], [10.0, 0.0])
    np.testing.assert_allclose(t, [1 + 1 + 3, 1])
    assert round_latency(t) == pytest.approx(5)


def test_bits_without_a_rate_never_arrive() -> None:
    assert device_latency(0.0, 0.0, 1.0, 1.0, 0.0) == np.inf


def test_slack_may_be_negative() -> None:
    np.testing.assert_allclose(slack(25e-3, [5e-3, 30e-3]), [20e-3, -5e-3])


def test_profiles_differ_in_bandwidth_alone() -> None:
    literal, calibrated = get_profile("paper_literal"), get_profile("calibrated")
    assert replace(literal, name="calibrated", bandwidth=200e6) == calibrated
    assert calibrated.payload_bits == 12_890_432
    with pytest.raises(ValueError, match=r"profile = 'x' is unknown; valid: calibrated, paper_literal"):
        get_profile("x")


def test_bad_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="global_weights = 0"):
        ComputeModel(1, 0)
    with pytest.raises(ValueError, match=r"cpu_frequency = 0\.0"):
        MODEL.compute_time(0.0)
