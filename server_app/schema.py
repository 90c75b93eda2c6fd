"""From a configuration tree to frozen dataclasses, with errors that name the key, the value and the limit.

A settings dataclass states the type of each key by its annotation and the admissible values by
`key(...)`. There are no defaults here: the values live in ``conf/``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration cannot be used; the text says which key, which value and what would do."""


def key(
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    path: bool = False,
    used: Any = None,
    decides: bool = True,
) -> Any:
    """Declare one key of a settings dataclass.

    Args:
        minimum, above, maximum: the admissible numbers.
        path: whether it holds a path.
        used: the condition under which it has an effect (`server_app.uses.Use`); None: always.
        decides: whether it can change the records; runs that differ in other keys alone have equal records,
            within the rounding that engine.batch_devices and engine.device document.
    """
    facts = {"minimum": minimum, "above": above, "maximum": maximum, "path": path or None, "used": used}
    given = {name: fact for name, fact in facts.items() if fact is not None}
    return dataclasses.field(metadata={**given, "decides": decides})


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What is declared of one key.

    Attributes:
        hint: its type.
        limits: admissible numbers by ``minimum``, ``above``, ``maximum``.
        used: the condition under which it has an effect, or None.
        decides: whether it can change the records.
    """

    hint: Any
    limits: Mapping[str, float]
    used: Any
    decides: bool


@functools.cache
def declarations(cls: Any) -> Mapping[str, Declaration]:
    """Return what is declared of every key of a settings tree, by dotted name."""
    found: dict[str, Declaration] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, facts = hints[field.name], field.metadata
        further = facts.get("fields", {})  # of a dataclass that is declared elsewhere and knows no settings
        if dataclasses.is_dataclass(hint):
            for name, inner in declarations(typing.cast(Any, hint)).items():
                used, decides = further.get(name, (inner.used, inner.decides))
                found[f"{field.name}.{name}"] = dataclasses.replace(inner, used=used, decides=decides)
        else:
            limits = {name: facts[name] for name in ("minimum", "above", "maximum") if name in facts}
            found[field.name] = Declaration(hint, limits, facts.get("used"), facts.get("decides", True))
    return found


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
        value = _convert(hints[name], values[name], full)
        if value is not None and not isinstance(value, str):
            _check(value, field.metadata, full)
        arguments[name] = value
    try:
        return cls(**arguments)
    except ValueError as error:  # a dataclass may check itself; it does not know its path
        raise ConfigError(f"{path}.{error}" if path else str(error)) from error


def suggest(name: str, valid: Sequence[str]) -> str:
    """Return a phrase that proposes the closest of the valid names, then lists them all."""
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid here: {', '.join(sorted(valid))}"


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None:
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
            return _convert(options[0], value, path)
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
