"""What a key needs in order to have an effect: conditions on the values of other keys, each with its words.

A key names its condition where it is declared. A user who sets a key whose condition does not hold is told so
before anything runs; in a sweep, a key that none of the jobs uses. What a scheme or policy of the user's own
reads is not known here: for those every key counts as used. A package may have conditions of its own.
"""

from __future__ import annotations

from typing import Any

from schema.declaration import Use

_DENSE = "dense_equal_bandwidth"  # the allocation policy that prunes nothing
_WITHOUT_LIMIT = (_DENSE, "fixed_ratio", "printed_formula")  # those that keep to no largest pruning ratio

_TIME_OPTIMA = ("joint", "joint_physical_noise")
_OPTIMA = (*_TIME_OPTIMA, "energy_aware", "equal_bandwidth_joint_rho")  # the last takes the ratios of joint


def _air(settings: Any) -> bool:
    return bool(settings.scheme.uplink != "ofdma")


def _measured(settings: Any) -> bool:
    return bool(settings.channel.source == "measured")


def _ofdma(settings: Any) -> bool:
    return not _air(settings) and not _measured(settings)


def _keeps_limit(settings: Any) -> bool:
    return _ofdma(settings) and settings.scheme.allocation not in _WITHOUT_LIMIT


def _asks_what_to_do(settings: Any) -> bool:
    """Return whether the policy asks what to do where the largest ratio cannot be met; some always drop."""
    return _keeps_limit(settings) and settings.scheme.allocation != "equal_bandwidth"


def _dense_air(settings: Any) -> bool:
    return settings.scheme.uplink in ("over_the_air", "over_the_air_adaptive")


def _pruned_air(settings: Any) -> bool:
    return bool(settings.scheme.uplink == "over_the_air_pruned")


def _adaptive(settings: Any) -> bool:
    return bool(settings.scheme.uplink == "over_the_air_adaptive")


def _bitmap(settings: Any) -> bool:
    return _pruned_air(settings) and settings.air.count_mode == "bitmap"


def _ranks(settings: Any) -> bool:
    """Return whether each device ranks its weights; a mask of the server leaves nothing to rank."""
    if _air(settings):
        return _pruned_air(settings) and settings.air.count_mode != "common_mask"
    return _measured(settings) or settings.scheme.allocation != _DENSE


def _personal(settings: Any) -> bool:
    """Return whether something is trained that stays on the device; an algorithm of one's own may do so."""
    algorithm = settings.training.algorithm
    return settings.personal_patterns != () or algorithm == "ditto" or ":" in algorithm


# Schedulers that bring a beam of their own.
_OWN_BEAM = ("subgradient", "iterative_reweighted", "random_beamforming")


def _solves_beams(settings: Any) -> bool:
    if settings.scheduler.method not in _OWN_BEAM:
        return _air(settings)
    return bool(_dense_air(settings) and (settings.air.recompute_beam or settings.air.taps > 1))


EMULATED = Use("with an emulated channel (not channel=measured)", lambda s: not _measured(s))
MEASURED = Use("with channel=measured", _measured)
OFDMA = Use("with the emulated OFDMA uplink", _ofdma)
BY_WEIGHTS = Use("with radio.cycles=weights", lambda s: s.radio.cycles == "weights")
BY_FLOPS = Use("with radio.cycles=flops", lambda s: s.radio.cycles == "flops")
DIGITAL = Use("with a digital uplink (OFDMA or measured)", lambda s: not _air(s))
AIR = Use("over the air (scheme=over_the_air, over_the_air_adaptive, error_free or aircomp_pruned)", _air)
# Without noise every way of sending gives the same sum, but not for the same joules.
DENSE_AIR = Use("by scheme=over_the_air, over_the_air_adaptive and error_free", _dense_air)
SNR = Use(
    "over the air with air.noise=true or air.charge_side_information=true, or for the masks of "
    "air.count_mode=bitmap",
    lambda s: _air(s) and (s.air.noise or s.air.charge_side_information or _bitmap(s)),
)
BEAMFORMER = Use(
    f"over the air by schedulers other than {', '.join(_OWN_BEAM)}, where air.recompute_beam acts, and with "
    "air.taps above 1",
    _solves_beams,
)
ADAPTIVE = Use("by scheme=over_the_air_adaptive", _adaptive)
REGULARISED = Use(
    "with adaptive.receive_scaling=regularised", lambda s: s.adaptive.receive_scaling == "regularised"
)
PRUNED_AIR = Use("by scheme=aircomp_pruned", _pruned_air)
OFDM = Use("air.subcarriers above 1", lambda s: s.air.subcarriers > 1)
SELECTIVE = Use("air.taps above 1", lambda s: s.air.taps > 1)
NOISE = Use("air.noise=true", lambda s: s.air.noise)
COMMON_MASK = Use("air.count_mode=common_mask", lambda s: s.air.count_mode == "common_mask")
BITMAP = Use("by scheme=aircomp_pruned with air.count_mode=bitmap", _bitmap)
NOT_PRUNED_AIR = Use("by schemes other than aircomp_pruned", lambda s: not _pruned_air(s))
NOT_DENSE_AIR = Use(
    "by schemes other than over_the_air, over_the_air_adaptive and error_free", lambda s: not _dense_air(s)
)
PLACES = Use(
    "with the emulated OFDMA uplink, or over the air with air.path_loss=true (not channel.model=trace)",
    lambda s: (_ofdma(s) or (_air(s) and s.air.path_loss)) and s.channel.model != "trace",
)
PLACED = Use("without radio.distance_m", lambda s: s.radio.distance_m is None)
LOG_DISTANCE = Use("channel.path_loss=log_distance", lambda s: s.channel.path_loss == "log_distance")
MOVES = Use("channel.mobility other than static", lambda s: s.channel.mobility != "static")
AGES = Use(
    "channels that move or remember (channel.mobility, channel.options.speed_kmh, a model of one's own)",
    lambda s: (
        s.channel.mobility != "static"
        or s.channel.model == "gauss_markov"
        or s.channel.options.get("speed_kmh") is not None
        or ":" in s.channel.model
    ),
)
IMPERFECT = Use(
    "channel.csi_delay_rounds or channel.csi_error_variance above 0",
    lambda s: s.channel.csi_delay_rounds > 0 or s.channel.csi_error_variance > 0,
)
RATIO_LIMIT = Use(
    f"with channel=measured or allocation policies other than {', '.join(_WITHOUT_LIMIT)}",
    lambda s: _measured(s) or _keeps_limit(s),
)
INFEASIBLE = Use(
    f"with allocation policies other than equal_bandwidth, {', '.join(_WITHOUT_LIMIT)}, and "
    "radio.max_pruning_ratio below 1",
    lambda s: _asks_what_to_do(s) and s.radio.max_pruning_ratio < 1,
)
OPTIMUM = Use(
    f"by the allocation policies {', '.join(_OPTIMA)} or one of the user's own",
    lambda s: _ofdma(s) and (s.scheme.allocation in _OPTIMA or ":" in s.scheme.allocation),
)
TIME_OPTIMUM = Use(
    f"by the allocation policies {', '.join(_TIME_OPTIMA)} or one of the user's own",
    lambda s: _ofdma(s) and (s.scheme.allocation in _TIME_OPTIMA or ":" in s.scheme.allocation),
)
ENERGY_AWARE = Use(
    "by scheme.allocation=energy_aware or a policy of the user's own",
    lambda s: _ofdma(s) and (s.scheme.allocation == "energy_aware" or ":" in s.scheme.allocation),
)
FIXED_RATIO = Use(
    "by scheme.allocation=fixed_ratio or a policy of the user's own",
    lambda s: _ofdma(s) and (s.scheme.allocation == "fixed_ratio" or ":" in s.scheme.allocation),
)
RANKING = Use("by schemes in which each device chooses what it prunes", _ranks)
TRIAL_STEPS = Use(
    "by schemes in which each device chooses what it prunes, except by training.importance=magnitude, random",
    lambda s: _ranks(s) and s.training.importance not in ("magnitude", "random"),
)
PERSONAL = Use(
    "with a personal part (scheme.personalization=true and model.personal), or by training.algorithm=ditto",
    _personal,
)
PERSONALIZATION = Use("with scheme.personalization=true", lambda s: s.scheme.personalization)
PERSONAL_PHASE = Use(
    "with a personal part that has steps of its own (not training.algorithm=simultaneous), or by ditto",
    lambda s: _personal(s) and s.training.algorithm != "simultaneous",
)
PERSONAL_STEPS = Use(
    "with a personal part that has steps of its own, or by ditto, and with training.personal_epochs=null",
    lambda s: PERSONAL_PHASE.holds(s) and s.training.personal_epochs is None,
)
GLOBAL_STEPS = Use("with training.global_epochs=null", lambda s: s.training.global_epochs is None)
PROBE = Use("with channel=measured and measured.probe=true", lambda s: _measured(s) and s.measured.probe)
NORM_LIMIT = Use("with fleet.upload_norm_limit", lambda s: s.fleet.upload_norm_limit is not None)
OVERLAPPING = Use(
    "by rounds that do not wait for all (server.mode=deadline or buffered)",
    lambda s: s.server.mode != "synchronous",
)
BUFFERED = Use("with server.mode=buffered", lambda s: s.server.mode == "buffered")
NOT_BUFFERED = Use(
    "with server.mode=synchronous or deadline (buffered has server.concurrency)",
    lambda s: s.server.mode != "buffered",
)
SAMPLED = Use(
    "where not all devices take part at once (fleet.devices_per_round; with buffered: server.concurrency)",
    lambda s: (s.server.concurrency if BUFFERED.holds(s) else s.fleet.devices_per_round) is not None,
)
STOPPED = Use(
    "with stop.patience or stop.threshold",
    lambda s: s.stop.patience is not None or s.stop.threshold is not None,
)
PATIENT = Use("with stop.patience", lambda s: s.stop.patience is not None)
PRIVATE = Use("with privacy.clip_norm", lambda s: s.privacy.clip_norm is not None)
TRAINING = Use("by jobs that train (no study.name)", lambda s: s.study.name is None)
STUDY = Use("by studies (study.name)", lambda s: s.study.name is not None)
MLFLOW = Use("with tracker=mlflow", lambda s: s.tracker.name == "mlflow")
