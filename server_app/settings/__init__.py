"""The settings of a run: composed once, on the server, from ``conf/`` and what the user gives.

Each key is declared where it is used (`schema.key`), the tree is `server_app.settings.tree.Settings`. dB, dBm
and milliseconds appear only there and in ``conf/``: the rest of the code takes SI units (`schema.in_si`).
"""

from server_app.settings.compose import (
    compose_config,
    compose_settings,
    explained,
    search_own_configuration,
    settings_from_config,
)
from server_app.settings.tree import Settings, decides_nothing, flatten

__all__ = [
    "Settings",
    "compose_config",
    "compose_settings",
    "decides_nothing",
    "explained",
    "flatten",
    "search_own_configuration",
    "settings_from_config",
]
