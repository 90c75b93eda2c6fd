"""The keys of ``flwr run --run-config`` in the app's own words: the most used settings, plain.

Every other key goes into ``overrides``, as on the ``airflower`` command line.
"""

from __future__ import annotations

from collections.abc import Mapping

from schema import ConfigError
from server_app.settings.overrides import override, split

# Each key with what it sets. The first are groups of conf/, whose values are names of files there.
GROUPS = ("scheme", "dataset", "model", "partition", "training", "channel", "scheduler")
PLAIN = {
    **{name: name for name in GROUPS},
    "rounds": "rounds",
    "seed": "seed",
    "num-devices": "fleet.num_devices",
    "latency-threshold-ms": "radio.latency_threshold_ms",
    "num-selected": "air.num_selected",
    "snr-db": "air.snr_db",
    "evaluate-every": "evaluate_every",
}


def overrides_of(run_config: Mapping[str, object]) -> list[str]:
    """Return the Hydra overrides that a run-config stands for; an empty text leaves a key as it is.

    Raises:
        ConfigError: if a key is given plainly and once more in ``overrides``.
    """
    further = split(str(run_config.get("overrides", "")))
    named = {one.lstrip("+~").partition("=")[0] for one in further}
    found = []
    for name, key in PLAIN.items():
        value = run_config.get(name, "")
        if value == "":
            continue
        if key in named:
            raise ConfigError(
                f"run-config: {name} = {value} and {key} in overrides; say it in one of the two places only"
            )
        found.append(f"{key}={value}" if key in GROUPS else override(key, value))
    return [*found, *further]
