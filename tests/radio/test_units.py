from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio.units import db_to_linear, dbm_to_watt, linear_to_db, ms_to_s, s_to_ms, watt_to_dbm


def test_fixed_points_of_the_scales() -> None:
    assert dbm_to_watt(30.0) == pytest.approx(1.0)
    assert dbm_to_watt(0.0) == pytest.approx(1e-3)
    assert db_to_linear(10.0) == pytest.approx(10.0)
    assert s_to_ms(ms_to_s(25.0)) == pytest.approx(25.0)


@given(st.floats(-200, 200))
def test_conversions_invert_each_other(value: float) -> None:
    assert linear_to_db(db_to_linear(value)) == pytest.approx(value, abs=1e-9)
    assert watt_to_dbm(dbm_to_watt(value)) == pytest.approx(value, abs=1e-9)


def test_arrays_keep_their_shape_and_scalars_stay_floats() -> None:
    assert np.shape(db_to_linear(np.zeros((2, 3)))) == (2, 3)
    assert isinstance(db_to_linear(3.0), float)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"ratio = -1\.0 must be > 0"):
        linear_to_db(-1.0)
    with pytest.raises(ValueError, match=r"power\[1\] = 0\.0"):
        watt_to_dbm([1.0, 0.0])
