"""From settings to when a round closes and who takes part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schema import ConfigError, in_si
from server_app.settings import Settings
from strategies.modes import Mode, Overlapping, Synchronous
from strategies.selection import Selection
from strategies.wall_clock import WallClock


def round_mode(settings: Settings) -> Mode:
    """Return when a round closes."""
    server, fleet = settings.server, settings.fleet
    if server.mode == "synchronous":
        return Synchronous(fleet.num_devices, fleet.devices_per_round)
    buffered = server.mode == "buffered"
    rule: dict[str, Any] = {
        "at_work": server.concurrency if buffered else fleet.devices_per_round,
        "threshold": in_si(settings.radio)["latency_threshold"],
        "buffer": server.buffer if buffered else None,
        "exponent": server.staleness_exponent,
    }
    if settings.channel.source == "measured":
        return WallClock(fleet.num_devices, timeout=fleet.round_timeout_s, **rule)
    return Overlapping(fleet.num_devices, **rule)


def selection(settings: Settings, samples: Sequence[int]) -> Selection:
    """Return which devices take part, where not all do; `samples` are those of each device, (K,).

    Raises:
        ConfigError: if the policy or an option is not valid.
    """
    chosen = settings.selection
    threshold = in_si(settings.radio)["latency_threshold"]
    try:
        return Selection(chosen.policy, chosen.options, samples=samples, threshold=threshold)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"selection: {error}") from error
