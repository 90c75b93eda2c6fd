"""Every row of OFDMA runs that prune, computed a second time (`plain_radio`) from the recorded gains."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from records.recorder import read_table
from tests.end_to_end.jobs import run_job
from tests.end_to_end.plain_radio import Cell, equal, optimum, printed, wire_bytes

SMALL = (
    "model=mlp", "fleet.num_devices=4", "rounds=2", "partition.samples_per_device=10",
    "partition.test_samples_per_device=10", "training.optimizer=sgd",
)  # fmt: skip
PERSONAL, GLOBAL, CPU = 260, 19625, 3e9

# What the default radio is, and how the settings below differ from it.
DEFAULT: dict[str, Any] = {
    "bandwidth_hz": 200e6, "transmit_power_dbm": 28.0, "noise_power_dbm": -110.0,
    "latency_threshold_ms": 25.0, "noise_model": "fixed", "bits_per_weight": 32, "cycles_per_weight": 20.0,
    "cycles_per_weight_personal": 20.0, "include_importance_cost": False, "charge_mask_bits": True,
}  # fmt: skip
RADIOS: dict[str, dict[str, Any]] = {
    "wide": {"bandwidth_hz": 1.2e7, "latency_threshold_ms": 10.0},
    "narrow": {
        "bandwidth_hz": 3e6, "latency_threshold_ms": 20.0, "charge_mask_bits": False,
        "cycles_per_weight": 300.0, "cycles_per_weight_personal": 7000.0, "include_importance_cost": True,
    },
    "coarse": {
        "bandwidth_hz": 2.5e6, "latency_threshold_ms": 8.0, "bits_per_weight": 8, "transmit_power_dbm": 20.0,
        "noise_power_dbm": -100.0, "cycles_per_weight": 250.0,
    },
    "half": {"bandwidth_hz": 4e6, "latency_threshold_ms": 12.0, "bits_per_weight": 16},
    "quiet": {
        "bandwidth_hz": 6e6, "latency_threshold_ms": 10.0, "noise_model": "proportional",
        "cycles_per_weight": 150.0,
    },
}  # fmt: skip
OPTIMAL = ("proposed", "simultaneous", "pruning_only")
SCHEMES = (*OPTIMAL, "equal_bandwidth", "equal_bandwidth_joint_rho", "personalization_only", "fedavg",
           "fixed_ratio", "printed_formula")  # fmt: skip
SOME = {
    "quiet": ("proposed", "equal_bandwidth", "fixed_ratio"),
    "half": ("proposed", "fedavg", "printed_formula"),
    "coarse": ("proposed", "pruning_only", "equal_bandwidth", "fixed_ratio", "personalization_only"),
}
WHOLE = ("pruning_only", "fedavg")  # no personal part
DENSE = ("personalization_only", "fedavg")
FAULTS = {"narrow": "1:raise", "coarse": "2:truncate"}


def _cases():
    for scheme, radio in product(SCHEMES, RADIOS):
        if scheme in SOME.get(radio, SCHEMES):
            yield pytest.param(scheme, radio, id=f"{scheme}-{radio}")


@pytest.mark.parametrize(("scheme", "radio"), list(_cases()))
def test_every_row_follows_from_gains_and_payloads(tmp_path, monkeypatch, scheme, radio):
    values, faults = DEFAULT | RADIOS[radio], FAULTS.get(radio, "")
    if scheme in DENSE:  # nothing is ranked
        values["include_importance_cost"] = False
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", faults)
    unused = ["cycles_per_weight_personal"] if scheme in WHOLE else []
    unused += ["include_importance_cost"] if scheme in DENSE else []
    changed = [f"radio.{name}={value}" for name, value in RADIOS[radio].items() if name not in unused]
    fading = "channel=rayleigh_single" if radio in ("narrow", "half") else "channel=rayleigh_mrc"
    if scheme not in ("simultaneous", *WHOLE):
        changed.append("training.personal_steps=3")
    run_job(tmp_path, f"scheme={scheme}", *SMALL, fading, *changed, app="faulty_app:app")
    devices, rounds = (read_table(tmp_path / name) for name in ("devices.csv", "rounds.csv"))
    assert [row["round"] for row in rounds] == ["1", "2"]
    for total in rounds:
        rows = [row for row in devices if row["round"] == total["round"]]
        assert [row["device"] for row in rows] == ["0", "1", "2", "3"]
        _check_round(scheme, values, rows, total, faults)


def _check_round(scheme, values, rows, total, faults):
    """Recompute the rows of one round and its total."""

    def column(name):
        return np.array([float(row[name]) for row in rows])

    size = GLOBAL + PERSONAL if scheme in WHOLE else GLOBAL
    cell, fixed = _cell(scheme, values, column("channel_gain_db"), size)
    share, ratio, price = _plan(scheme, cell)
    np.testing.assert_allclose(column("pruning_ratio"), ratio, atol=2e-6)
    np.testing.assert_allclose(column("bandwidth_fraction"), share, atol=2e-4)
    assert float(total["pruning_ratio_mean"]) == pytest.approx(ratio.mean(), abs=2e-6)
    if price is None:
        assert total["multiplier"] == ""
    else:
        assert float(total["multiplier"]) == pytest.approx(price, rel=1e-3)
    threshold = values["latency_threshold_ms"] * 1e-3
    assert float(total["latency_threshold_s"]) == pytest.approx(threshold)

    size_kept = size - np.ceil(column("pruning_ratio") * size - 1e-9).astype(int)
    sent = [wire_bytes(size, kept, values["bits_per_weight"]) for kept in size_kept]
    free = [0 if values["charge_mask_bits"] else _free_bits(size, kept) for kept in size_kept]
    bits = 8 * np.array(sent) - free
    spent = fixed + size_kept / size * cell.compute
    for k, b in enumerate(column("bandwidth_fraction")):
        spent[k] += bits[k] / cell.rate(k, b) if bits[k] else 0.0
    broken = {int(pair.split(":")[0]) for pair in faults.split(",") if pair}
    if any(size_kept[k] == 0 for k in broken):  # nothing was there to spoil
        broken = broken if "raise" in faults else set()
    for k, row in enumerate(rows):
        assert row["allocation"] == _status(ratio[k], cell.slack[k])
        assert float(row["planned_latency_s"]) == pytest.approx(spent[k])
        assert row["status"] == ("failed" if k in broken else "ok")
        if k not in broken:
            assert int(row["kept_weights"]) == size_kept[k]
            assert (int(row["wire_bytes"]), int(row["uplink_bits"])) == (sent[k], bits[k])
            assert float(row["latency_s"]) == pytest.approx(spent[k])
            assert int(row["num_examples"]) == 10
    there = [k for k in range(4) if k not in broken]
    assert int(total["wire_bytes"]) == sum(sent[k] for k in there)
    assert int(total["uplink_bits"]) == sum(bits[k] for k in there)
    # The round waits for the slot of a device that failed, too.
    assert float(total["latency_s"]) == pytest.approx(spent.max())
    if scheme in (*OPTIMAL, "equal_bandwidth"):
        assert spent.max() <= threshold * (1 + 1e-9)
    assert (int(total["participants"]), int(total["replies"])) == (4, len(there))
    assert total["failed"] == ";".join(map(str, sorted(broken)))
    assert int(total["evaluated"]) == 4
    accuracy, loss = column("test_accuracy"), column("test_loss")
    assert float(total["accuracy_mean"]) == pytest.approx(accuracy.mean())
    assert float(total["accuracy_worst"]) == pytest.approx(accuracy.min())
    assert float(total["loss_mean"]) == pytest.approx(loss.mean())
    np.testing.assert_allclose(accuracy * 10, np.rint(accuracy * 10), atol=1e-9)  # of 10 images


def _cell(scheme, values, gain_db, size):
    personal_steps = {"simultaneous": 2, "pruning_only": 0, "fedavg": 0}.get(scheme, 3)
    fixed = personal_steps * values["cycles_per_weight_personal"] * PERSONAL / CPU
    if values["include_importance_cost"]:
        fixed += values["cycles_per_weight"] * size / CPU
    threshold = values["latency_threshold_ms"] * 1e-3
    bits = values["bits_per_weight"]
    # Planned: a straight line above every size. Centre and step of 64 bits for each 2048 weights or fewer.
    block = 64 if bits == 8 else 0
    positions = 8 * (28 + math.ceil(size / 8)) if values["charge_mask_bits"] else 0
    cell = Cell(
        gain=10 ** (gain_db / 10),
        slack=np.full(4, threshold - fixed),
        compute=np.full(4, 2 * values["cycles_per_weight"] * size / CPU),
        dense_bits=(bits + block / 2048) * size,
        overhead_bits=positions + block * 2047 / 2048,
        band=values["bandwidth_hz"],
        power=10 ** (values["transmit_power_dbm"] / 10 - 3),
        noise=10 ** (values["noise_power_dbm"] / 10 - 3),
        proportional=values["noise_model"] == "proportional",
    )
    return cell, fixed


def _free_bits(size, kept):
    """Header and positions, where the uplink does not pay for them."""
    return 8 * (wire_bytes(size, kept, 32) - 4 * kept)


def _plan(scheme, cell):
    """Return shares, ratios and the price of the band, None where nothing is optimised."""
    if scheme in OPTIMAL:
        return optimum(cell)
    if scheme == "equal_bandwidth":
        return *equal(cell), None
    if scheme == "equal_bandwidth_joint_rho":
        share, ratio, _ = optimum(cell)
        return (share > 0) / (share > 0).sum(), ratio, None
    if scheme == "printed_formula":
        return *printed(cell), None
    return np.full(4, 0.25), np.full(4, 0.5 if scheme == "fixed_ratio" else 0.0), None


def _status(ratio, slack):
    if slack <= 0:
        return "infeasible"
    return "saturated" if ratio < 1e-9 else "starved" if ratio >= 1 else "interior"
