"""Settings declared where they are used: `key` states all about one key, a frozen dataclass makes a group.

A group stands in the package that it configures, and knows nothing of files or command lines::

    @dataclass(frozen=True, kw_only=True)
    class RadioSettings:
        bandwidth_hz: float = key("uplink band, shared by all devices", unit="Hz", above=0, used=EMULATED)

The type of a key is its annotation. `server_app.settings` puts the groups together, and ``conf/`` holds
the values.
"""

from schema.build import ConfigError, build, checked
from schema.declaration import (
    SI_UNITS,
    Declaration,
    Unit,
    Use,
    decides_nothing,
    declarations,
    in_si,
    key,
    open_keys,
    path_keys,
)

__all__ = [
    "SI_UNITS",
    "ConfigError",
    "Declaration",
    "Unit",
    "Use",
    "build",
    "checked",
    "decides_nothing",
    "declarations",
    "in_si",
    "key",
    "open_keys",
    "path_keys",
]
