"""Channels of several taps: each tap is a channel of its own, and together they have the power of one.

Tap l has the share p_l of the power, p_l ~ decay^-l (an exponential power delay profile), and an independent
realisation of the cell's fading. A line of sight is in the first tap alone: with K the power of the line of
sight over all scattered waves,

    h_0 = sqrt(K / (K + 1)) a + sqrt(p_0 / (K + 1)) z_0,      h_l = sqrt(p_l / (K + 1)) z_l,

so that on every subcarrier the mean power and K are those of the flat channel. One tap is the flat channel,
bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from radio.arrays import FloatArray, count, positive
from radio.channel.cell import Cell, ChannelVectors
from radio.channel.fading import ChannelModel
from radio.channel.scene import Streams
from radio.channel.small_scale import RICIAN_K

FLAT = ("none", "trace")  # models without waves that could arrive at several times


def tap_powers(taps: int, decay: float) -> FloatArray:
    """Return the share of the power that each tap has, (L,), summing to 1.

    Args:
        taps: L.
        decay: ratio of the power of a tap to that of the next one, linear, > 0.
    """
    count("taps", taps, 1)
    profile = float(positive("decay", decay)) ** -np.arange(float(taps))
    return np.asarray(profile / profile.sum())


@dataclass(frozen=True, eq=False)
class TappedCell:
    """A cell whose channels have L taps.

    Attributes:
        cells: of each tap.
        amplitude: by which the channels of each are multiplied, (L,).
    """

    cells: tuple[Cell, ...]
    amplitude: FloatArray

    def draw_vectors(self, server_round: int) -> ChannelVectors:
        """Return the taps of a round, (K, L, N), true and as the server knows them."""
        drawn = [cell.draw_vectors(server_round) for cell in self.cells]
        level = self.amplitude[:, np.newaxis]
        true = np.stack([one.true for one in drawn], axis=1) * level
        if drawn[0].perfect:
            return ChannelVectors(true, true)
        return ChannelVectors(true, np.stack([one.known for one in drawn], axis=1) * level)


def tapped_cell(
    model: ChannelModel, stream: Streams, *, taps: int, decay: float, error_variance: float = 0.0, **rest: Any
) -> TappedCell:
    """Return a cell whose channels have L taps.

    Args:
        model: the law of places and fading.
        stream: keyed random streams; tap l > 0 draws from ("channel", round, l).
        taps: L.
        decay: as for `tap_powers`.
        error_variance: of the server's estimate of each antenna's channel on a subcarrier; every tap has its
            share of it.
        rest: further options of `Cell`.

    Raises:
        ValueError: for more than one tap of a channel that has none.
    """
    powers = tap_powers(taps, decay)
    if taps == 1:
        return TappedCell((Cell(model, stream, error_variance=error_variance, **rest),), np.ones(1))
    if model.fading in FLAT:
        raise ValueError(
            f"model = {model.fading} has no waves that arrive at several times; {taps} taps need a fading one"
        )
    direct = float(model.fading_options.get("k_factor", RICIAN_K if model.fading == "rician" else 0.0))
    cells, levels = [], []
    for place, power in enumerate(powers.tolist()):
        own, level = model, power / (direct + 1.0)
        if place == 0:
            level += direct / (direct + 1.0)
        if direct > 0:
            share = direct / power if place == 0 else 0.0
            own = replace(model, fading_options={**model.fading_options, "k_factor": share})
        error = error_variance / (taps * level)
        cells.append(Cell(own, _of_tap(stream, place), error_variance=error, **rest))
        levels.append(level)
    return TappedCell(tuple(cells), np.sqrt(levels))


def _of_tap(stream: Streams, place: int) -> Streams:
    """Return the streams of a tap: places are those of all, fading is its own."""
    if place == 0:
        return stream

    def own(purpose: str, *keys: int) -> np.random.Generator:
        return stream(purpose, *keys, place) if purpose == "channel" else stream(purpose, *keys)

    return own
