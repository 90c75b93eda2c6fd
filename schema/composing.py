"""Configurations that differ in a few values, composed from what Hydra made of the same choice of files.

Hydra reads some thirty files for a configuration, which takes 0.2 s. The jobs that `airflower.sweep` composes
one by one mostly share them, and so do those of the tests: their values are set as Hydra sets them, in 1 ms.
Whatever is more than a choice of files or a value, and whatever goes wrong, is left to Hydra itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

HYDRA = "1.3"  # whose rules of composition hold


def composed(module: str, overrides: Sequence[str]) -> DictConfig | None:
    """Return what Hydra composes from a package of yaml files, or None if Hydra itself has to be asked.

    Args:
        module: the package, with a ``config.yaml``.
        overrides: as Hydra takes them; ``group=choice``, ``key=value`` and ``++key=value`` are known here.
    """
    try:
        parsed = [_parsed(text) for text in overrides]
        if any(map(_is_special, parsed)):
            return None
        chosen = [is_group(module, one.key_or_group) for one in parsed]
        choices = tuple(text for text, is_choice in zip(overrides, chosen, strict=True) if is_choice)
        config: DictConfig = pickle.loads(_of_files(module, choices))
        for one, is_choice in zip(parsed, chosen, strict=True):
            if not is_choice:
                OmegaConf.update(
                    config, one.key_or_group, one.value(), merge=True, force_add=one.is_force_add()
                )
    except (HydraException, OmegaConfBaseException):
        return None
    return config


def _is_special(one: Override) -> bool:
    known = one.type is not None and (one.type.name == "CHANGE" or one.is_force_add())
    return (
        not known
        or one.is_sweep_override()
        or one.package is not None
        or one.key_or_group.startswith("hydra")
    )


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def is_group(module: str, key: str) -> bool:
    """Return whether files are chosen by this key: whether the package has a folder of that name."""
    return key in _groups(module)


@cache
def _groups(module: str, inside: str = "") -> frozenset[str]:
    folder = files(module).joinpath(*filter(None, inside.split("/")))
    found = [f"{inside}/{one.name}".lstrip("/") for one in folder.iterdir() if one.is_dir()]
    return frozenset(found).union(*(_groups(module, one) for one in found))


@lru_cache(maxsize=256)
def _of_files(module: str, choices: tuple[str, ...]) -> bytes:
    with initialize_config_module(version_base=HYDRA, config_module=module):
        return pickle.dumps(compose("config", overrides=list(choices)))
