"""From settings to the channels of an emulated cell."""

from __future__ import annotations

from functools import partial

import numpy as np

from protocol.streams import generator
from radio.channel import Cell, ChannelModel
from schema import ConfigError, in_si
from server_app.devices import device_distances, device_values
from server_app.settings import Settings


def channel_model(settings: Settings, antennas: int) -> ChannelModel:
    """Return the cell's places and fading for a server with that many antennas."""
    channel = settings.channel
    return ChannelModel(
        num_devices=settings.fleet.num_devices,
        antennas=antennas,
        path_loss_intercept_db=channel.path_loss_intercept_db,
        path_loss_slope_db=channel.path_loss_slope_db,
        cell_radius=channel.cell_radius_m,
        min_distance=channel.min_distance_m,
        shadowing_std_db=channel.shadowing_std_db,
        placement=channel.placement,
        distances=device_distances(device_values(settings)),
        fading=channel.model,
        fading_options=channel.options,
        path_loss=channel.path_loss,
        path_loss_options=channel.path_loss_options,
        mobility=channel.mobility,
        mobility_options=channel.mobility_options,
        shadowing_distance=channel.shadowing_distance_m,
        step=in_si(channel)["coherence_step"] or in_si(settings.radio)["latency_threshold"],
    )


def analog_cell(settings: Settings) -> Cell:
    """Return the cell of a job over the air: the channels of its rounds, for studies that train nothing."""
    air = settings.air
    return Cell(
        channel_model(settings, air.antennas),
        partial(generator, settings.seed),
        spread="relative" if air.path_loss else "none",
    )


def try_channels(cell: Cell, rounds: int) -> None:
    """Draw a round of a channel: one that cannot work is found before anything is trained.

    Raises:
        ConfigError: with what is wrong with it.
    """
    analog = cell.uplink is None
    expected = (cell.model.num_devices, cell.model.antennas)[: 1 + analog]
    try:
        draw = cell.fading.vectors if analog else cell.fading.gain
        found = np.shape(draw(cell.mean_gain, 1))
        if found == expected:
            _ = cell.draw_vectors(1) if analog else cell.draw(1)
    except Exception as error:  # of a channel of the user's own, any
        cause = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"channel: {cause}") from error
    if found != expected:
        raise ConfigError(
            f"channel.model = {cell.model.fading} returns an array of shape {found}; it must be {expected} "
            "(devices, antennas)"
        )
    lasts = getattr(cell.fading, "rounds", None)
    if lasts is not None and rounds > lasts:
        raise ConfigError(
            f"rounds = {rounds}, but the recorded channels of channel.options.file end after {lasts} rounds; "
            "set channel.options.at_end=wrap or fewer rounds"
        )
