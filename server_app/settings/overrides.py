"""Hydra overrides: how a value is written as one, and how one that a person typed is meant.

Hydra reads ``key=value`` with a grammar of its own, in which commas, braces, equals signs, blanks and letters
beyond ASCII mean something or are not allowed. `override` writes any value so that Hydra reads the same value
again; all of the project's own overrides come from it. `as_meant` is for what people type: a path may be
typed as it is, and an option of a part that can be exchanged needs no ``+``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from schema import open_keys, path_keys
from schema.composing import is_group
from server_app.settings.tree import Settings

# A text that is itself without quotes. Everything else is quoted: too often costs two characters.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./*-]*")
_KEYWORDS = frozenset({"null", "true", "false", "inf", "nan"})
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def override(key: str, value: object) -> str:
    """Return the Hydra override that sets `key` to exactly `value`.

    Args:
        key: dotted; an option of an open group (`open_groups`) gets the ``++`` that Hydra wants there.
        value: None, a truth value, number or text, or lists and mappings of these.

    Raises:
        ValueError: for a value or a name in a mapping that Hydra's grammar cannot express.
    """
    return f"{_opened(key)}={_written(value)}"


def _written(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _KEYWORDS
        return value if plain else _quoted(_without_interpolation(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_name(name)}:{_written(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "[" + ",".join(map(_written, value)) + "]"
    raise ValueError(f"{value!r} is a {type(value).__name__}, which no override can hold")


def _name(name: object) -> str:
    # Hydra's grammar has no quotes here, and reads 1, 1e3 or true as what they look like.
    if not isinstance(name, str) or not _PLAIN_KEY.fullmatch(name) or name.lower() in _KEYWORDS:
        raise ValueError(f"{name!r} cannot be a name inside {{...}} of an override; set it in a yaml file")
    return name


def _quoted(text: str) -> str:
    """Quote a text as Hydra wants it: backslashes count only before a quote and at the end."""
    text = re.sub(r"(\\*)'", lambda found: 2 * found[1] + r"\'", text)
    return "'" + re.sub(r"\\+\Z", lambda found: 2 * found[0], text) + "'"


def _without_interpolation(text: str) -> str:
    """Escape ``${``, which OmegaConf would otherwise replace by another value."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


@cache
def open_groups() -> tuple[str, ...]:
    """Return the keys whose entries the chosen part defines, such as ``partition.options``."""
    return open_keys(Settings)


@cache
def _paths() -> tuple[str, ...]:
    """Return the keys that hold a path, Hydra's own among them."""
    return (*path_keys(Settings), "hydra.run.dir", "hydra.sweep.dir")


def as_meant(overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Return overrides as Hydra has to be given them.

    A path that Hydra would read as something else, or not at all, is quoted: names of job folders hold commas
    and equals signs, names of folders anything. What could be several values is left to a `sweep`, unless a
    file of just this name is there. Overrides that are right already come back unchanged.
    """
    return [_as_meant(given, sweep) for given in overrides]


def _as_meant(given: str, sweep: bool) -> str:
    key, equals, text = given.partition("=")
    if not equals:
        return given
    if key.lstrip("+") in _paths():
        return f"{key}={_path(key, text, sweep)}"
    if is_group("conf", key):
        return f"{key}={','.join(map(_choice, text.split(',')))}"
    return f"{_opened(key)}={text}"


def _choice(text: str) -> str:
    """Quote a number or truth value, which Hydra would not even look for among the names of a group."""
    return f"'{text}'" if re.fullmatch(r"[-+]?\.?\d[\w.+-]*|true|false", text, re.IGNORECASE) else text


def _opened(key: str) -> str:
    """Return the key with the ``++`` that an open group, as a whole, and what is in it need."""
    inside = f"{key}.".startswith(tuple(f"{group}." for group in open_groups()))
    return f"++{key}" if inside else key  # one that starts with + or ~ is inside of none


def _path(key: str, text: str, sweep: bool) -> str:
    """Return how Hydra reads this text as a path."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    there = bool(text) and _exists(text)
    literal = _quoted(_without_interpolation(text) if there else text)
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        return literal
    if parsed.is_sweep_override():
        return text if sweep and not there else literal
    value: Any = parsed._value
    if value is None or isinstance(value, QuotedString):
        return text
    if isinstance(value, str):
        read_alike = value == text and "${" not in text
        return literal if there and not read_alike else text
    return literal


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no home
        return False


def remedy(given: str) -> str:
    """Return a sentence that shows how the text of an override that cannot be read is quoted, for a shell."""
    key, equals, text = given.partition("=")
    if not equals:
        return "an override is key=value"
    return f"a text with such characters is quoted: {shlex.quote(f'{key}={_quoted(text)}')}"


def joined(overrides: Sequence[str]) -> str:
    """Return overrides as one text, for a place that holds one; `split` takes it apart again."""
    return shlex.join(overrides)


def split(text: str) -> list[str]:
    """Return the overrides in a text, parted as a shell parts them.

    Raises:
        ValueError: if a quote is not closed.
    """
    return shlex.split(text)
