"""The keys of the radio: link budget, channel, and the analog uplink."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from radio.air.sparse import CountMode, Shrinkage
from radio.air.transceiver import Mode
from radio.air.zero_forcing import Packing
from radio.channel.cell import NoiseModel
from radio.channel.fading import Placement
from radio.channel.taps import FLAT
from radio.payload import Bits
from radio.units import DB, DBM, DEG, MS
from schema import ConfigError, Unit, key
from schema.uses import (
    AGES,
    AIR,
    BEAMFORMER,
    BITMAP,
    BY_FLOPS,
    BY_WEIGHTS,
    COMMON_MASK,
    DENSE_AIR,
    DIGITAL,
    EMULATED,
    ENERGY_AWARE,
    IMPERFECT,
    INFEASIBLE,
    LOG_DISTANCE,
    MOVES,
    NOISE,
    NOT_DENSE_AIR,
    OFDM,
    OFDMA,
    OPTIMUM,
    PERSONAL,
    PLACED,
    PLACES,
    PRUNED_AIR,
    RATIO_LIMIT,
    SELECTIVE,
    SNR,
    TRAINING,
    TRIAL_STEPS,
)

Source = Literal["emulated", "measured"]
Payload = Literal["delta", "model"]
WhenOverLimit = Literal["relax", "drop"]
Cycles = Literal["weights", "flops"]
OnOutage = Literal["late", "lost"]

# One number for all devices, K numbers, or a distribution (`radio.devices`).
PerDevice = float | tuple[float, ...] | Mapping[str, Any]

# Path loss is a formula in dB, so the channel model takes it in dB.
_LOSS = Unit("dB", "dB", float)


@dataclass(frozen=True, kw_only=True)
class RadioSettings:
    """Link budget, compute model and round budget of the uplink."""

    bandwidth_hz: float = key("B: uplink band, shared by all devices", unit="Hz", above=0, used=EMULATED)
    transmit_power_dbm: PerDevice = key(
        "p: of every device, whatever its share; the most where a policy chooses it",
        unit=DBM,
        minimum=-100,
        maximum=100,
        used=EMULATED,
    )
    noise_power_dbm: float = key(
        "sigma^2: receiver noise in the whole band", unit=DBM, minimum=-300, maximum=100, used=OFDMA
    )
    latency_threshold_ms: float = key("T_th: what a round may take", unit=MS, above=0, used=NOT_DENSE_AIR)
    noise_model: NoiseModel = key(
        "fixed: the same noise power for every share; proportional: to the share", used=OFDMA
    )
    bits_per_weight: Bits = key("q: of an uploaded weight", unit="bit", used=DIGITAL)
    cpu_hz: PerDevice = key(
        "f_k: clock of a device's processor; the most where a policy chooses it",
        unit="Hz", above=0, used=EMULATED,
    )  # fmt: skip
    cpu_min_hz: PerDevice | None = key(
        "the least clock that a policy may choose; null: a thousandth of cpu_hz",
        unit="Hz", above=0, used=ENERGY_AWARE,
    )  # fmt: skip
    cycles: Cycles = key(
        "of a local step, by weights as in the paper, or by flops: the multiply-adds of the network",
        used=EMULATED,
    )
    cycles_per_weight: PerDevice = key(
        "C: per global weight and local step", unit="cycles", minimum=0, used=EMULATED & BY_WEIGHTS
    )
    cycles_per_weight_personal: PerDevice = key(
        "the same for the personal part", unit="cycles", minimum=0, used=EMULATED & BY_WEIGHTS & PERSONAL
    )
    cycles_per_multiply_add: PerDevice = key(
        "C with cycles=flops: per multiply-add of a sample's forward pass and local step, the backward pass "
        "included",
        unit="cycles", minimum=0, used=EMULATED & BY_FLOPS,
    )  # fmt: skip
    energy_per_cycle_squared: PerDevice = key(
        "kappa, in J s^2: a cycle at f Hz costs kappa f^2 joules", minimum=0, used=EMULATED
    )
    energy_budget_j: PerDevice | None = key(
        "E_k: of every device and round; null: no limit", unit="J", minimum=0, used=ENERGY_AWARE
    )
    battery_j: PerDevice | None = key(
        "of every device at the start; null: never empty", unit="J", minimum=0, used=EMULATED
    )
    distance_m: PerDevice | None = key(
        "of every device from the server at the start; null: as channel.placement says",
        unit="m", above=0, used=PLACES,
    )  # fmt: skip
    weight: PerDevice = key(
        "w_k: of a device's retained weights in what an allocation maximises", above=0, used=OPTIMUM
    )
    devices: str | None = key(
        "CSV file with one row per device: columns named as the keys above take their place",
        path=True, used=EMULATED,
    )  # fmt: skip
    include_importance_cost: bool = key(
        "charge the importance steps to the round budget", used=EMULATED & TRIAL_STEPS
    )
    charge_mask_bits: bool = key("charge header and positions (at most 1 bit per weight)", used=OFDMA)
    rate_backoff_db: float = key(
        "margin that a plan leaves: it goes by gains that are this much lower",
        unit=DB, minimum=0, maximum=100, used=OFDMA,
    )  # fmt: skip
    max_pruning_ratio: float = key(
        "rho_max: no device prunes more; 1: devices may be starved", above=0, maximum=1, used=RATIO_LIMIT
    )
    when_infeasible: WhenOverLimit = key(
        "if max_pruning_ratio cannot be met: relax it, or drop the costliest device", used=INFEASIBLE
    )


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """Where the radio comes from; places, losses and fading of the devices of an emulated one."""

    source: Source = key("emulated by the model, or measured on real nodes (channel=measured)")
    antennas: int = key("of the server, maximum-ratio combining of an OFDMA uplink", minimum=1, used=OFDMA)
    model: str = key(
        "small-scale fading: rayleigh, none, rician, correlated, gauss_markov, multipath, trace, or "
        "package.module:object",
        used=EMULATED,
    )
    options: Mapping[str, Any] = key("parameters of the fading", used=EMULATED)
    placement: Placement = key(
        "rings: fixed, equal-area; random: uniform over the cell", used=PLACES & PLACED
    )
    cell_radius_m: float = key("of the cell", unit="m", above=0, used=PLACES)
    min_distance_m: float = key("between a device and the server", unit="m", above=0, used=PLACES)
    path_loss: str = key(
        "law of the loss over distance: log_distance, umi, uma (3GPP TR 38.901), or package.module:object",
        used=PLACES,
    )
    path_loss_options: Mapping[str, Any] = key("parameters of the law", used=PLACES)
    path_loss_intercept_db: float = key("path loss at 1 km", unit=_LOSS, used=OFDMA & LOG_DISTANCE)
    path_loss_slope_db: float = key(
        "path loss per decade of distance", unit=_LOSS, above=0, used=PLACES & LOG_DISTANCE
    )
    shadowing_std_db: float = key(
        "of log-normal shadowing; 0: none", unit=_LOSS, minimum=0, used=PLACES & LOG_DISTANCE
    )
    mobility: str = key(
        "how devices move: static, random_waypoint, straight, or package.module:object", used=PLACES
    )
    mobility_options: Mapping[str, Any] = key("parameters of the movement", used=PLACES)
    shadowing_distance_m: float = key(
        "over which the shadowing of a moving device decorrelates", unit="m", above=0, used=PLACES & MOVES
    )
    coherence_step_ms: float | None = key(
        "from one round to the next, by which devices move and channels age; null: "
        "radio.latency_threshold_ms",
        unit=MS, above=0, used=EMULATED & AGES,
    )  # fmt: skip
    csi_delay_rounds: int = key(
        "rounds by which the channels that the server plans with are old", unit="rounds", minimum=0,
        used=EMULATED,
    )  # fmt: skip
    csi_error_variance: float = key(
        "of the server's estimate of each antenna's channel, relative to the device's mean gain",
        minimum=0, used=OFDMA,
    )  # fmt: skip
    on_outage: OnOutage = key(
        "an upload over a channel worse than planned comes late, or is lost for the round",
        used=OFDMA & IMPERFECT,
    )


@dataclass(frozen=True, kw_only=True)
class AirSettings:
    """The analog uplink of the over-the-air schemes."""

    num_selected: int = key("M: users that send at once", minimum=1, used=AIR)
    antennas: int = key("N: receive antennas", minimum=1, used=AIR)
    snr_db: float = key(
        "transmit power over receiver noise per antenna, at the mean channel gain",
        unit=DB, minimum=-200, maximum=300, used=SNR,
    )  # fmt: skip
    noise: bool = key("false: the error-free reference", used=AIR)
    path_loss: bool = key(
        "false: all users with unit mean gain; true: the places of the channel group", used=AIR
    )
    normalization: Mode = key("of what is sent: per user, or common to all", used=DENSE_AIR)
    packing: Packing = key("iq: two weights per channel use; real: one, with half the noise", used=AIR)
    payload: Payload = key(
        "delta: updates; model: weights, as in the paper (needs 30 dB more SNR)", used=DENSE_AIR
    )
    channel_error_variance: float = key(
        "of the server's channel estimate, relative to a unit gain", minimum=0, used=AIR
    )
    recompute_beam: bool = key(
        "solve for the beam again when the sizes of the updates are known", used=DENSE_AIR
    )
    certificate: bool = key("also bound the joint optimum of every round (semidefinite relaxation)", used=AIR)
    charge_side_information: bool = key(
        "pilots, statistics, coefficients and masks take time on the band too", used=AIR
    )
    subcarriers: int = key(
        "F: of an OFDM symbol; 1: a single carrier over a flat channel", minimum=1, used=DENSE_AIR & TRAINING
    )
    subcarrier_groups: int = key(
        "of neighbouring subcarriers, each with a receive beam of its own",
        minimum=1, used=DENSE_AIR & TRAINING & OFDM & SELECTIVE,
    )  # fmt: skip
    taps: int = key(
        "L: waves that arrive one sample after the other; 1: a flat channel",
        minimum=1, used=DENSE_AIR & TRAINING & OFDM,
    )  # fmt: skip
    tap_decay_db: float = key(
        "power of a tap over that of the next one",
        unit=DB, minimum=0, maximum=100, used=DENSE_AIR & TRAINING & OFDM & SELECTIVE,
    )  # fmt: skip
    cyclic_prefix: int = key(
        "in front of every OFDM symbol; taps and timing have to keep to it",
        unit="samples", minimum=0, used=DENSE_AIR & TRAINING & OFDM,
    )  # fmt: skip
    timing_spread: float = key(
        "within which users arrive; the receiver does not know when",
        unit="samples", minimum=0, used=DENSE_AIR & TRAINING & OFDM,
    )  # fmt: skip
    phase_error_deg: float = key(
        "deviation of each user's phase, which the receiver does not know",
        unit=DEG, minimum=0, maximum=180, used=DENSE_AIR & TRAINING,
    )  # fmt: skip
    count_mode: CountMode = key(
        "how the server knows how many users sent a weight: by bitmaps, by a common mask, or not at all",
        used=PRUNED_AIR,
    )
    shrinkage: Shrinkage = key("moment: shrink each weight's update by its noise", used=PRUNED_AIR & NOISE)
    explore: float = key(
        "share of random entries in a common mask", minimum=0, maximum=1, used=PRUNED_AIR & COMMON_MASK
    )
    min_count: int = key("a weight retained by fewer users stays as it is", minimum=1, used=BITMAP)


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """Who sends over the air, and with which receive beam."""

    method: str = key("chooses users and beam: conf/scheduler, or package.module:object", used=AIR)
    beamformer: str = key(
        "beam of given users: fast, global, sca, sdr, dc, package.module:object", used=BEAMFORMER
    )
    options: Mapping[str, Any] = key("parameters of the method", used=AIR)


def check_subcarriers(air: AirSettings, channel: ChannelSettings) -> None:
    """Check the subcarriers of the analog uplink.

    Raises:
        ConfigError: naming the keys and their values.
    """
    if air.subcarriers == 1:
        return
    if air.subcarrier_groups > air.subcarriers:
        raise ConfigError(
            f"air.subcarrier_groups = {air.subcarrier_groups} is above air.subcarriers = {air.subcarriers}: "
            "a group has one at least"
        )
    if air.cyclic_prefix > air.subcarriers:
        raise ConfigError(
            f"air.cyclic_prefix = {air.cyclic_prefix} is above air.subcarriers = {air.subcarriers}: it "
            "repeats the end of an OFDM symbol, which is that long"
        )
    needed = air.taps - 1 + air.timing_spread
    if needed > air.cyclic_prefix:
        raise ConfigError(
            f"air.taps = {air.taps} and air.timing_spread = {air.timing_spread:g} reach {needed:g} samples "
            f"beyond the first, and air.cyclic_prefix = {air.cyclic_prefix}: OFDM symbols would run into "
            f"each other; set air.cyclic_prefix to {math.ceil(needed)} or more"
        )
    if air.taps == 1:
        return
    if channel.model in FLAT:
        raise ConfigError(
            f"air.taps = {air.taps} with channel.model = {channel.model}, which has no waves that arrive at "
            "several times; use channel.model=rayleigh or rician, or air.taps=1"
        )
    if air.certificate:
        raise ConfigError(
            f"air.certificate = true with air.taps = {air.taps}: the bound is that of one beam over a flat "
            "channel; set air.certificate=false"
        )
