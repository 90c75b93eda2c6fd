"""What involves more than one key."""

from __future__ import annotations

from radio.settings import check_subcarriers
from schema import ConfigError
from server_app.settings.private import check_privacy
from server_app.settings.tree import Settings
from strategies.settings import check_mode


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
    check_mode(settings.server, fleet, scheme.uplink)
    check_subcarriers(settings.air, channel)
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
