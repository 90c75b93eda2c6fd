"""What each device has: given for all, listed, drawn once per run, or read from a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.archives import write_file
from protocol.streams import generator
from radio.devices import Range, draw_values, read_devices
from radio.units import dbm_to_watt
from schema import ConfigError, declarations
from server_app.settings import Settings
from strategies.energy import Energy

FloatVector = npt.NDArray[np.float64]

FLEET = "fleet.csv"

# What may differ from device to device. The position is part of the key of its random stream: append only.
PER_DEVICE = (
    "cpu_hz",
    "cycles_per_weight",
    "cycles_per_weight_personal",
    "transmit_power_dbm",
    "energy_per_cycle_squared",
    "battery_j",
    "energy_budget_j",
    "cpu_min_hz",
    "cycles_per_multiply_add",
    "distance_m",
    "weight",
)


def device_values(settings: Settings) -> dict[str, FloatVector]:
    """Return what each device has, (K,) under the names of the keys of ``radio``; NaN where a key is null.

    Raises:
        ConfigError: naming the key, or the file with row and column, the value and what would be valid.
    """
    devices, radio = settings.fleet.num_devices, settings.radio
    kind: Any = type(radio)
    declared = declarations(kind)
    admissible = {name: Range(**declared[name].limits) for name in PER_DEVICE}
    found = {}
    for number, name in enumerate(PER_DEVICE):
        given = getattr(radio, name)
        if given is None:
            found[name] = np.full(devices, np.nan)
            continue
        rng = generator(settings.seed, "devices", number)
        try:
            found[name] = draw_values(f"radio.{name}", given, devices, rng, admissible[name])
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if radio.devices is not None:
        try:
            found.update(read_devices(Path(radio.devices).expanduser(), devices, admissible))
        except (OSError, ValueError) as error:
            raise ConfigError(f"radio.devices = {radio.devices}: {error}") from error
    slowest = found["cpu_min_hz"] > found["cpu_hz"]
    if slowest.any():
        device = int(np.argmax(slowest))
        raise ConfigError(
            f"radio.cpu_min_hz = {found['cpu_min_hz'][device]:g} is above "
            f"radio.cpu_hz = {found['cpu_hz'][device]:g} of device {device}"
        )
    return found


def device_energy(values: Mapping[str, FloatVector]) -> Energy:
    """Return what devices may spend, in SI units; `values` as of `device_values`."""

    def or_else(name: str, other: FloatVector | float) -> FloatVector:
        return np.where(np.isnan(values[name]), other, values[name])

    return Energy(
        capacitance=values["energy_per_cycle_squared"],
        frequency=values["cpu_hz"],
        min_frequency=or_else("cpu_min_hz", 1e-3 * values["cpu_hz"]),
        # One by one: the power of an array may differ from that of a number in its last bit.
        power=np.array([dbm_to_watt(float(power)) for power in values["transmit_power_dbm"]]),
        budget=or_else("energy_budget_j", np.inf),
        battery=or_else("battery_j", np.inf),
    )


def device_distances(values: Mapping[str, FloatVector]) -> tuple[float, ...] | None:
    """Return how far each device is from the server, m; None where that is left to the placement."""
    distances = values["distance_m"]
    return None if np.isnan(distances).any() else tuple(distances.tolist())


def device_weights(values: Mapping[str, FloatVector]) -> FloatVector | None:
    """Return the weights of the objective, (K,); None where all are 1."""
    weights = values["weight"]
    return None if bool((weights == 1.0).all()) else weights


def write_fleet(folder: Path, settings: Settings) -> None:
    """Record what each device has: ``fleet.csv``, one row per device, empty where a key is null."""
    values = device_values(settings)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["device", *values])
    for device in range(settings.fleet.num_devices):
        row = [float(column[device]) for column in values.values()]
        writer.writerow([device, *("" if np.isnan(value) else value for value in row)])
    write_file(folder / FLEET, text.getvalue().encode())
