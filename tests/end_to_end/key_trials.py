"""For every key: other values, and settings in which the records of a run would show them, if any would.

A trial changes one key of a tiny job. Its setting is chosen so that the key's meaning shows: who is dropped
shows only where somebody cannot make it, a step size of the personal part only where one is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMES = (
    "proposed", "simultaneous", "equal_bandwidth", "equal_bandwidth_joint_rho", "personalization_only",
    "pruning_only", "fedavg", "fixed_ratio", "printed_formula", "over_the_air", "error_free",
    "over_the_air_adaptive", "aircomp_pruned", "measured", "energy_aware",
)  # fmt: skip

# Every scheme that prunes does so here, partly, and no two devices hold equally many images.
BASE: dict[str, Any] = {
    "model.name": "mlp", "model.options": {}, "model.personal": ["fc2*"], "rounds": 2, "fleet.num_devices": 4,
    "partition.name": "dirichlet", "partition.options": {"alpha": 0.5}, "partition.samples_per_device": None,
    "partition.test_samples_per_device": 10, "radio.bandwidth_hz": 1.2e7, "radio.latency_threshold_ms": 10.0,
    "air.num_selected": 3, "air.snr_db": 20.0, "training.batch_size": 16, "engine.workers": 1,
}  # fmt: skip
OF_SCHEME: dict[str, dict[str, Any]] = {
    "aircomp_pruned": {"radio.bandwidth_hz": 2e7, "radio.latency_threshold_ms": 0.6},
    "energy_aware": {"radio.energy_budget_j": 0.02},
    "measured": {
        "channel.source": "measured", "measured.probe": False, "measured.initial_pruning_ratio": 0.25,
        "radio.latency_threshold_ms": 100.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A key that is set to another value, in a setting of its own.

    Attributes:
        values: to try, by scheme; "" for all others.
        setting: further keys, in both jobs.
        schemes: with which the trial makes sense; empty: all.
        faults: as in `strange_app`.
    """

    key: str
    values: Mapping[str, Any]
    setting: Mapping[str, Any] = field(default_factory=dict)
    schemes: Sequence[str] = ()
    faults: str = ""

    def value(self, scheme: str) -> Any:
        """Return the other value under this scheme."""
        return self.values.get(scheme, self.values[""])


def _t(key: str, value: Any, setting: Mapping[str, Any] | None = None, **more: Any) -> Trial:
    others = more.pop("others", {})
    return Trial(key, {"": value, **others}, setting or {}, **more)


_LIMIT = {"radio.max_pruning_ratio": 0.1}
_NOTHING_HEARD = {"air.noise": False, "air.channel_error_variance": 0.0}
_IMPERFECT = {"air.channel_error_variance": 0.05}
_OWN_MASKS = {"air.count_mode": "bitmap", "radio.latency_threshold_ms": 2.5, "radio.cycles_per_weight": 200.0}
_COUNT_FREE = {**_OWN_MASKS, "air.count_mode": "count_free"}
_OFDM = {"air.subcarriers": 16, "air.cyclic_prefix": 8}
_SELECTIVE = {**_OFDM, "air.taps": 5}
_PLACES = {"air.path_loss": True}
_LOUD = {"rounds": 3, "air.snr_db": -20.0}
_AIRS = ("over_the_air", "error_free", "over_the_air_adaptive", "aircomp_pruned")
_OFDMA = SCHEMES[:9]
_SGD = {"training.optimizer": "sgd"}
_EPOCHS = {"training.personal_epochs": 1, "training.global_epochs": 1}
_CHARGED = {"radio.include_importance_cost": True}
_SOME = {"fleet.devices_per_round": 3, "air.num_selected": 2}
# What no operator states is asked for by a transfer; what was measured then decides.
_TIMED = {"measured.initial_pruning_ratio": 0.0}

_APP = "tests.end_to_end.strange_app"
_DRIVING = {"channel.mobility": f"{_APP}:driving"}
_STOP = {"stop.metric": "replies"}
_POOR = {"random_starts": 0, "matched_starts": 1, "candidates": 1, "climb": 1, "settled": 1, "improved": 0}

TRIALS: tuple[Trial, ...] = (
    _t("seed", 2),
    _t("rounds", 3),
    _t("evaluate_every", 2),
    _t("evaluate_global", True),
    _t("evaluate_global", True, {"model.personal": []}),
    _t("fleet.num_devices", 5),
    _t("fleet.devices_per_round", 3),
    _t("fleet.min_replies", 4, {"air.num_selected": 4}, faults="1:raise"),
    _t("fleet.upload_norm_limit", 0.01, {"fleet.upload_norm_action": "clip"}),
    _t("fleet.upload_norm_action", "clip", {"fleet.upload_norm_limit": 0.01}),
    _t("fleet.upload_norm_action", "clip", {"fleet.upload_norm_limit": None}),
    _t("fleet.max_own_images", 10**4, {"scheme.weighting": "samples"}, faults="all:own-images"),
    _t("fleet.divergence_loss", 1e-3),
    _t("fleet.evaluate", "participants", _SOME),
    _t("radio.bandwidth_hz", 1.8e7),
    _t("radio.transmit_power_dbm", 20.0),
    _t("radio.distance_m", [100.0, 200.0, 300.0, 400.0]),
    _t("radio.weight", [1.0, 2.0, 3.0, 4.0]),
    _t("radio.noise_power_dbm", -100.0),
    _t("radio.latency_threshold_ms", 8.0, others={"aircomp_pruned": 0.5, "measured": 50.0}),
    _t("radio.noise_model", "proportional"),
    _t("radio.bits_per_weight", 16),
    _t("radio.cpu_hz", 1e9),
    _t("radio.cycles_per_weight", 300.0),
    _t("radio.cycles_per_weight_personal", 3000.0),
    _t("radio.cycles", "flops"),
    _t("radio.cycles_per_weight", 300.0, {"radio.cycles": "flops"}),
    _t("radio.cycles_per_weight_personal", 3000.0, {"radio.cycles": "flops"}),
    _t("radio.cycles_per_multiply_add", 9.0, {"radio.cycles": "flops"}),
    _t("radio.cycles_per_multiply_add", 9.0),
    _t("radio.include_importance_cost", True),
    _t("radio.include_importance_cost", True, {"training.importance": "magnitude"}),
    _t("radio.include_importance_cost", True, _OWN_MASKS, schemes=("aircomp_pruned",)),
    _t("radio.charge_mask_bits", False),
    _t("radio.max_pruning_ratio", 0.1),
    _t("radio.when_infeasible", "drop", _LIMIT),
    _t("radio.when_infeasible", "drop"),
    _t("channel.source", "measured", others={"measured": "emulated"}),
    _t("channel.antennas", 8),
    *(
        _t(f"channel.{name}", value, setting)
        for name, value in (
            ("placement", "random"), ("cell_radius_m", 900.0), ("min_distance_m", 200.0),
            ("path_loss_intercept_db", 120.0), ("path_loss_slope_db", 30.0), ("shadowing_std_db", 8.0),
        )
        for setting in ({}, _PLACES)
    ),
    *(
        _t(f"channel.{name}", value, {**setting, **more})
        for name, value, more in (
            ("path_loss", "umi", {}),
            ("path_loss_options", {"carrier_ghz": 28.0}, {"channel.path_loss": "umi"}),
            ("mobility", f"{_APP}:driving", {}),
            ("mobility_options", {"speed_kmh": 90.0}, _DRIVING),
            ("shadowing_distance_m", 500.0, {**_DRIVING, "channel.shadowing_std_db": 8.0}),
            ("shadowing_distance_m", 500.0, {"channel.shadowing_std_db": 8.0}),
        )
        for setting in ({}, _PLACES)
    ),
    _t("channel.model", "none"),
    _t("channel.options", {"k_factor": 30.0}, {"channel.model": "rician"}),
    _t("channel.coherence_step_ms", 50.0),
    _t("channel.coherence_step_ms", 50.0, {"channel.model": "gauss_markov"}),
    _t("channel.coherence_step_ms", 50.0, {**_DRIVING, **_PLACES}),
    _t("channel.csi_delay_rounds", 1),
    _t("channel.csi_error_variance", 0.2),
    _t("channel.on_outage", "lost", {"channel.csi_error_variance": 0.2}),
    _t("channel.on_outage", "lost"),
    _t("radio.rate_backoff_db", 3.0),
    _t("radio.rate_backoff_db", 3.0, {"channel.csi_error_variance": 0.2}),
    _t("radio.devices", str(Path(__file__).with_name("unlike_devices.csv"))),
    _t("radio.energy_per_cycle_squared", 5e-28),
    _t("radio.battery_j", 1e-6),
    _t("radio.energy_budget_j", 2e-3),
    _t("radio.cpu_min_hz", 2.5e9, {"radio.energy_budget_j": 2e-3}),
    _t("scheme.fairness", 1.0),
    _t("scheme.tie_break", "least_latency", {"radio.bandwidth_hz": 2e8}),
    _t("scheme.objective", "least_energy",
       {"radio.max_pruning_ratio": 0.9, "radio.latency_threshold_ms": 25.0}),
    _t("scheme.aggregation", "all_devices_mean"),
    _t("scheme.aggregation_options", {"share": 0.0}, {"scheme.aggregation": "trimmed_mean"}),
    _t("server.optimizer", "momentum"),
    _t("server.options", {"beta": 0.1}, {"server.optimizer": "momentum"}),
    _t("server.learning_rate", 0.5),
    _t("training.clip_norm", 0.01),
    _t("training.optimizer_options", {"betas": [0.5, 0.9]}, {"training.optimizer": "adam"}),
    _t("training.schedule", f"{_APP}:halving"),
    _t("training.schedule_options", {"by": 0.1}, {"training.schedule": f"{_APP}:halving"}),
    _t("measured.window", 1, {"rounds": 4}),
    _t("measured.margin", 0.5),
    _t("measured.initial_pruning_ratio", 0.75),
    _t("measured.probe", True, _TIMED, faults="all:unstated"),
    _t("model.name", "lenet5"),
    _t("model.options", {"hidden": 20}),
    _t("model.personal", ["fc1.bias"]),
    _t("dataset.transform", "none"),
    _t("dataset.augment", "crop_flip"),
    _t("task.loss_options", {"label_smoothing": 0.2}),
    _t("task.metrics", ["balanced_accuracy"]),
    _t("partition.name", "iid", {"partition.options": {}}),
    _t("partition.options", {"alpha": 5.0}),
    _t("partition.samples_per_device", 20),
    _t("partition.test_samples_per_device", 12),
    _t("training.algorithm", "fedprox", {"training.global_steps": 3}),
    _t("training.options", {"mu": 1.0}, {"training.algorithm": "fedprox", "training.global_steps": 3}),
    _t("training.personal_steps", 3),
    _t("training.personal_steps", 3, _EPOCHS),
    _t("training.personal_epochs", 1),
    _t("training.global_steps", 3),
    _t("training.global_steps", 3, _EPOCHS),
    _t("training.global_epochs", 1),
    _t("training.importance_steps", 3),
    _t("training.importance_steps", 3, _CHARGED),
    _t("training.importance_steps", 3, {"training.importance": "random", **_CHARGED}),
    _t("training.importance_steps", 3, _OWN_MASKS, schemes=("aircomp_pruned",)),
    _t("training.personal_learning_rate", 0.01),
    _t("training.global_learning_rate", 0.01),
    _t("training.batch_size", 8),
    _t("training.optimizer", "sgd"),
    _t("training.momentum", 0.9, _SGD),
    _t("training.weight_decay", 0.1),
    _t("training.importance", "random"),
    _t("training.importance", "random", _OWN_MASKS, schemes=("aircomp_pruned",)),
    _t("training.prune_bias", False),
    _t("training.prune_bias", False, _OWN_MASKS, schemes=("aircomp_pruned",)),
    _t("training.kernels", "plain", {"model.name": "cnn", "rounds": 1, "fleet.num_devices": 2,
                                     "air.num_selected": 2}, schemes=("proposed",)),
    _t("scheme.uplink", "over_the_air", others=dict.fromkeys(_AIRS, "ofdma")),
    _t("scheme.allocation", "equal_bandwidth", others={"equal_bandwidth": "joint"}),
    _t("scheme.pruning_ratio", 0.3),
    _t("scheme.personalization", False, others=dict.fromkeys(
        ("pruning_only", "fedavg", "over_the_air", "error_free", "over_the_air_adaptive"), True)),
    _t("scheme.weighting", "samples"),
    _t("air.num_selected", 2),
    _t("air.antennas", 4),
    _t("air.snr_db", 10.0),
    _t("air.snr_db", 10.0, {"air.noise": False}),
    _t("air.snr_db", 10.0, {"air.noise": False, **_OWN_MASKS}, schemes=("aircomp_pruned",)),
    _t("air.noise", False, others={"error_free": True}),
    _t("air.path_loss", True),
    _t("air.normalization", "common"),
    _t("air.normalization", "common", _IMPERFECT),
    _t("air.packing", "real"),
    _t("air.payload", "model"),
    _t("air.payload", "model", _IMPERFECT),
    _t("air.channel_error_variance", 0.05),
    _t("air.recompute_beam", True),
    _t("air.recompute_beam", True, _IMPERFECT),
    _t("air.certificate", True),
    _t("air.charge_side_information", True),
    _t("air.subcarriers", 16),
    _t("air.subcarrier_groups", 4, _SELECTIVE),
    _t("air.subcarrier_groups", 4, _OFDM),
    _t("air.taps", 3, _OFDM),
    _t("air.tap_decay_db", 0.0, _SELECTIVE),
    _t("air.tap_decay_db", 0.0, _OFDM),
    _t("air.cyclic_prefix", 12, _OFDM),
    _t("air.cyclic_prefix", 12),
    _t("air.timing_spread", 2.0, _OFDM),
    _t("air.phase_error_deg", 20.0),
    _t("air.phase_error_deg", 20.0, _NOTHING_HEARD),
    _t("air.count_mode", "count_free"),
    _t("air.shrinkage", "off"),
    _t("air.shrinkage", "off", _NOTHING_HEARD),
    _t("air.explore", 0.5),
    _t("air.explore", 0.5, _OWN_MASKS),
    *(
        _t(f"adaptive.{name}", value, setting)
        for name, value in (
            ("receive_scaling", "regularised"), ("error_feedback", True), ("shrinkage", "whole"),
            ("norm_exponent", -1.0), ("averaging_power", 1.0), ("momentum", 0.0),
        )
        for setting in (_LOUD, {**_LOUD, "air.noise": False})
    ),
    _t("adaptive.error_feedback", True, {**_LOUD, "adaptive.receive_scaling": "regularised"}),
    _t("adaptive.choose_users", True, {"air.path_loss": True, "channel.path_loss_slope_db": 80.0, **_LOUD}),
    _t("air.min_count", 2),
    _t("air.min_count", 2, _OWN_MASKS),
    _t("air.min_count", 3, _COUNT_FREE),
    _t("scheduler.method", "random_beamforming"),
    *(
        _t("scheduler.beamformer", f"{_APP}:poor_beam", {"scheduler.method": method},
           schemes=("fedavg", "aircomp_pruned"))
        for method in ("multistart", "policy_greedy", "random_selection", "random_beamforming",
                       "iterative_reweighted", "subgradient", "brute_force")
    ),
    _t("server.mode", "deadline"),
    # On real nodes they count, too; in one process every reply is there at once.
    _t("server.buffer", 2, {"server.mode": "buffered"}, schemes=_OFDMA),
    _t("server.concurrency", 2, {"server.mode": "buffered", "server.buffer": 2}, schemes=_OFDMA),
    _t("server.staleness_exponent", 3.0, {"server.mode": "buffered", "server.buffer": 2, "rounds": 3},
       schemes=_OFDMA),
    _t("selection.policy", "power_of_choice", {**_SOME, "rounds": 3}),
    _t("selection.policy", "power_of_choice"),
    _t("selection.options", {"drawn": 2}, {**_SOME, "fleet.devices_per_round": 2, "rounds": 4,
                                           "selection.policy": "power_of_choice"}),
    _t("stop.threshold", 1.0, _STOP),
    _t("stop.metric", "replies", {"stop.threshold": 2.0}),
    _t("stop.mode", "min", {**_STOP, "stop.threshold": 1.0}),
    _t("stop.mode", "min", _STOP),
    _t("stop.patience", 1, {**_STOP, "rounds": 3}),
    _t("stop.min_delta", 1e9, {"rounds": 3, "stop.metric": "elapsed_s", "stop.patience": 1},
       schemes=SCHEMES[:-1]),
    _t("stop.min_delta", 1e9, {**_STOP, "stop.threshold": 1.0}),
    _t("stop.from_round", 2, {**_STOP, "stop.threshold": 1.0, "rounds": 3}),
    _t("scheduler.options", _POOR, {"fleet.num_devices": 10, "air.num_selected": 6}),
    # What decides nothing: the records stay as they are.
    _t("checkpoint_every", 1),
    _t("report", {"title": "another"}),
    _t("fleet.start_timeout_s", 300.0),
    _t("fleet.min_devices", 2),
    _t("fleet.round_timeout_s", 300.0),
    _t("fleet.max_failed_rounds", 5),
    _t("fleet.identity", "index"),
    _t("engine.workers", 2),
    _t("engine.state_memory_mib", 0.0),
    _t("engine.batch_devices", 2),
    _t("dataset.download", True),
    _t("dataset.root", "/nowhere"),
)  # fmt: skip

# Keys that no run of a few rounds in one process can show, and what else looks at them.
ELSEWHERE = {
    **{
        f"privacy.{name}": "needs an extra: tests/server_app/test_privacy.py"
        for name in ("clip_norm", "noise_multiplier", "delta")
    },
    "resume": "goes on with another run: tests/server_app/test_checkpoint.py",
    "fleet.roster": "says whose index is whose: tests/strategies/test_exchange_and_fleet.py",
    "measured.probe_bytes": "decides how well is measured, not what: tests/server_app/test_probe_sink.py",
    "measured.probe_host": "an address: tests/deployment/test_measured_radio.py",
    "measured.probe_port": "an address: tests/deployment/test_measured_radio.py",
    "measured.probe_address": "an address: tests/deployment/test_measured_radio.py",
    "dataset.name": "needs the files of another data set: tests/end_to_end/test_mnist.py",
    "dataset.options": "of data sets with parameters: tests/task",
    "dataset.transform_options": "of a transform of one's own: tests/task",
    "dataset.augment_options": "checked against the augmentation: tests/task",
    "task.loss": "another loss needs other targets: tests/task",
    "model.buffers": "needs a network with running statistics: tests/client_app",
    "training.precision": "shows on some processors only: tests/client_app/test_precision.py",
    "scheme.name": "is what the records are called",
    "adaptive.name": "is what figures call a choice of switches: tests/experiments",
    "engine.name": "what runs the devices: tests/end_to_end/test_ray_engine.py, tests/deployment",
    "engine.device": "needs a GPU: tests/client_app/test_batched.py",
    "study.name": "a job that trains nothing: tests/experiments/test_studies.py",
    "study.draws": "of studies: test_every_key.py",
    "tracker.name": "its libraries are extras: tests/experiments/test_trackers.py",
    "tracker.options": "of a tracker of one's own: tests/experiments/test_trackers.py",
    "tracker.database": "of mlflow: tests/experiments/test_trackers.py",
}
