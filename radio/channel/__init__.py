"""The uplink channels of one cell: places, path loss, fading, and the rates that remain."""

from radio.channel.fading import ChannelModel, draw_gain, draw_vectors, mean_gain, place_devices
from radio.channel.rates import FixedNoise, ProportionalNoise, RateModel

__all__ = [
    "ChannelModel",
    "FixedNoise",
    "ProportionalNoise",
    "RateModel",
    "draw_gain",
    "draw_vectors",
    "mean_gain",
    "place_devices",
]
