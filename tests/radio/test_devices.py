"""Unlike devices: what is given, listed, drawn or read, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radio.devices import Range, draw_values, read_devices

CLOCK = Range(above=0.0)


def draw(given: Any, devices: int = 4, seed: int = 0) -> Any:
    return draw_values("radio.cpu_hz", given, devices, np.random.default_rng(seed), CLOCK)


def test_a_number_a_list_and_distributions() -> None:
    np.testing.assert_array_equal(draw(3e9), np.full(4, 3e9))
    np.testing.assert_array_equal(draw((1.0, 2.0, 3.0, 4.0)), [1, 2, 3, 4])
    many = draw({"uniform": [1e9, 3e9]}, 20_000)
    assert many.min() >= 1e9
    assert many.max() <= 3e9
    assert many.mean() == pytest.approx(2e9, rel=0.01)
    # Half of a log-uniform law lies below the geometric mean of its ends.
    assert np.mean(draw({"loguniform": [1e8, 1e10]}, 20_000) < 1e9) == pytest.approx(0.5, abs=0.02)
    picked = draw({"choice": [1e9, 2e9], "p": [0.25, 0.75]}, 20_000)
    assert set(picked.tolist()) == {1e9, 2e9}
    assert np.mean(picked == 2e9) == pytest.approx(0.75, abs=0.02)
    np.testing.assert_array_equal(draw({"uniform": [1, 2]}, seed=3), draw({"uniform": [1, 2]}, seed=3))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((1.0, 2.0), r"2 numbers; fleet.num_devices = 4"),
        ((1.0, 2.0, -1.0, 2.0), r"radio.cpu_hz\[2\] = -1 must be above 0"),
        ({"uniform": [3, 1]}, "the smaller first"),
        ({"loguniform": [0, 1]}, "> 0"),
        ({"choice": [1, 2], "p": [0.5, 0.6]}, "sum to 1"),
        ({"normal": [1, 2]}, "is no distribution; valid"),
        ({"uniform": [1, 2], "p": [1]}, "is no distribution"),
        ({"uniform": ["a", 2]}, "not a list of numbers"),
        ({"choice": [-1.0]}, "must be above 0"),
        (0.0, "must be above 0"),
    ],
)
def test_what_is_refused(given: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        draw(given)


def read(folder: Path, text: str, devices: int = 2) -> Any:
    path = folder / "fleet.csv"
    path.write_text(text, encoding="utf-8")
    return read_devices(path, devices, {"cpu_hz": CLOCK, "battery_j": Range(minimum=0.0)})


def test_a_file_with_a_row_per_device(tmp_path: Path) -> None:
    found = read(tmp_path, "\ufeffcpu_hz, battery_j\n1e9,5\n2e9,0\n\n")
    np.testing.assert_array_equal(found["cpu_hz"], [1e9, 2e9])
    np.testing.assert_array_equal(found["battery_j"], [5, 0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu_hz\n1e9\n", "has 1 devices; fleet.num_devices = 2"),
        ("cpu_ghz\n1\n2\n", "row 1, column 1: 'cpu_ghz' is unknown; valid: cpu_hz, battery_j"),
        ("cpu_hz,cpu_hz\n1,1\n2,2\n", "column cpu_hz is there twice"),
        ("cpu_hz\n1e9\nfast\n", "row 3, column cpu_hz = 'fast' is not a number"),
        ("cpu_hz,battery_j\n1e9,1\n1e9,-2\n", "row 3, column battery_j = -2 is below its least value 0"),
        ("cpu_hz,battery_j\n1e9,1\n1e9\n", "row 3 has 1 columns"),
        ("cpu_hz\n1e9\nnan\n", "row 3, column cpu_hz = nan is not a finite number"),
        ("", "is empty"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"fleet\.csv") as error:
        read(tmp_path, text)
    assert said in str(error.value)
