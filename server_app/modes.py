"""From settings to when a round closes and who takes part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schema import ConfigError
from strategies.modes import Mode, Overlapping, Synchronous
from strategies.selection import Selection
from strategies.settings import FleetSettings, SelectionSettings, ServerSettings
from strategies.wall_clock import WallClock


def round_mode(server: ServerSettings, fleet: FleetSettings, threshold: float, *, measured: bool) -> Mode:
    """Return when a round closes; `threshold` is that of its latency, in s."""
    if server.mode == "synchronous":
        return Synchronous(fleet.num_devices, fleet.devices_per_round)
    buffered = server.mode == "buffered"
    rule: dict[str, Any] = {
        "at_work": server.concurrency if buffered else fleet.devices_per_round,
        "threshold": threshold,
        "buffer": server.buffer if buffered else None,
        "exponent": server.staleness_exponent,
    }
    if measured:
        return WallClock(fleet.num_devices, timeout=fleet.round_timeout_s, **rule)
    return Overlapping(fleet.num_devices, **rule)


def selection(chosen: SelectionSettings, threshold: float, samples: Sequence[int]) -> Selection:
    """Return which devices take part, where not all do.

    Args:
        chosen: the policy.
        threshold: of a round's latency, s.
        samples: of each device, (K,).

    Raises:
        ConfigError: if the policy or an option is not valid.
    """
    try:
        return Selection(chosen.policy, chosen.options, samples=samples, threshold=threshold)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"selection: {error}") from error
