"""Whole runs against a second implementation of the paper (`plain_learning`), weight for weight."""

import math

import numpy as np
import pytest
import torch

from records.recorder import read_table
from tests.end_to_end.jobs import final_weights, run_job
from tests.end_to_end.plain_learning import Learning, Setting, quantised

# Few weights, slow processors and one antenna: each round has devices that prune nothing, some, and all.
RADIO = ("channel=rayleigh_single", "radio.cycles_per_weight=200")
ROUNDS = 3
DIRICHLET = {"name": "dirichlet", "alpha": 1.0, "samples_per_device": 60, "test_samples_per_device": 20}
LABELS = {"name": "labels", "labels_per_device": 2, "samples_per_device": 40, "test_samples_per_device": 20}

# Setting, bandwidth in Hz and latency threshold in ms, faults.
CASES = {
    "three devices": (Setting(3, seed=2, partition=LABELS), (1e7, 10), ""),
    "trial steps and several passes": (
        Setting(3, seed=2, partition=LABELS, importance_steps=3, global_steps=7, personal_steps=5, batch=12),
        (4e6, 30),
        "",
    ),
    "momentum, decay, samples, sampling, faults": (
        Setting(5, seed=4, partition=DIRICHLET, momentum=0.9, weight_decay=0.1, by_samples=True, sampled=3),
        (1.5e7, 10),
        "1:truncate,2:raise",
    ),
    "eight bits": (
        Setting(5, seed=4, partition=DIRICHLET, bits=8, by_samples=True, sampled=4),
        (2.11e6, 10),
        "2:raise",
    ),
    "simultaneous, first layer personal": (
        Setting(4, seed=6, partition=LABELS, personal="fc1", simultaneous=True, momentum=0.5),
        (1.05e5, 10),
        "",
    ),
    "whole batches, nothing personal": (
        Setting(3, seed=2, partition=LABELS, personal="-", batch=64), (1e7, 10), ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_whole_run_is_what_the_paper_says(tmp_path, monkeypatch, case):
    setting, (band, threshold), faults = CASES[case]
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", faults)
    nothing = ("scheme.personalization=false",) if setting.personal == "-" else ()
    run_job(
        tmp_path, *setting.overrides(), *RADIO, f"radio.bandwidth_hz={band}",
        f"radio.latency_threshold_ms={threshold}", f"rounds={ROUNDS}", *nothing, app="faulty_app:app",
    )  # fmt: skip
    torch.set_num_threads(1)
    rows, totals = read_table(tmp_path / "devices.csv"), read_table(tmp_path / "rounds.csv")
    learning, size = Learning(setting), None
    broken = dict(pair.split(":") for pair in faults.split(",") if pair)
    ratios, uncovered = [], 0.0
    for number in range(1, ROUNDS + 1):
        row_of = {int(row["device"]): row for row in rows if row["round"] == str(number)}
        size = learning.u.numel()
        present = [device for device, row in row_of.items() if row["status"]]
        assert present == learning.participants(number)
        uploads = []
        for device in present:
            row, failed = row_of[device], broken.get(str(device))
            ratio = float(row["pruning_ratio"])
            pruned = math.ceil(ratio * size - 1e-9)
            assert row["status"] == ("failed" if failed else "ok")
            if failed != "raise":  # an upload cut short was trained for all the same
                values, mask, losses = learning.local_round(number, device, pruned)
            if failed:
                continue
            ratios.append(ratio)
            for name in ("personal_loss", "global_loss"):
                assert (name in losses) == bool(row[name])
                assert float(row[name] or 0) == pytest.approx(losses.get(name, 0.0), rel=1e-3)
            assert int(row["num_examples"]) == len(learning.parts[device].train)
            assert int(row["kept_weights"]) == size - pruned == mask.sum()
            if pruned < size:
                values = quantised(values, mask) if setting.bits == 8 else values
                weight = len(learning.parts[device].train) if setting.by_samples else 1.0
                uploads.append((values, mask, weight))
        total = totals[number - 1]
        assert total["failed"] == ";".join(str(device) for device in present if str(device) in broken)
        counts = learning.average(uploads)
        assert float(total["uncovered_share"]) == pytest.approx((counts == 0).mean(), abs=2e-4)
        assert int(total["replies"]) == sum(row["status"] == "ok" for row in row_of.values())
        uncovered = max(uncovered, (counts == 0).mean())
        tested = [learning.accuracy(device) for device in range(setting.devices)]
        for device, (accuracy, loss) in enumerate(tested):
            assert float(row_of[device]["test_accuracy"]) == pytest.approx(accuracy, abs=1e-9)
            assert float(row_of[device]["test_loss"]) == pytest.approx(loss, rel=1e-3)
        accuracies, losses_ = np.array(tested).T
        assert float(total["accuracy_mean"]) == pytest.approx(accuracies.mean())
        assert float(total["accuracy_worst"]) == pytest.approx(accuracies.min())
        assert float(total["loss_mean"]) == pytest.approx(losses_.mean(), rel=1e-3)
    # The case says something: it has every kind of device, and weights that nobody kept.
    assert min(ratios) == 0.0
    assert max(ratios) == 1.0
    assert any(0.05 < ratio < 0.95 for ratio in ratios)
    assert uncovered > 0.005
    # Rounding may exchange two weights at the threshold of a mask, which can wake or silence a hidden unit
    # for a sample: its 785 weights of 19 625. All others agree to float32.
    difference = np.abs(final_weights(tmp_path) - learning.u.numpy())
    assert np.quantile(difference, 0.95) < 1e-6
    assert difference.max() < 1e-2
