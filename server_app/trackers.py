"""Optional trackers: the metrics of every round, also in a tool that people already watch.

``tracker=tensorboard`` writes an events file into the run folder. The format is a few lines, so that
nothing need be installed for writing (reading it is TensorBoard's part). ``tracker=mlflow`` logs to MLflow
(extra ``mlflow``). Both are off by default; the CSV records are written in any case.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from server_app.schema import ConfigError
from server_app.settings import Settings, flatten
from strategies.records import Value


class Tracker(Protocol):
    """Takes the numbers of each round."""

    def record(self, server_round: int, values: Mapping[str, Value]) -> None:
        """Take one round; what is not a number is left out."""
        ...


class NoTracker:
    """The default: nothing beside the CSV records."""

    def record(self, server_round: int, values: Mapping[str, Value]) -> None:
        """Do nothing."""


@contextmanager
def open_tracker(settings: Settings, folder: Path) -> Iterator[Tracker]:
    """Open the tracker that the settings name, and close it when the run ends, well or not.

    Raises:
        ConfigError: if its package is not installed.
    """
    if settings.tracker.name == "tensorboard":
        path = folder / f"events.out.tfevents.{int(time.time())}.airflower"
        with path.open("wb") as file:
            yield EventsFile(file)
    elif settings.tracker.name == "mlflow":
        with _mlflow(settings, folder) as tracker:
            yield tracker
    else:
        yield NoTracker()


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Return the values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


# TensorBoard -----------------------------------------------------------------------------------


class EventsFile:
    """Scalars in TensorBoard's events format.

    A file is a sequence of records: length (uint64), masked CRC-32C of the length, data, masked CRC-32C
    of the data, little-endian. Each datum is a protocol-buffer message ``Event``.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write(_message(1, struct.pack("<d", time.time())) + _text(3, b"brain.Event:2"))

    def record(self, server_round: int, values: Mapping[str, Value]) -> None:
        """Append one event that holds the numbers of the round."""
        summary = b"".join(
            _text(1, _text(1, _tag(name).encode()) + _message(2, struct.pack("<f", value)))
            for name, value in numbers(values).items()
        )
        self._write(
            _message(1, struct.pack("<d", time.time()))
            + _varint(2 << 3)
            + _varint(server_round)
            + _text(5, summary)
        )
        self._file.flush()

    def _write(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))


def _tag(name: str) -> str:
    """Group the charts: what this machine took apart from what was learned or emulated."""
    return f"measured/{name.removeprefix('measured_')}" if name.startswith("measured_") else f"round/{name}"


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _message(number: int, packed: bytes) -> bytes:
    """Encode a fixed-width field (8 bytes: wire type 1, 4 bytes: wire type 5)."""
    return _varint(number << 3 | (1 if len(packed) == 8 else 5)) + packed


def _text(number: int, data: bytes) -> bytes:
    """Encode a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of the data."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# MLflow ----------------------------------------------------------------------------------------


class _Mlflow:
    def __init__(self, module: Any) -> None:
        self._module = module

    def record(self, server_round: int, values: Mapping[str, Value]) -> None:
        self._module.log_metrics(numbers(values), step=server_round)


@contextmanager
def _mlflow(settings: Settings, folder: Path) -> Iterator[Tracker]:
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError(
            "tracker = mlflow: the package is not installed; pip install 'airflower[mlflow]'"
        ) from error
    mlflow.set_experiment(str(settings.report.get("name", "airflower")))
    with mlflow.start_run(run_name=folder.name):
        mlflow.log_params(flatten(settings.to_dict()))
        yield _Mlflow(mlflow)
