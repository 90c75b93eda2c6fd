"""From a job to the strategy that carries it out: the server's side of every round."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.streams import generator
from schema import ConfigError, in_si
from server_app.channels import try_channels
from server_app.links import air_interface, measured_link, ofdma_cell
from server_app.modes import round_mode, selection
from strategies.aggregation import ChosenAggregation, choose
from strategies.base import WirelessStrategy
from strategies.buffers import SharedBuffers
from strategies.continuation import Continuation
from strategies.evaluation import ACCURACY, MetricColumns
from strategies.fleet import Fleet
from strategies.identity import RosterFile
from strategies.limits import NormLimit
from strategies.measured import MeasuredStrategy, UplinkProbe
from strategies.ofdma import OfdmaStrategy
from strategies.sample_counts import SampleCounts
from strategies.server_optimizers import ServerStep
from strategies.settings import FleetSettings, PrivacySettings, SchemeSettings, ServerSettings
from task.build import Task
from task.global_evaluation import test_global
from task.metrics import combined, lower_is_better
from task.split import persistent_buffers

if TYPE_CHECKING:
    from server_app.job import Job

# Clocks of server and nodes may differ by this much before a short round makes orders void on arrival.
_TTL_SLACK_SECONDS = 60.0


def build_strategy(
    job: Job,
    *,
    run: str = "",
    continued: Continuation | None = None,
    probe: UplinkProbe | None = None,
) -> WirelessStrategy:
    """Return the strategy that the scheme names; the rest as in `WirelessStrategy`.

    `probe` measures the uplink where the radio is a measured one.

    Raises:
        ConfigError: if the scheme's policy is unknown or a radio value does not fit.
    """
    settings = job.settings
    threshold = in_si(settings.radio)["latency_threshold"]
    measured = settings.channel.source == "measured"
    skeleton: dict[str, Any] = {
        "seed": settings.seed,
        "num_weights": job.split.global_part.size,
        "spec": job.spec.to_json(),
        "fleet": _fleet(settings.fleet, job.spec.to_json()),
        "mode": round_mode(settings.server, settings.fleet, threshold, measured=measured),
        "selection": selection(settings.selection, threshold, job.data.train),
        "evaluate_every": settings.evaluate_every,
        "evaluate_participants": settings.fleet.evaluate == "participants",
        "last_round": settings.rounds,
        "min_replies": settings.fleet.min_replies,
        "run": run,
        "continued": continued,
        "norm_limit": _norm_limit(
            settings.fleet,
            settings.privacy,
            job.split.global_part.size,
            digital=settings.scheme.uplink == "ofdma",
        ),
        "train_counts": SampleCounts(job.data.train, settings.fleet.max_own_images),
        "test_counts": SampleCounts(job.data.test, settings.fleet.max_own_images, "test images"),
        "message_ttl": settings.fleet.round_timeout_s + _TTL_SLACK_SECONDS,
    }
    task = job.task
    first = {name: buffer.flatten().numpy() for name, buffer in persistent_buffers(task.model).items()}
    shared = {name: first[name] for name in task.split.shared_buffers}
    limited = settings.fleet.upload_norm_limit is not None
    skeleton["buffers"] = SharedBuffers(shared, limited=limited)
    skeleton["metrics"] = _metric_columns(task)
    if settings.evaluate_global:
        skeleton["global_test"] = partial(test_global, task)
    skeleton["vectors"] = job.vectors
    skeleton["server"] = _server_step(settings.server)
    skeleton["divergence_loss"] = settings.fleet.divergence_loss
    if measured:
        return MeasuredStrategy(
            link=measured_link(settings.measured, in_si(settings.radio)),
            probe=probe,
            weighting=settings.scheme.weighting,
            aggregation=_aggregation(settings.scheme),
            **skeleton,
        )
    if settings.scheme.uplink != "ofdma":
        return _over_the_air(job, skeleton)
    cell = ofdma_cell(job)
    try_channels(cell.emulate(partial(generator, settings.seed)), settings.rounds)
    aggregation = _aggregation(settings.scheme)
    try:
        return OfdmaStrategy(
            cell=cell,
            policy=settings.scheme.allocation,
            pruning_ratio=settings.scheme.pruning_ratio,
            weighting=settings.scheme.weighting,
            aggregation=aggregation,
            **skeleton,
        )
    except ValueError as error:
        raise ConfigError(f"scheme.allocation = {settings.scheme.allocation}: {error}") from error


def _fleet(fleet: FleetSettings, spec: str) -> Fleet:
    """Return the fleet, with the roster that the settings name.

    Raises:
        ConfigError: if the roster cannot be used.
    """
    if fleet.roster is None:
        return Fleet(fleet.num_devices, spec=spec, by_key=fleet.identity == "key")
    path = Path(fleet.roster).expanduser()
    try:
        return Fleet(fleet.num_devices, spec=spec, roster=RosterFile(path, fleet.num_devices))
    except (OSError, ValueError) as error:
        raise ConfigError(f"fleet.roster = {fleet.roster}: {error}") from error


def _server_step(server: ServerSettings) -> ServerStep:
    """Return the server's step.

    Raises:
        ConfigError: if it is not valid.
    """
    try:
        return ServerStep(server.optimizer, server.learning_rate, server.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"server: {error}") from error


def _aggregation(scheme: SchemeSettings) -> ChosenAggregation:
    """Return what becomes of the uploads.

    Raises:
        ConfigError: if it is not valid.
    """
    try:
        return choose(scheme.aggregation, scheme.aggregation_options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scheme.aggregation = {scheme.aggregation}: {error}") from error


def _norm_limit(
    fleet: FleetSettings, privacy: PrivacySettings, num_weights: int, *, digital: bool
) -> NormLimit:
    limit, action = fleet.upload_norm_limit, fleet.upload_norm_action
    if limit == "auto" and privacy.clip_norm is not None:
        # What a clipped update with its noise has at most (but for once in 10^8): no median of others' data.
        noise = privacy.noise_multiplier * (math.sqrt(num_weights) + 6.0) if digital else 0.0
        return NormLimit(1.0001 * privacy.clip_norm * (1.0 + noise), action)
    if limit == "auto":
        return NormLimit(None, action)
    return NormLimit(math.inf if limit is None else limit, action)


def _over_the_air(job: Job, skeleton: dict[str, Any]) -> WirelessStrategy:
    from strategies.adaptive_over_the_air import AdaptiveOverTheAir
    from strategies.over_the_air import OverTheAir  # half a second of imports
    from strategies.pruned_over_the_air import PrunedOverTheAir

    settings, air = job.settings, job.settings.air
    try:
        interface = air_interface(job)
        try_channels(interface.cell(partial(generator, settings.seed)), settings.rounds)
        parts = {"air": interface, "weighting": settings.scheme.weighting, **skeleton}
        if settings.scheme.uplink == "over_the_air":
            return OverTheAir(**parts)
        if settings.scheme.uplink == "over_the_air_adaptive":
            tensors = tuple(job.split.global_part.slices().values())
            return AdaptiveOverTheAir(adaptive=settings.adaptive, tensors=tensors, **parts)
        return PrunedOverTheAir(
            count_mode=air.count_mode,
            shrinkage=air.shrinkage,
            explore=air.explore,
            min_count=air.min_count,
            **parts,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"scheduler.method = {settings.scheduler.method}: {error}") from error


def _metric_columns(task: Task) -> tuple[MetricColumns, ...]:
    return tuple(
        ACCURACY
        if metric.name == "accuracy"
        else MetricColumns(
            metric.name, partial(combined, metric.name), lower_is_better=lower_is_better(metric.name)
        )
        for metric in task.metrics
    )
