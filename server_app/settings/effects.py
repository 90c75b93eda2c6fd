"""A key that the user sets and that has no effect in this job is an error, before anything runs.

When a key has an effect is declared with it (`schema.key`); here is what follows for what a user gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from schema import ConfigError, declarations
from schema.uses import TRAINING

if TYPE_CHECKING:
    from server_app.settings.tree import Settings


def check_uses(settings: Settings, given: Mapping[str, str]) -> None:
    """Refuse keys without effect; arguments as in `without_effect`.

    Raises:
        ConfigError: naming the key, the value and what would use it.
    """
    for text in without_effect(settings, given).values():
        raise ConfigError(text)


def without_effect(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """Return the keys that this job does not use, each with a text that says what would use it.

    Args:
        settings: the checked settings.
        given: what the user set: values by dotted key. A key set to null says nothing and passes.
    """
    idle: dict[str, str] = {}
    tree: Any = type(settings)
    found = declarations(tree)
    for name, value in given.items():
        declared = next((found[key] for key in _and_parents(name) if key in found), None)
        use = declared.used if declared else None
        if use is None or value.strip() in ("null", "None", "~", "") or use.holds(settings):
            continue
        if settings.study.name is not None and not use.text.startswith(TRAINING.text):
            # What a study looks at is its own matter: one of schedules needs no scheme over the air.
            continue
        idle[name] = (
            f"{name} = {value} has no effect here: it is used only {use.text}; this job has "
            f"scheme.name = {settings.scheme.name}, scheme.uplink = {settings.scheme.uplink}, "
            f"scheme.allocation = {settings.scheme.allocation}, channel.source = {settings.channel.source}; "
            "leave it out"
        )
    return idle


def _and_parents(name: str) -> list[str]:
    """Return a dotted key and the groups that it is in, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def given_keys(overrides: list[str]) -> dict[str, str]:
    """Return the keys that Hydra overrides set, with their values; choices of groups are not keys."""
    found = {}
    for override in overrides:
        name, equals, value = override.lstrip("+").partition("=")
        if equals and not name.startswith("~") and "/" not in name and "@" not in name:
            found[name] = value
    return found
