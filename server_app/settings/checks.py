"""What involves more than one key."""

from __future__ import annotations

import math

from radio.channel.taps import FLAT
from schema import ConfigError
from server_app.settings.private import check_privacy
from server_app.settings.tree import Settings


def check_together(settings: Settings) -> None:
    """Check what involves more than one key.

    Raises:
        ConfigError: naming the keys and their values.
    """
    check_privacy(settings)
    fleet, channel, scheme, engine = settings.fleet, settings.channel, settings.scheme, settings.engine
    if engine.name != "inprocess" and ((engine.batch_devices or 1) > 1 or engine.device != "cpu"):
        raise ConfigError(
            f"engine.batch_devices = {engine.batch_devices}, engine.device = {engine.device} with "
            f"engine.name = {engine.name}; only engine=inprocess trains devices together"
        )
    if engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("engine.device = cuda, but PyTorch finds no CUDA device here; valid here: cpu")
    if fleet.roster is not None and fleet.identity == "index":
        raise ConfigError(
            f"fleet.roster = {fleet.roster} says which key is which device, but with fleet.identity = index "
            "keys do not count; leave one of them out"
        )
    _check_mode(settings)
    _check_air(settings)
    if fleet.devices_per_round is not None and fleet.devices_per_round > fleet.num_devices:
        raise ConfigError(
            f"fleet.devices_per_round = {fleet.devices_per_round} is above "
            f"fleet.num_devices = {fleet.num_devices}"
        )
    if fleet.min_replies > (participants := fleet.devices_per_round or fleet.num_devices):
        raise ConfigError(
            f"fleet.min_replies = {fleet.min_replies} is above the {participants} devices of a round "
            "(fleet.devices_per_round, fleet.num_devices)"
        )
    air_users = fleet.devices_per_round or fleet.num_devices
    if scheme.uplink != "ofdma" and settings.air.num_selected > air_users:
        raise ConfigError(
            f"air.num_selected = {settings.air.num_selected} is above the {air_users} devices of a round "
            "(fleet.devices_per_round, fleet.num_devices)"
        )
    if channel.source == "measured" and scheme.uplink != "ofdma":
        raise ConfigError(
            f"channel.source = measured with scheme.uplink = {scheme.uplink}; what is sent over the air can "
            "only be emulated"
        )
    if channel.min_distance_m >= channel.cell_radius_m:
        raise ConfigError(
            f"channel.min_distance_m = {channel.min_distance_m:g} must be below "
            f"channel.cell_radius_m = {channel.cell_radius_m:g}"
        )
    if scheme.allocation == "fixed_ratio" and scheme.pruning_ratio is None:
        raise ConfigError(
            "scheme.pruning_ratio is null; scheme.allocation=fixed_ratio needs a value in [0, 1]"
        )


def _check_air(settings: Settings) -> None:
    """Check the subcarriers of the analog uplink.

    Raises:
        ConfigError: naming the keys and their values.
    """
    air, channel = settings.air, settings.channel
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
    if settings.privacy.clip_norm is not None:
        raise ConfigError(
            f"privacy.clip_norm = {settings.privacy.clip_norm:g} with air.taps = {air.taps}: the power that "
            "a user needs on unlike subcarriers tells of its update; set air.taps=1"
        )


def _check_mode(settings: Settings) -> None:
    """Check when a round closes.

    Raises:
        ConfigError: naming the keys and their values.
    """
    server, fleet = settings.server, settings.fleet
    if server.mode == "synchronous":
        return
    if settings.scheme.uplink != "ofdma":
        raise ConfigError(
            f"server.mode = {server.mode} with scheme.uplink = {settings.scheme.uplink}: over the air all "
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
