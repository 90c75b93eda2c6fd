"""What algorithms and server optimisers keep survives a stop, and what they send is counted."""

from pathlib import Path

import numpy as np
import pytest

from records.recorder import read_table
from tests.end_to_end.jobs import final_weights, records, run_small


@pytest.mark.parametrize(
    "joints",
    [("training=scaffold", "server=adam"), ("training=ditto", "server=yogi"), ("training=pfedme",)],
    ids=lambda joints: joints[0],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, joints: tuple[str, ...]) -> None:
    run_small(tmp_path / "whole", *joints, "rounds=2")
    run_small(tmp_path / "first", *joints, "rounds=1")
    run_small(tmp_path / "rest", *joints, "rounds=2", f"resume={tmp_path / 'first'}")
    assert records(tmp_path / "rest") == records(tmp_path / "whole")
    np.testing.assert_array_equal(final_weights(tmp_path / "rest"), final_weights(tmp_path / "whole"))


def test_control_variates_are_on_the_wire_and_in_the_bits(tmp_path: Path) -> None:
    dense = ("scheme=personalization_only", "rounds=1")
    run_small(tmp_path / "plain", *dense)
    run_small(tmp_path / "scaffold", *dense, "training.algorithm=scaffold")
    plain, scaffold = (read_table(tmp_path / name / "devices.csv") for name in ("plain", "scaffold"))
    for one, two in zip(plain, scaffold, strict=True):
        assert int(two["uplink_bits"]) == 2 * int(one["uplink_bits"])
        assert int(two["wire_bytes"]) * 8 == int(two["uplink_bits"])
        assert float(two["latency_s"]) > float(one["latency_s"])
