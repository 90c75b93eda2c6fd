"""Over-the-air runs against a simulation of every symbol at every antenna (`plain_air`)."""

import math

import numpy as np
import pytest
import torch

from protocol.streams import generator
from radio.air.sparse import choose_common_mask
from radio.scheduling import schedule
from records.recorder import read_table
from server_app.settings import compose_config, settings_from_config
from server_app.settings.effects import given_keys, without_effect
from tests.end_to_end.jobs import final_weights, run_job
from tests.end_to_end.plain_air import Air, average, draw_channels, pruned_update
from tests.end_to_end.plain_learning import Learning, Setting
from tests.end_to_end.plain_radio import ring_gain

DEVICES, ANTENNAS, CPU = 6, 3, 3e9
PARTS = {"name": "dirichlet", "alpha": 1.0, "samples_per_device": 40, "test_samples_per_device": 10}
ROUNDS = 2


class Case:
    """Settings of the air by their configuration keys; the defaults are those of this test."""

    def __init__(
        self, scheme="over_the_air", weighting="uniform", sampled=None, faults="", server=1.0, **air
    ):
        self.server = server
        self.air = {
            "num_selected": 4, "antennas": ANTENNAS, "snr_db": 15.0, "packing": "iq", "path_loss": False,
            "channel_error_variance": 0.0, **air,
        }  # fmt: skip
        self.scheme, self.faults, self.pruned = scheme, faults, scheme == "aircomp_pruned"
        self.learning = Setting(
            DEVICES, seed=3, personal="fc2" if self.pruned else "-", by_samples=weighting == "samples",
            partition=PARTS, sampled=sampled,
        )  # fmt: skip

    def overrides(self):
        weighting = "scheme.weighting"
        ours = [text for text in self.learning.overrides() if not text.startswith((weighting, "radio.bits"))]
        if self.learning.by_samples:
            ours.append(f"{weighting}=samples")
        given = [
            f"scheme={self.scheme}", f"server.learning_rate={self.server}",
            "scheduler=policy_greedy", *ours, f"rounds={ROUNDS}",
            *(f"air.{key}={value}" for key, value in self.air.items()),
        ]  # fmt: skip
        # What a scheme does not use must not be set: it is what it would be.
        idle = without_effect(settings_from_config(compose_config(given)), given_keys(given))
        return [text for text in given if text.partition("=")[0] not in idle]


DENSE = {
    "per user, iq": Case(),
    "per user, real, imperfect": Case(packing="real", channel_error_variance=0.05),
    "common, iq, imperfect, samples": Case(
        normalization="common", channel_error_variance=0.05, weighting="samples"
    ),
    "common, real": Case(normalization="common", packing="real", payload="model", snr_db=30.0),
    "models, imperfect, places, slow server": Case(
        payload="model", channel_error_variance=0.02, path_loss=True, server=0.5, snr_db=30.0
    ),
    "samples, sampling, a fault": Case(weighting="samples", sampled=5, faults="1:raise,4:truncate"),
    "no noise": Case("error_free", channel_error_variance=0.1),
}


def _rounds(folder, case, monkeypatch, *more):
    """Run the case and yield what is needed to repeat each round."""
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", case.faults)
    run_job(folder, *case.overrides(), *more, app="faulty_app:app")
    torch.set_num_threads(1)
    seed, air = case.learning.seed, case.air
    gain = ring_gain(DEVICES) / ring_gain(DEVICES).mean() if air["path_loss"] else np.ones(DEVICES)
    rows = read_table(folder / "devices.csv")
    learning = Learning(case.learning)
    for number, total in enumerate(read_table(folder / "rounds.csv"), 1):
        stream = generator(seed, "channel", number)
        true, known = draw_channels(stream, gain, ANTENNAS, air["channel_error_variance"])
        candidates = learning.participants(number)
        found = schedule(
            known[candidates], air["num_selected"], method="policy_greedy", beamformer="fast",
            rng=generator(seed, "scheduling", number),
        )  # fmt: skip
        users = np.asarray(candidates)[found.users]
        assert total["users"] == ";".join(map(str, users))
        own = [row for row in rows if row["round"] == str(number) and row["status"]]
        assert [int(row["device"]) for row in own] == users.tolist()
        m = found.beam / np.linalg.norm(found.beam)
        seen = np.abs(known[users] @ m.conj()) ** 2
        assert float(total["min_gain"]) == pytest.approx(seen.min())
        assert float(total["normalised_mse"]) == pytest.approx(1 / seen.min())
        for row, h in zip(own, true[users], strict=True):
            assert float(row["channel_gain_db"]) == pytest.approx(10 * np.log10(np.linalg.norm(h) ** 2))
            assert float(row["beam_gain_db"]) == pytest.approx(20 * np.log10(abs(m.conj() @ h)))
        broken = dict(pair.split(":") for pair in case.faults.split(",") if pair)
        present = np.array([str(user) not in broken for user in users])
        assert [row["status"] == "ok" for row in own] == present.tolist()
        noise = 0.0 if case.scheme == "error_free" else 10 ** (-air["snr_db"] / 10)
        if present.all():
            air_now = Air(true[users], known[users], m, noise, air["packing"])
        else:
            air_now = Air(true[users][present], known[users][present], m, noise, air["packing"])
        yield number, total, own, learning, users, users[present], air_now, broken


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_run_is_what_the_antennas_receive(tmp_path, monkeypatch, name):
    case = DENSE[name]
    weights = None
    for number, total, _, learning, users, senders, air, broken in _rounds(tmp_path, case, monkeypatch):
        start = learning.u.numpy()
        updates = []
        for user in users:
            if broken.get(str(user)) != "raise":
                trained = learning.local_round(number, int(user), 0)[0]
            if user in senders:
                updates.append(trained - start)
        base = start if case.air.get("payload") == "model" else 0.0
        sizes = np.array([len(learning.parts[user].train) for user in senders], float)
        phi = sizes / sizes.sum() if case.learning.by_samples else np.full(len(senders), 1 / len(senders))
        noise = generator(case.learning.seed, "noise", number)
        sent = np.array(updates) + base
        got = average(sent, phi, air, case.air.get("normalization", "per_user"), noise)
        error = ((got - phi @ sent) ** 2).mean()
        assert float(total["mse_realised"]) == pytest.approx(error, rel=1e-3, abs=1e-14)
        weights = start + case.server * (got - base)
        learning.u = torch.from_numpy(weights)
        size = start.size
        uses = math.ceil(size / 2) if case.air["packing"] == "iq" else size
        compute = 2 * 20 * size / CPU
        assert int(total["symbols"]) == uses
        assert float(total["airtime_s"]) == pytest.approx(uses / 200e6)
        assert float(total["compute_s"]) == pytest.approx(compute)
        assert float(total["latency_s"]) == pytest.approx(compute + uses / 200e6)
        assert float(total["mse_predicted"]) == pytest.approx(error, rel=0.05, abs=1e-14)
        if case.air["channel_error_variance"] == 0:
            assert float(total["mse_predicted"]) == pytest.approx(air.variance, rel=1e-3)
    np.testing.assert_allclose(final_weights(tmp_path), weights, rtol=0, atol=2e-6)


PRUNED = {
    f"{mode}, {packing}, {'moment' if shrink else 'off'}": (mode, packing, shrink, error)
    for mode, packing, shrink, error in (
        ("bitmap", "iq", True, 0.05),
        ("bitmap", "real", False, 0.0),
        ("common_mask", "iq", False, 0.05),
        ("common_mask", "real", True, 0.0),
        ("count_free", "iq", False, 0.0),
        ("count_free", "real", True, 0.05),
    )
}


@pytest.mark.parametrize("name", PRUNED)
def test_a_pruned_run_is_what_the_antennas_receive(tmp_path, monkeypatch, name):
    mode, packing, shrink, error_variance = PRUNED[name]
    case = Case(
        "aircomp_pruned", packing=packing, channel_error_variance=error_variance, count_mode=mode,
        shrinkage="moment" if shrink else "off", server=0.8,
        **({"explore": 0.2} if mode == "common_mask" else {}),
    )  # fmt: skip
    band, threshold, cycles = 2e8, 5.2e-3, 500.0
    radio = (
        f"radio.bandwidth_hz={band}", f"radio.latency_threshold_ms={1e3 * threshold}",
        f"radio.cycles_per_weight={cycles}", f"radio.cycles_per_weight_personal={cycles}",
    )  # fmt: skip
    change = None
    if mode == "common_mask":  # its ranking needs the very bits of the weights after the first round
        run_job(tmp_path / "first", *case.overrides(), *radio, "rounds=1")
    for number, total, own, learning, users, _, air, _ in _rounds(tmp_path, case, monkeypatch, *radio):
        start, size = learning.u.numpy(), learning.u.numel()
        fixed, compute = 2 * cycles * 260 / CPU, 2 * cycles * size / CPU
        uses = math.ceil(size / 2) if packing == "iq" else size
        mask_s, common = 0.0, None
        if mode == "common_mask":
            ratio = 1 - (threshold - fixed) / (compute + uses / band)
            keep = int(own[0]["kept_weights"])
            # As many as fit: neither too many, nor one symbol's worth too few.
            assert abs(keep - (1 - ratio) * size) < 3
            uses = math.ceil(keep / 2) if packing == "iq" else keep
            rng = generator(case.learning.seed, "scheduling", number, 1)
            common = choose_common_mask(np.zeros(size) if change is None else change, keep, rng, explore=0.2)
            assert common.sum() == keep
            if change is not None:  # those that moved most, but for the share that explores
                moved_most = np.argsort(-np.abs(change), kind="stable")[: round(0.75 * keep)]
                assert common[moved_most].mean() > 0.99
        elif mode == "bitmap":
            power = np.linalg.norm(air.true, axis=1) ** 2
            rate = band * np.log2(1 + 10 ** (case.air["snr_db"] / 10) * power)
            mask_s = (size / rate).sum()
            assert int(total["mask_bits"]) == 4 * size
        room = threshold - fixed - uses / band - mask_s
        if mode != "common_mask":
            keep = size - math.ceil((1 - room / compute) * size - 1e-9)
        assert 0 < keep < size
        deltas, masks = [], []
        for row, user in zip(own, users, strict=True):
            assert int(row["kept_weights"]) == keep
            assert float(row["pruning_ratio"]) == pytest.approx(1 - keep / size, abs=2 / size)
            values, mask, _ = learning.local_round(number, int(user), size - keep, common)
            deltas.append(np.where(mask, values - start, 0))
            masks.append(mask)
        spent = fixed + keep / size * compute
        for column, value in (
            ("symbols", uses), ("airtime_s", uses / band), ("mask_s", mask_s), ("compute_s", spent),
            ("latency_s", spent + uses / band + mask_s), ("latency_threshold_s", threshold),
            ("pruning_ratio_mean", float(own[0]["pruning_ratio"])),
        ):  # fmt: skip
            assert float(total[column]) == pytest.approx(value), column
        assert float(total["latency_s"]) <= threshold * (1 + 1e-9)
        noise = generator(case.learning.seed, "noise", number)
        step, moved, exact = pruned_update(np.array(deltas), np.array(masks), air, mode, shrink, noise)
        error = ((step - exact)[moved] ** 2).mean()
        # Rounding may exchange two weights at the threshold of a mask, and so a hidden unit's 785 weights.
        assert float(total["mse_realised"]) == pytest.approx(error, rel=2e-2)
        assert float(total["mse_predicted"]) == pytest.approx(error, rel=0.05)
        assert float(total["uncovered_share"]) == pytest.approx(1 - moved.mean(), abs=2e-4)
        learning.u = torch.from_numpy(start + 0.8 * np.where(moved, step, 0))
        assert moved.all() == (mode == "count_free")
        if mode == "common_mask" and number == 1:
            change = final_weights(tmp_path / "first") - start.astype(np.float32)
            np.testing.assert_allclose(change, learning.u.numpy() - start, rtol=0, atol=2e-6)
    difference = np.abs(final_weights(tmp_path) - learning.u.numpy())
    assert np.quantile(difference, 0.95) < 1e-5
