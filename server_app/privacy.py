"""The privacy that a run has cost its devices, from its tables: a run that was continued counts as a whole.

The unit is a device: what is kept secret is its whole update, against one that is zero. Every release is a
Gaussian mechanism of noise multiplier z, the deviation of the noise over what a device can move; releases
with z_1, z_2, ... are together exactly one with 1 / z^2 = sum 1 / z_t^2 (Dong, Roth and Su 2022, corollary
3.3), whose epsilon `dp_accounting` tells.

What a release is:

- digital, `epsilon`: an upload, as the server sees it; z = `privacy.noise_multiplier`. Every upload that a
  device was asked for counts.
- digital, `epsilon_model`: the global part, as everybody else sees it. Where it is the plain mean, the noises
  of a weight's n contributors add up: z sqrt(n), with the least n of the round.
- over the air, `epsilon` (and the same `epsilon_model`): the received sum; z_t is the deviation of the
  receiver's noise over the largest share of a device times `privacy.clip_norm` (column `noise_multiplier`).

Losses, accuracies and numbers of samples that devices report are not part of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server_app.settings import Settings
from strategies.base import NOT_CONNECTED

Row = Mapping[str, str]

_MEANS = ("keepers_mean", "all_devices_mean")


def privacy_spent(settings: Settings, rounds: Sequence[Row], devices: Sequence[Row]) -> dict[str, Any]:
    """Return what ``summary.json`` says of it; nothing without `privacy.clip_norm`.

    Args:
        settings: of the run.
        rounds: rows of ``rounds.csv``.
        devices: rows of ``devices.csv``.
    """
    privacy = settings.privacy
    if privacy.clip_norm is None:
        return {}
    multipliers = {row["round"]: _multiplier(settings, row) for row in rounds}
    uploads = _composed(devices, lambda number: multipliers[number][0])
    model = _composed(devices, lambda number: multipliers[number][1])
    return {
        "privacy": {
            "epsilon": epsilon(uploads, privacy.delta),
            "epsilon_model": epsilon(model, privacy.delta),
            "delta": privacy.delta,
            "clip_norm": privacy.clip_norm,
            "noise_multiplier": uploads if math.isfinite(uploads) else None,
        }
    }


def epsilon(noise_multiplier: float, delta: float) -> float:
    """Return epsilon of one Gaussian mechanism, exactly (Balle and Wang 2018); 0 with infinite noise.

    Discretised privacy losses, as `PLDAccountant` has them, take minutes and gigabytes for little noise.
    """
    if math.isinf(noise_multiplier):
        return 0.0
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(noise_multiplier, delta))


def composed(multipliers: Sequence[float]) -> float:
    """Return the noise multiplier of one mechanism that stands for these together; infinite for none."""
    precision = sum(1.0 / z**2 for z in multipliers)
    return 1.0 / math.sqrt(precision) if precision else math.inf


def _multiplier(settings: Settings, row: Row) -> tuple[float, float]:
    """Return those of a round: of an upload, and of the global part."""
    if settings.scheme.uplink != "ofdma":
        z = float(row["noise_multiplier"]) if row.get("noise_multiplier") else math.inf
        return z, z
    z = settings.privacy.noise_multiplier
    plain = settings.scheme.aggregation in _MEANS and settings.scheme.weighting == "uniform"
    contributors = int(row.get("min_keepers") or 0)
    return z, z * math.sqrt(max(contributors, 1)) if plain else z


def _composed(devices: Sequence[Row], multiplier: Callable[[str], float]) -> float:
    """Return the noise multiplier of the device that has spent most."""
    spent_by: dict[str, list[float]] = defaultdict(list)
    for row in devices:
        if row["status"] and row.get("reason") != NOT_CONNECTED:
            spent_by[row["device"]].append(multiplier(row["round"]))
    return min((composed(releases) for releases in spent_by.values()), default=math.inf)
