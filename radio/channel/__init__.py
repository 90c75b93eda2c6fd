"""The uplink channels of one cell: places, path loss, fading, and the rates that remain."""

from radio.channel.cell import Cell, ChannelState, ChannelVectors, Uplink, estimate_channels
from radio.channel.fading import ChannelModel, draw_gain, draw_vectors, mean_gain, place_devices
from radio.channel.rates import FixedNoise, ProportionalNoise, RateModel

__all__ = [
    "Cell",
    "ChannelModel",
    "ChannelState",
    "ChannelVectors",
    "FixedNoise",
    "ProportionalNoise",
    "RateModel",
    "Uplink",
    "draw_gain",
    "draw_vectors",
    "estimate_channels",
    "mean_gain",
    "place_devices",
]
