"""Unlike devices: one number for all, one for each, a distribution drawn once, or a column of a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radio.arrays import FloatArray


@dataclass(frozen=True)
class Range:
    """The admissible numbers of a quantity: above `above`, from `minimum` to `maximum`."""

    minimum: float = -math.inf
    above: float = -math.inf
    maximum: float = math.inf

    def refuse(self, value: float, where: str) -> None:
        """Raise where a value does not lie in the range.

        Raises:
            ValueError: naming `where`, the value and the limit.
        """
        if not math.isfinite(value):
            raise ValueError(f"{where} = {value} is not a finite number")
        if value < self.minimum:
            raise ValueError(f"{where} = {value:g} is below its least value {self.minimum:g}")
        if value <= self.above:
            raise ValueError(f"{where} = {value:g} must be above {self.above:g}")
        if value > self.maximum:
            raise ValueError(f"{where} = {value:g} is above its greatest value {self.maximum:g}")


def draw_values(
    name: str,
    given: float | Sequence[float] | Mapping[str, Any],
    devices: int,
    rng: np.random.Generator,
    admissible: Range,
) -> FloatArray:
    """Return one number per device, (K,).

    Args:
        name: of the quantity, for messages.
        given: a number, K numbers, or one distribution: ``{uniform: [a, b]}``, ``{loguniform: [a, b]}``, or
            ``{choice: [..], p: [..]}`` (without p: equally likely).
        devices: K.
        rng: draws the distribution.
        admissible: limits of every number.

    Raises:
        ValueError: naming the quantity, the value and what would be valid.
    """
    if isinstance(given, Mapping):
        values = _drawn(name, given, devices, rng)
    elif isinstance(given, Sequence):
        if len(given) != devices:
            raise ValueError(f"{name} has {len(given)} numbers; fleet.num_devices = {devices} need one each")
        values = np.array(given, dtype=np.float64)
    else:
        values = np.full(devices, float(given))
    for device, value in enumerate(values.tolist()):
        admissible.refuse(value, name if not isinstance(given, Sequence) else f"{name}[{device}]")
    return values


def _drawn(name: str, given: Mapping[str, Any], devices: int, rng: np.random.Generator) -> FloatArray:
    chosen = [kind for kind in ("uniform", "loguniform", "choice") if kind in given]
    others = set(given) - {"uniform", "loguniform", "choice"} - ({"p"} if "choice" in given else set())
    if len(chosen) != 1 or others:
        raise ValueError(
            f"{name} = {dict(given)} is no distribution; valid: {{uniform: [a, b]}}, {{loguniform: [a, b]}}, "
            "{choice: [..], p: [..]}"
        )
    kind, values = chosen[0], given[chosen[0]]
    if kind == "uniform":
        low, high = _ends(name, kind, values)
        return np.asarray(rng.uniform(low, high, devices))
    if kind == "loguniform":
        low, high = _ends(name, kind, values, positive=True)
        return np.exp(rng.uniform(np.log(low), np.log(high), devices))
    numbers = np.array(_numbers(f"{name}.choice", values))
    return np.asarray(rng.choice(numbers, devices, p=_chances(name, values, given.get("p"))))


def _numbers(name: str, values: Any) -> list[float]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name} = {values!r} is not a list of numbers")
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} = {values!r} is not a list of numbers") from error


def _ends(name: str, kind: str, ends: Any, *, positive: bool = False) -> list[float]:
    low_high = _numbers(f"{name}.{kind}", ends)
    if len(low_high) != 2 or low_high[0] > low_high[1] or (positive and low_high[0] <= 0):
        least = " > 0" if positive else ""
        raise ValueError(f"{name}.{kind} = {ends!r} must be two numbers{least}, the smaller first")
    return low_high


def _chances(name: str, values: Any, chances: Any) -> list[float] | None:
    if chances is None:
        return None
    found = _numbers(f"{name}.p", chances)
    if len(found) != len(values) or min(found) < 0 or abs(sum(found) - 1) > 1e-9:
        raise ValueError(f"{name}.p = {chances!r} must be {len(values)} chances that sum to 1")
    return found


def read_devices(path: Path, devices: int, quantities: Mapping[str, Range]) -> dict[str, FloatArray]:
    """Return the columns of a file with one row per device, each (K,).

    Args:
        path: a CSV file whose header names quantities.
        devices: K.
        quantities: by the names that a column may have, their limits.

    Raises:
        ValueError: naming the file, the row (the header is row 1) and the column.
        OSError: if the file cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    if not rows:
        raise ValueError(f"{path} is empty; its first row names columns: {', '.join(quantities)}")
    header = [name.strip() for name in rows[0]]
    for column, name in enumerate(header, 1):
        if name not in quantities:
            valid = ", ".join(quantities)
            raise ValueError(f"{path}, row 1, column {column}: {name!r} is unknown; valid: {valid}")
        if header.count(name) > 1:
            raise ValueError(f"{path}, row 1: column {name} is there twice")
    body = [row for row in rows[1:] if any(cell.strip() for cell in row)]
    if len(body) != devices:
        raise ValueError(f"{path} has {len(body)} devices; fleet.num_devices = {devices} need a row each")
    found = {name: np.empty(devices) for name in header}
    for device, row in enumerate(body):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {device + 2} has {len(row)} columns; the header has {len(header)}")
        for name, cell in zip(header, row, strict=True):
            where = f"{path}, row {device + 2}, column {name}"
            try:
                value = float(cell)
            except ValueError as error:
                raise ValueError(f"{where} = {cell!r} is not a number") from error
            quantities[name].refuse(value, where)
            found[name][device] = value
    return found
