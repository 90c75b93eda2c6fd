"""From ``conf/`` and overrides to checked settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protocol.own_files import own_configuration
from registry import suggest
from schema import ConfigError, build
from schema.composing import HYDRA, composed
from server_app.settings.checks import check_together
from server_app.settings.effects import check_uses, given_keys
from server_app.settings.overrides import as_meant, remedy
from server_app.settings.tree import Settings, names_that_decide_nothing
from task.settings import own_personal

# conf/config.yaml keeps such keys out of the names of jobs.
OmegaConf.register_new_resolver("decides_nothing", names_that_decide_nothing, replace=True)
# conf/model/default.yaml: whoever changes model.name alone gets the personal part of that network.
OmegaConf.register_new_resolver("own_personal", own_personal, replace=True)

# `budget` (conf/size) only holds values that an experiment refers to.
_NOT_SETTINGS = ("hydra", "budget")


def settings_from_config(config: DictConfig) -> Settings:
    """Check a composed configuration and return it as settings.

    Raises:
        ConfigError: naming the key, the value and what would be valid.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {error.msg}") from error
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a group of keys")
    tree = {str(name): value for name, value in values.items() if name not in _NOT_SETTINGS}
    settings = build(Settings, tree)
    check_together(settings)
    return settings


def compose_settings(overrides: Sequence[str]) -> Settings:
    """Compose ``conf/`` with Hydra overrides and check the result.

    Not for use inside a Hydra job (Hydra's global state is then taken) nor in several threads at once.

    Raises:
        ConfigError: naming the key, the value and what would be valid.
    """
    settings = settings_from_config(compose_config(overrides))
    check_uses(settings, given_keys(list(overrides)))
    return settings


def search_own_configuration() -> None:
    """Have Hydra search ``conf/`` of the user's working directory, after the app's own."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnConfiguration(SearchPathPlugin):  # type: ignore[misc]
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if (folder := own_configuration()) is not None:
                search_path.append(provider="working directory", path=f"file://{folder}")

    known = Plugins.instance().discover(SearchPathPlugin)
    if not any(plugin.__name__ == OwnConfiguration.__name__ for plugin in known):
        Plugins.instance().register(OwnConfiguration)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose ``conf/`` with Hydra overrides, turning Hydra's errors into ones with the valid choices.

    Raises:
        ConfigError: for an override that cannot be parsed, an unknown key or an unknown choice.
    """
    given = as_meant(overrides)
    if own_configuration() is None and (found := composed("conf", given)) is not None:
        return found
    search_own_configuration()
    with initialize_config_module(version_base=HYDRA, config_module="conf"), explained():
        config: DictConfig = compose("config", overrides=given)
        return config


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error of Hydra or OmegaConf into one that names the key, the value and what would be valid.

    Raises:
        ConfigError: in place of theirs.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(str(error).split("\nConfig search path")[0].strip()) from error
    except OverrideParseException as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{error.override}: {first}; {remedy(error.override)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            parent, _, name = str(cause.full_key).rpartition(".")
            valid = _names_in(parent)
            if valid and name not in valid:
                raise ConfigError(f"unknown key {cause.full_key}; {suggest(name, valid)}") from error
        raise ConfigError(f"{getattr(error, 'override', '') or ''} {error}".strip()) from error


def _names_in(path: str) -> list[str]:
    """Return the names that a group of keys has in the default configuration."""
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        base = compose("config")
    else:
        with initialize_config_module(version_base=HYDRA, config_module="conf"):
            base = compose("config")
    node = OmegaConf.select(base, path) if path else base
    return [str(name) for name in node] if isinstance(node, DictConfig) else []
