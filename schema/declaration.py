"""What is declared of a key, and what follows from it for a whole tree of settings."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Units that a key may name as they are: its value is the one that the code computes with.
SI_UNITS = (
    "Hz", "s", "m", "W", "J", "bit", "B",
    "cycles", "weights", "images", "rounds", "steps", "epochs", "samples",
)  # fmt: skip
LIMITS = ("minimum", "above", "maximum", "below")


@dataclass(frozen=True)
class Unit:
    """A unit of the configuration that the code does not compute in.

    Attributes:
        name: such as "dBm".
        si: the unit that the code computes in; "" for a plain ratio.
        to_si: converts a value.
    """

    name: str
    si: str
    to_si: Callable[[float], float]


@dataclass(frozen=True)
class Use:
    """A condition under which a key has an effect.

    Attributes:
        text: completes "is used only ...".
        holds: whether it is met by the whole tree of settings.
    """

    text: str
    holds: Callable[[Any], bool]

    def __and__(self, other: Use) -> Use:
        return Use(f"{self.text} and {other.text}", lambda s: self.holds(s) and other.holds(s))


@dataclass(frozen=True)
class Declaration:
    """What is declared of one key.

    Attributes:
        help: what it means, in a few words.
        hint: its type.
        unit: its unit, the name of an SI unit or a `Unit`; "" for a count, a ratio, a name.
        limits: admissible numbers by ``minimum``, ``above``, ``maximum``, ``below``.
        used: the condition under which it has an effect, or None.
        decides: whether it can change the records.
        path: whether it holds a path.
    """

    help: str
    hint: Any
    unit: str | Unit
    limits: Mapping[str, float]
    used: Use | None
    decides: bool
    path: bool

    @property
    def unit_name(self) -> str:
        """The unit as a user reads it."""
        return self.unit.name if isinstance(self.unit, Unit) else self.unit

    @property
    def suffix(self) -> str:
        """What the name of the key ends with: its unit in small letters, or nothing."""
        return f"_{self.unit_name.lower()}" if self.unit else ""

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have, where all of them can be listed."""
        hints = [hint for hint in _alternatives(self.hint) if hint is not type(None)]
        if any(typing.get_origin(hint) is not typing.Literal for hint in hints):
            return ()
        return tuple(value for hint in hints for value in typing.get_args(hint))

    @property
    def meaning(self) -> str:
        """What it means, with the values that it may have unless the text names them all."""
        words = re.findall(r"\w+", self.help)
        unnamed = any(str(value) not in words for value in self.choices)
        return f"{self.help}: {' | '.join(map(str, self.choices))}" if unnamed else self.help

    @property
    def open(self) -> bool:
        """Whether its entries are up to the chosen part, as those of ``model.options`` are."""
        return typing.get_origin(self.hint) is Mapping


def key(
    help: str,
    *,
    unit: str | Unit = "",
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    path: bool = False,
    used: Use | None = None,
    decides: bool = True,
    **default: Any,
) -> Any:
    """Declare one key of a group, as the default of a dataclass's field.

    Args:
        help: what it means, in a few words; ``airflower --help`` and the comments in ``conf/`` say it.
        unit: of its value; one of `SI_UNITS`, or a `Unit`.
        minimum, above, maximum, below: the admissible numbers.
        path: whether it holds a path.
        used: the condition under which it has an effect; None: always.
        decides: whether it can change the records; runs that differ in other keys alone have equal records,
            within the rounding that engine.batch_devices and engine.device document.
        default: ``default`` or ``default_factory`` of `dataclasses.field`, for groups that are also made
            without a configuration.

    Raises:
        ValueError: for a unit that is neither one of `SI_UNITS` nor a `Unit`.
    """
    if isinstance(unit, str) and unit and unit not in SI_UNITS:
        raise ValueError(f"{unit!r} is not one of {', '.join(SI_UNITS)}; others are a Unit, which converts")
    numbers = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    limits = {name: limit for name, limit in numbers.items() if limit is not None}
    facts = Declaration(help, None, unit, limits, used, decides, path)
    return dataclasses.field(metadata={"key": facts}, **default)


@functools.cache
def declarations(cls: Any) -> Mapping[str, Declaration]:
    """Return what is declared of every key of a tree of groups, by dotted name.

    Raises:
        TypeError: for a field that is neither a group nor declared by `key`.
    """
    found: dict[str, Declaration] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            for name, inner in declarations(typing.cast(Any, hint)).items():
                found[f"{field.name}.{name}"] = inner
        elif "key" not in field.metadata:
            raise TypeError(f"{cls.__name__}.{field.name} is not declared: {field.name}: ... = key(...)")
        else:
            found[field.name] = dataclasses.replace(field.metadata["key"], hint=hint)
    return found


def in_si(group: Any) -> dict[str, Any]:
    """Return the values of a group in SI units, under their names without the unit.

    ``latency_threshold_ms = 25.0`` becomes ``latency_threshold: 0.025``; a key without a unit stays as it is,
    and so do lists and groups.
    """
    values = {}
    cls: Any = type(group)
    for name, declared in declarations(cls).items():
        value, unit = getattr(group, name), declared.unit
        if isinstance(unit, Unit) and isinstance(value, int | float):
            value = float(unit.to_si(value))
        values[name.removesuffix(declared.suffix)] = value
    return values


@functools.cache
def decides_nothing(cls: Any, name: str) -> bool:
    """Return whether a key (or all of a group's keys) can change where or how a run is done, but no record.

    The only list of them: checkpoints, sweeps and reports ask here.
    """
    declared = declarations(cls)
    inside = [one for one in declared if f"{one}.".startswith(f"{name}.")]
    found = inside or [one for one in declared if name.startswith(f"{one}.")]
    return bool(found) and not any(declared[one].decides for one in found)


def path_keys(cls: Any) -> tuple[str, ...]:
    """Return the dotted keys that hold a path."""
    return tuple(name for name, declared in declarations(cls).items() if declared.path)


def open_keys(cls: Any) -> tuple[str, ...]:
    """Return the dotted keys whose entries are up to the chosen part, such as ``partition.options``."""
    return tuple(name for name, declared in declarations(cls).items() if declared.open)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)
