"""The keys of the server's side of a round: the scheme, the fleet, and measured links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from radio.allocation.energy_aware import Objective
from radio.allocation.policies import TieBreak
from schema import ConfigError, key
from schema.uses import (
    ADAPTIVE,
    BUFFERED,
    DIGITAL,
    ENERGY_AWARE,
    FIXED_RATIO,
    MEASURED,
    NOISE,
    NORM_LIMIT,
    NOT_BUFFERED,
    NOT_PRUNED_AIR,
    OFDMA,
    OPTIMUM,
    OVERLAPPING,
    PRIVATE,
    PROBE,
    REGULARISED,
    SAMPLED,
    TIME_OPTIMUM,
    TRAINING,
)
from strategies.limits import Action

Weighting = Literal["uniform", "samples"]
Uplink = Literal["ofdma", "over_the_air", "over_the_air_adaptive", "over_the_air_pruned"]


@dataclass(frozen=True, kw_only=True)
class SchemeSettings:
    """How a round is planned and how uploads become the next global part."""

    name: str = key("of the scheme, as in records and figures")
    uplink: Uplink = key("how uploads reach the server")
    allocation: str = key("a policy of radio/allocation/policies.py, or package.module:function", used=OFDMA)
    pruning_ratio: float | None = key("for allocation=fixed_ratio", minimum=0, maximum=1, used=FIXED_RATIO)
    fairness: float = key(
        "alpha of the fairness between devices: 0 the sum, 1 proportional, large towards max-min",
        minimum=0, used=OPTIMUM,
    )  # fmt: skip
    tie_break: TieBreak = key(
        "which of several optima: none, the one with least band; least_latency", used=TIME_OPTIMUM
    )
    objective: Objective = key(
        "most retained weights, or least_energy at exactly radio.max_pruning_ratio", used=ENERGY_AWARE
    )
    personalization: bool = key("false: every parameter is global, whatever model.personal says")
    weighting: Weighting = key("of devices in the average", used=NOT_PRUNED_AIR)
    aggregation: str = key(
        "of the uploads: keepers_mean (eq. (26)), all_devices_mean, trimmed_mean, median, clipped_mean, "
        "or package.module:function",
        used=DIGITAL,
    )
    aggregation_options: Mapping[str, Any] = key(
        "parameters of the aggregation: share of trimmed_mean; factor and times of clipped_mean", used=DIGITAL
    )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """When a round closes, and the server's step along what its uploads ask for."""

    mode: Literal["synchronous", "deadline", "buffered"] = key(
        "synchronous: a round closes with all in; deadline: at radio.latency_threshold_ms; "
        "buffered: with server.buffer uploads; who is late goes on",
        used=TRAINING,
    )
    buffer: int = key("uploads with which a round closes", minimum=1, used=TRAINING & BUFFERED)
    concurrency: int | None = key(
        "devices that are at work at once; null: all", minimum=1, used=TRAINING & BUFFERED
    )
    staleness_exponent: float = key(
        "a: the update of an upload that is s versions old counts (1 + s)^-a",
        minimum=0, used=TRAINING & OVERLAPPING,
    )  # fmt: skip
    optimizer: str = key(
        "sgd (with learning_rate 1: federated averaging), momentum, adam, yogi, adagrad, or "
        "package.module:Class",
        used=TRAINING,
    )
    learning_rate: float = key("of the server's step", above=0, used=TRAINING)
    options: Mapping[str, Any] = key(
        "parameters of the optimiser, such as beta1, beta2 and tau of adam", used=TRAINING
    )


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Which devices take part, where not all do."""

    policy: str = key(
        "uniform, power_of_choice (largest loss), oort (loss and latency), or package.module:function",
        used=TRAINING & SAMPLED,
    )
    options: Mapping[str, Any] = key(
        "parameters of the policy, such as drawn of power_of_choice", used=TRAINING & SAMPLED
    )


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """The devices, and when a round closes."""

    num_devices: int = key("K: devices of the fleet", minimum=1)
    devices_per_round: int | None = key(
        "chosen each round by selection.policy; null: all", minimum=1, used=TRAINING & NOT_BUFFERED
    )
    start_timeout_s: float = key(
        "wait this long for all devices before the first round",
        unit="s", above=0, used=TRAINING, decides=False,
    )  # fmt: skip
    min_devices: int | None = key(
        "then start with at least this many; null: all of them or none",
        minimum=1,
        used=TRAINING,
        decides=False,
    )
    round_timeout_s: float = key(
        "a round closes with whoever has answered by then", unit="s", above=0, used=TRAINING, decides=False
    )
    min_replies: int = key(
        "fewer usable uploads than this leave the global part as it was", minimum=1, used=TRAINING
    )
    upload_norm_limit: float | Literal["auto"] | None = key(
        "Euclidean norm of a device's update; auto: 6 x the median of recent rounds; null: none",
        above=0, used=TRAINING,
    )  # fmt: skip
    upload_norm_action: Action = key(
        "above it: reject the upload, or clip it to the limit", used=TRAINING & NORM_LIMIT
    )
    max_own_images: int | None = key(
        "most images of its own (data-dir) that a device counts with; null: those dealt to it",
        unit="images", minimum=1, used=TRAINING,
    )  # fmt: skip
    max_failed_rounds: int = key(
        "consecutive rounds without any answer after which the run fails",
        unit="rounds", minimum=1, used=TRAINING, decides=False,
    )  # fmt: skip
    divergence_loss: float = key(
        "a device whose test loss is above has diverged; more than half of them end the run",
        above=0, used=TRAINING,
    )  # fmt: skip
    evaluate: Literal["all", "participants"] = key("which devices report their accuracy", used=TRAINING)
    identity: Literal["key", "index"] = key(
        "key: an index belongs to the first key that held it; index: to whoever holds it "
        "(only for nodes without keys, which are others after a restart)",
        used=TRAINING, decides=False,
    )  # fmt: skip
    roster: str | None = key(
        'file with one device per line, "index public-key": which key is which device, for good',
        path=True, used=TRAINING, decides=False,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdaptiveSettings:
    """What over-the-air averaging does about the noise (only with scheme=over_the_air_adaptive)."""

    name: str = key("of this choice of switches, as in figures", decides=False)
    receive_scaling: Literal["exact", "regularised"] = key(
        "exact: every user inverts its channel; regularised: least error of bias and noise together",
        used=ADAPTIVE & NOISE,
    )
    error_feedback: bool = key(
        "a user sends what it could not deliver with its next update", used=ADAPTIVE & NOISE & REGULARISED
    )
    shrinkage: Literal["off", "whole", "tensors"] = key(
        "shrink what is received by its noise: off, as a whole, or each of the model's tensors by itself",
        used=ADAPTIVE & NOISE,
    )
    choose_users: bool = key(
        "the number of users by the predicted error, at most air.num_selected", used=ADAPTIVE
    )
    norm_exponent: float = key(
        "users count by the norm of their update to this power; -1: all push equally", used=ADAPTIVE
    )
    momentum: float = key(
        "of the server's step, less of it in noise: times the share of signal in what is received",
        minimum=0, below=1, used=ADAPTIVE,
    )  # fmt: skip
    averaging_power: float | None = key(
        "the model is the mean of about the last 1/(1 + averaging_power) of the rounds; null: the last one",
        minimum=0, used=ADAPTIVE,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of what leaves a device; its cost is in ``summary.json``."""

    clip_norm: float | None = key(
        "norm to which a device clips its update, before the noise; null: no privacy",
        above=0, used=TRAINING,
    )  # fmt: skip
    noise_multiplier: float = key(
        "deviation of the noise that each device adds, over clip_norm (over the air it is the receiver's)",
        above=0, used=PRIVATE & DIGITAL,
    )  # fmt: skip
    delta: float = key("of (epsilon, delta) in summary.json", above=0, below=1, used=PRIVATE)


@dataclass(frozen=True, kw_only=True)
class MeasuredSettings:
    """How compute and uplink of real nodes are measured (only with channel=measured)."""

    window: int = key(
        "rounds whose median is the estimate of a device's compute time and uplink rate",
        unit="rounds", minimum=1, used=MEASURED,
    )  # fmt: skip
    margin: float = key(
        "share of radio.latency_threshold_ms that is planned with", above=0, maximum=1, used=MEASURED
    )
    initial_pruning_ratio: float = key(
        "of a device of which nothing is known yet", minimum=0, maximum=1, used=MEASURED
    )
    probe: bool = key(
        "time a transfer per device and round, unless its operator states uplink-bps", used=MEASURED
    )
    probe_bytes: int = key("size of that transfer", unit="B", minimum=65536, maximum=67108864, used=PROBE)
    probe_host: str = key(
        "address on which the server takes it; 0.0.0.0: every one", used=PROBE, decides=False
    )
    probe_port: int = key("0: any free port", minimum=0, maximum=65535, used=PROBE, decides=False)
    probe_address: str | None = key(
        "host:port that the devices are told; null: probe_host and the port", used=PROBE, decides=False
    )


def check_mode(server: ServerSettings, fleet: FleetSettings, uplink: str) -> None:
    """Check when a round closes.

    Raises:
        ConfigError: naming the keys and their values.
    """
    if server.mode == "synchronous":
        return
    if uplink != "ofdma":
        raise ConfigError(
            f"server.mode = {server.mode} with scheme.uplink = {uplink}: over the air all "
            "send at once, so that every round waits for the last; use server.mode=synchronous, or a scheme "
            "with scheme.uplink = ofdma"
        )
    if server.mode != "buffered":
        return
    if server.concurrency is not None and server.concurrency > fleet.num_devices:
        raise ConfigError(
            f"server.concurrency = {server.concurrency} is above fleet.num_devices = {fleet.num_devices}"
        )
    if server.buffer > fleet.num_devices:
        raise ConfigError(
            f"server.buffer = {server.buffer} is above fleet.num_devices = {fleet.num_devices}: a device "
            "has one upload in it at most"
        )
    if fleet.min_replies > server.buffer:
        raise ConfigError(
            f"fleet.min_replies = {fleet.min_replies} is above server.buffer = {server.buffer}: no round "
            "would change the global part"
        )
