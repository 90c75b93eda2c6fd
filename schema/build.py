"""From nested values to frozen dataclasses, with errors that name the key, the value and the limit."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from registry import suggest

T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration cannot be used; the text says which key, which value and what would do."""


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build the dataclass `cls` from nested mappings.

    Args:
        cls: a dataclass; nested dataclasses are built from nested mappings.
        values: plain Python values, as from `OmegaConf.to_container`.
        path: configuration key of `values`, for error messages.

    Raises:
        ConfigError: for an unknown or absent key, a value of the wrong type or beyond its limits.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} = {values!r} is not a group of keys")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(f"unknown key {_join(path, name)}; {suggest(str(name), list(fields))}")
    arguments = {}
    for name, field in fields.items():
        full = _join(path, name)
        if name not in values:
            raise ConfigError(f"{full} is not set")
        arguments[name] = _admitted(hints[name], values[name], field, full)
    try:
        return cls(**arguments)
    except ValueError as error:  # a dataclass may check itself; it does not know its path
        raise ConfigError(f"{path}.{error}" if path else str(error)) from error


def checked(group: Any) -> None:
    """Check a group that was made without `build`, as its ``__post_init__`` may.

    Raises:
        ConfigError: for a value of the wrong type or beyond its limits.
    """
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        _admitted(hints[field.name], getattr(group, field.name), field, field.name)


def _admitted(hint: Any, value: Any, field: dataclasses.Field[Any], path: str) -> Any:
    value = _convert(hint, value, path)
    if "key" in field.metadata:
        each = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for index, one in each:
            if isinstance(one, int | float):
                place = path if index is None else f"{path}[{index}]"
                _check(one, field.metadata["key"].limits, place)
    return value


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and type(None) in typing.get_args(hint):
            return None
        words = [
            word
            for option in options
            if typing.get_origin(option) is typing.Literal
            for word in typing.get_args(option)
        ]
        if value in words:
            return value
        try:
            return _convert(_fitting(options, value), value, path)
        except ConfigError as error:
            raise ConfigError(f"{error}; also valid: {', '.join(words)}" if words else str(error)) from error
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            valid = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"{path} = {value!r} is not one of: {valid}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{path} = {value!r} is not a list")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, entry, f"{path}[{i}]") for i, entry in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} = {value!r} is not a group of keys")
        return dict(value)
    return _scalar(hint, value, path)


def _fitting(options: Sequence[Any], value: Any) -> Any:
    """Return the alternative that is a list or a group as the value is; else the first."""
    for kind, origin in ((Mapping, Mapping), (list, tuple), (tuple, tuple)):
        if isinstance(value, kind):
            return next((option for option in options if typing.get_origin(option) is origin), options[0])
    return options[0]


def _scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r} is not a finite number")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ConfigError(f"{path} = {value!r} is not {names.get(hint, hint.__name__)}")
    return value


def _check(value: Any, limits: Mapping[str, Any], path: str) -> None:
    if "minimum" in limits and value < limits["minimum"]:
        raise ConfigError(f"{path} = {value!r} is below its least value {limits['minimum']:g}")
    if "above" in limits and value <= limits["above"]:
        raise ConfigError(f"{path} = {value!r} must be above {limits['above']:g}")
    if "maximum" in limits and value > limits["maximum"]:
        raise ConfigError(f"{path} = {value!r} is above its greatest value {limits['maximum']:g}")
    if "below" in limits and value >= limits["below"]:
        raise ConfigError(f"{path} = {value!r} must be below {limits['below']:g}")
