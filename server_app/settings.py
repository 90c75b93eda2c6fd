"""The settings of a run: one tree of frozen dataclasses, composed once, on the server.

The values and their explanations are in ``conf/``; this module holds their types and limits. dB, dBm
and milliseconds appear only here and in ``conf/``: the rest of the code takes SI units.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protocol.own_files import own_configuration
from protocol.training import TrainingSpec
from server_app.overrides import as_meant, remedy
from server_app.schema import ConfigError, build, declarations, key, suggest
from server_app.uses import (
    AIR,
    COMMON_MASK,
    DENSE_AIR,
    DIGITAL,
    EMULATED,
    FIXED_RATIO,
    GLOBAL_STEPS,
    INFEASIBLE,
    MEASURED,
    MLFLOW,
    NORM_LIMIT,
    NOT_PRUNED_AIR,
    OFDMA,
    OWN_MASKS,
    PERSONAL,
    PERSONAL_PHASE,
    PERSONAL_STEPS,
    PERSONALIZATION,
    PLACES,
    PROBE,
    PRUNED_AIR,
    PRUNING,
    RATIO_LIMIT,
    STUDY,
    TRAINING,
    check_uses,
    given_keys,
)


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """The devices, and when a round closes."""

    num_devices: int = key(minimum=1)
    devices_per_round: int | None = key(minimum=1, used=TRAINING)
    start_timeout_s: float = key(above=0, used=TRAINING, decides=False)
    min_devices: int | None = key(minimum=1, used=TRAINING, decides=False)
    round_timeout_s: float = key(above=0, used=TRAINING, decides=False)
    min_replies: int = key(minimum=1, used=TRAINING)
    upload_norm_limit: float | Literal["auto"] | None = key(above=0, used=TRAINING)
    upload_norm_action: Literal["reject", "clip"] = key(used=TRAINING & NORM_LIMIT)
    max_own_images: int | None = key(minimum=1, used=TRAINING)
    max_failed_rounds: int = key(minimum=1, used=TRAINING, decides=False)
    divergence_loss: float = key(above=0, used=TRAINING)
    evaluate: Literal["all", "participants"] = key(used=TRAINING)
    identity: Literal["key", "index"] = key(used=TRAINING, decides=False)
    roster: str | None = key(path=True, used=TRAINING, decides=False)


@dataclass(frozen=True, kw_only=True)
class RadioSettings:
    """Link budget, compute model and round budget of the OFDMA uplink."""

    bandwidth_hz: float = key(above=0, used=EMULATED)
    transmit_power_dbm: float = key(minimum=-100, maximum=100, used=OFDMA)
    noise_power_dbm: float = key(minimum=-300, maximum=100, used=OFDMA)
    latency_threshold_ms: float = key(above=0)
    noise_model: Literal["fixed", "proportional"] = key(used=OFDMA)
    bits_per_weight: Literal[32, 16, 8] = key(used=DIGITAL)
    cpu_hz: float = key(above=0, used=EMULATED)
    cycles_per_weight: float = key(minimum=0, used=EMULATED)
    cycles_per_weight_personal: float = key(minimum=0, used=EMULATED & PERSONAL)
    include_importance_cost: bool = key(used=EMULATED)
    charge_mask_bits: bool = key(used=OFDMA)
    max_pruning_ratio: float = key(above=0, maximum=1, used=RATIO_LIMIT)
    when_infeasible: Literal["relax", "drop"] = key(used=INFEASIBLE)


@dataclass(frozen=True, kw_only=True)
class MeasuredSettings:
    """How compute and uplink of real nodes are measured (channel.source = measured)."""

    window: int = key(minimum=1, used=MEASURED)
    margin: float = key(above=0, maximum=1, used=MEASURED)
    initial_pruning_ratio: float = key(minimum=0, maximum=1, used=MEASURED)
    probe: bool = key(used=MEASURED)
    probe_bytes: int = key(minimum=65536, maximum=67108864, used=PROBE)
    probe_host: str = key(used=PROBE, decides=False)
    probe_port: int = key(minimum=0, maximum=65535, used=PROBE, decides=False)
    probe_address: str | None = key(used=PROBE, decides=False)


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """Where the radio comes from; places and fading of the devices of an emulated one."""

    source: Literal["emulated", "measured"] = key()
    antennas: int = key(minimum=1, used=OFDMA)
    fading: Literal["rayleigh", "none"] = key(used=EMULATED)
    placement: Literal["rings", "random"] = key(used=PLACES)
    cell_radius_m: float = key(above=0, used=PLACES)
    min_distance_m: float = key(above=0, used=PLACES)
    path_loss_intercept_db: float = key(used=OFDMA)
    path_loss_slope_db: float = key(above=0, used=PLACES)
    shadowing_std_db: float = key(minimum=0, used=PLACES)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network and which of its parameters are personal."""

    name: str = key()
    options: Mapping[str, Any] = key()
    personal: tuple[str, ...] = key(used=PERSONALIZATION)


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """The images."""

    name: str = key()
    root: str | None = key(path=True, decides=False)
    download: bool = key(decides=False)


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """Which device holds which images."""

    name: str = key()
    options: Mapping[str, Any] = key()
    samples_per_device: int | None = key(minimum=1)
    test_samples_per_device: int | None = key(minimum=1)


@dataclass(frozen=True, kw_only=True)
class SchemeSettings:
    """How a round is planned and how uploads become the next global part."""

    name: str = key()
    uplink: Literal["ofdma", "over_the_air", "over_the_air_pruned"] = key()
    allocation: str = key(used=OFDMA)
    pruning_ratio: float | None = key(minimum=0, maximum=1, used=FIXED_RATIO)
    personalization: bool = key()
    weighting: Literal["uniform", "samples"] = key(used=NOT_PRUNED_AIR)


@dataclass(frozen=True, kw_only=True)
class AirSettings:
    """The analog uplink of the over-the-air schemes."""

    num_selected: int = key(minimum=1, used=AIR)
    antennas: int = key(minimum=1, used=AIR)
    snr_db: float = key(minimum=-200, maximum=300, used=AIR)
    noise: bool = key(used=AIR)
    path_loss: bool = key(used=AIR)
    normalization: Literal["per_user", "common"] = key(used=DENSE_AIR)
    packing: Literal["iq", "real"] = key(used=AIR)
    payload: Literal["delta", "model"] = key(used=DENSE_AIR)
    channel_error_variance: float = key(minimum=0, used=AIR)
    recompute_beam: bool = key(used=DENSE_AIR)
    certificate: bool = key(used=AIR)
    server_learning_rate: float = key(above=0, used=AIR)
    count_mode: Literal["bitmap", "common_mask", "count_free"] = key(used=PRUNED_AIR)
    shrinkage: Literal["off", "moment"] = key(used=PRUNED_AIR)
    explore: float = key(minimum=0, maximum=1, used=PRUNED_AIR & COMMON_MASK)
    min_count: int = key(minimum=1, used=PRUNED_AIR & OWN_MASKS)


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """Who sends over the air, and with which receive beam."""

    method: str = key(used=AIR)
    beamformer: str = key(used=AIR)
    options: Mapping[str, Any] = key(used=AIR)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What runs the devices."""

    name: Literal["inprocess", "flower", "ray"] = key(decides=False)
    workers: int | None = key(minimum=1, decides=False)
    state_memory_mib: float = key(minimum=0, decides=False)
    batch_devices: int = key(minimum=1, decides=False)
    device: Literal["cpu", "cuda"] = key(decides=False)


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A job that trains nothing."""

    name: str | None = key()
    draws: int = key(minimum=1, used=STUDY)


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """Where metrics go beside the CSV records."""

    name: Literal["none", "tensorboard", "mlflow"] = key(decides=False)
    database: str | None = key(path=True, used=MLFLOW, decides=False)


# `TrainingSpec` is what devices are told; when its keys have an effect only the server knows.
_TRAINING = {
    "personal_steps": (PERSONAL_STEPS, True),
    "personal_epochs": (PERSONAL_PHASE, True),
    "personal_learning_rate": (PERSONAL, True),
    "global_steps": (GLOBAL_STEPS, True),
    "importance": (PRUNING, True),
    "prune_bias": (PRUNING, True),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run."""

    seed: int = key(minimum=0)
    rounds: int = key(minimum=1, used=TRAINING)
    evaluate_every: int = key(minimum=1, used=TRAINING)
    checkpoint_every: int = key(minimum=0, used=TRAINING, decides=False)
    resume: str | None = key(path=True, used=TRAINING, decides=False)
    fleet: FleetSettings
    radio: RadioSettings
    channel: ChannelSettings
    measured: MeasuredSettings
    model: ModelSettings
    dataset: DatasetSettings
    partition: PartitionSettings
    training: TrainingSpec = dataclasses.field(metadata={"fields": _TRAINING})
    scheme: SchemeSettings
    air: AirSettings
    scheduler: SchedulerSettings
    engine: EngineSettings
    study: StudySettings
    tracker: TrackerSettings
    report: Mapping[str, Any] = key(decides=False)  # how airflower-report draws the runs

    @property
    def personal_patterns(self) -> tuple[str, ...]:
        """Glob patterns of the personal parameters under this scheme."""
        return self.model.personal if self.scheme.personalization else ()

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as in the configuration files."""
        return dataclasses.asdict(self)


def keys_of_kind(kind: Literal["path", "open"], cls: type = Settings, path: str = "") -> tuple[str, ...]:
    """Return the dotted keys that hold a path, or whose entries are up to the chosen part ("open")."""
    hints, found = get_type_hints(cls), list[str]()
    for field in dataclasses.fields(cls):
        full, hint = f"{path}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += keys_of_kind(kind, cast(type, hint), f"{full}.")
        elif "path" in field.metadata if kind == "path" else get_origin(hint) is Mapping:
            found.append(full)
    return tuple(found)


@functools.cache
def decides_nothing(name: str) -> bool:
    """Return whether a key (or all of a group's keys) can change where or how a run is done, but no record.

    The only list of them: checkpoints, sweeps and reports ask here.
    """
    declared = declarations(Settings)
    found = [
        key for key in declared if key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.")
    ]
    return bool(found) and not any(declared[key].decides for key in found)


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
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    """Check what involves more than one key."""
    fleet, channel, scheme, engine = settings.fleet, settings.channel, settings.scheme, settings.engine
    if engine.name != "inprocess" and (engine.batch_devices > 1 or engine.device != "cpu"):
        raise ConfigError(
            f"engine.batch_devices = {engine.batch_devices}, engine.device = {engine.device} with "
            f"engine.name = {engine.name}; only engine=inprocess trains devices together"
        )
    if engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("engine.device = cuda, but PyTorch finds no CUDA device here; valid here: cpu")
    if fleet.roster is not None and fleet.identity == "index":
        raise ConfigError(
            f"fleet.roster = {fleet.roster} says which key is which device, but with fleet.identity = index "
            "keys do not count; leave one of them out"
        )
    if fleet.devices_per_round is not None and fleet.devices_per_round > fleet.num_devices:
        raise ConfigError(
            f"fleet.devices_per_round = {fleet.devices_per_round} is above "
            f"fleet.num_devices = {fleet.num_devices}"
        )
    if fleet.min_replies > (participants := fleet.devices_per_round or fleet.num_devices):
        raise ConfigError(
            f"fleet.min_replies = {fleet.min_replies} is above the {participants} devices of a round "
            "(fleet.devices_per_round, fleet.num_devices)"
        )
    air_users = fleet.devices_per_round or fleet.num_devices
    if scheme.uplink != "ofdma" and settings.air.num_selected > air_users:
        raise ConfigError(
            f"air.num_selected = {settings.air.num_selected} is above the {air_users} devices of a round "
            "(fleet.devices_per_round, fleet.num_devices)"
        )
    if channel.source == "measured" and scheme.uplink != "ofdma":
        raise ConfigError(
            f"channel.source = measured with scheme.uplink = {scheme.uplink}; what is sent over the air can "
            "only be emulated"
        )
    if channel.min_distance_m >= channel.cell_radius_m:
        raise ConfigError(
            f"channel.min_distance_m = {channel.min_distance_m:g} must be below "
            f"channel.cell_radius_m = {channel.cell_radius_m:g}"
        )
    if scheme.allocation == "fixed_ratio" and scheme.pruning_ratio is None:
        raise ConfigError(
            "scheme.pruning_ratio is null; scheme.allocation=fixed_ratio needs a value in [0, 1]"
        )


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, full))
        else:
            flat[full] = value
    return flat


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
    from hydra import compose, initialize_config_module

    search_own_configuration()
    with initialize_config_module(version_base="1.3", config_module="conf"), explained():
        config: DictConfig = compose("config", overrides=as_meant(overrides))
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
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        base = compose("config")
    else:
        with initialize_config_module(version_base="1.3", config_module="conf"):
            base = compose("config")
    node = OmegaConf.select(base, path) if path else base
    return [str(name) for name in node] if isinstance(node, DictConfig) else []
