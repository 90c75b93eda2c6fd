"""Two of ten devices send flipped updates at the norm limit: robust aggregations learn all the same."""

import pytest

from benchmarks.robustness import accuracy


@pytest.mark.parametrize("name", ["clipped_mean", "trimmed_mean", "median"])
def test_robust_aggregations_stay_within_three_points(name: str) -> None:
    assert accuracy(name, attacked=True) > accuracy("keepers_mean", attacked=False) - 0.03


def test_the_plain_mean_collapses() -> None:
    assert accuracy("keepers_mean", attacked=True) < 0.5
    assert accuracy("keepers_mean", attacked=False) > 0.9
