"""Reads the entries of Flower's records, which may come from anybody, and says what is wrong with one."""

from __future__ import annotations

import math
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict


class MessageError(ValueError):
    """A message lacks a record or a key, or holds a value of the wrong type."""


_Record = TypeVar("_Record", ArrayRecord, ConfigRecord, MetricRecord)


def record_of(records: RecordDict, key: str, kind: type[_Record]) -> _Record:
    """Return a record of a message.

    Raises:
        MessageError: if it is absent or of another kind.
    """
    record = records.get(key)
    if not isinstance(record, kind):
        raise MessageError(f"the message lacks the {kind.__name__} {key!r}")
    return record


_Value = TypeVar("_Value", int, str, float, bytes)


def whole_number(record: MetricRecord, key: str) -> int:
    """Return a whole number that a device reports.

    Raises:
        MessageError: if it is absent or of another type.
    """
    return value_of(record, key, int)


def real_number(record: MetricRecord, key: str) -> float:
    """Return a number that a device reports, which may be infinite or NaN.

    Raises:
        MessageError: if it is absent or of another type.
    """
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MessageError(f"{key!r} in the message is {value!r}; a number is expected")
    return as_float(value)


def as_float(value: object) -> float:
    """Return a reported number as float; NaN for what is none, or a whole number too large for one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def value_of(record: ConfigRecord | MetricRecord, key: str, kind: type[_Value]) -> _Value:
    """Return an entry of a record.

    Raises:
        MessageError: if it is absent or of another type.
    """
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MessageError(f"{key!r} in the message is {value!r}; {kind.__name__} is expected")
    return value
