"""What a key needs in order to have an effect: conditions on the other keys, each with its words.

A key declares its condition where its type and limits are declared (`server_app.schema.key`). A user who sets
a key whose condition does not hold is told so before anything runs; in a sweep, a key that none of the jobs
uses. What a scheme or policy of the user's own reads is not known here: for those every key counts as used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radio.allocation.policies import POLICIES
from server_app.schema import ConfigError, declarations

if TYPE_CHECKING:
    from server_app.settings import Settings


@dataclass(frozen=True)
class Use:
    """A condition under which a key has an effect.

    Attributes:
        text: completes "is used only ...".
        holds: whether it is met.
    """

    text: str
    holds: Callable[[Settings], bool]

    def __and__(self, other: Use) -> Use:
        return Use(f"{self.text} and {other.text}", lambda s: self.holds(s) and other.holds(s))


def _policy(settings: Settings, *names: str) -> bool:
    """Return whether the allocation policy is one of these, or not one of ours."""
    return settings.scheme.allocation in names or settings.scheme.allocation not in POLICIES


# Those that keep to a largest pruning ratio.
_RATIO_POLICIES = ("joint", "equal_bandwidth", "equal_bandwidth_joint_rho", "joint_physical_noise")
_ADAPTIVE_POLICIES = (*_RATIO_POLICIES, "printed_formula")


def _air(settings: Settings) -> bool:
    return settings.scheme.uplink != "ofdma"


def _measured(settings: Settings) -> bool:
    return settings.channel.source == "measured"


def _ofdma(settings: Settings) -> bool:
    return not _air(settings) and not _measured(settings)


def _prunes(settings: Settings) -> bool:
    if _air(settings):
        return settings.scheme.uplink == "over_the_air_pruned"
    return _measured(settings) or _policy(settings, *_ADAPTIVE_POLICIES, "fixed_ratio")


EMULATED = Use("with an emulated channel (not channel=measured)", lambda s: not _measured(s))
MEASURED = Use("with channel=measured", _measured)
OFDMA = Use("with the emulated OFDMA uplink", _ofdma)
DIGITAL = Use("with a digital uplink (OFDMA or measured)", lambda s: not _air(s))
AIR = Use("over the air (scheme=over_the_air, error_free or aircomp_pruned)", _air)
DENSE_AIR = Use("by scheme=over_the_air and error_free", lambda s: s.scheme.uplink == "over_the_air")
PRUNED_AIR = Use("by scheme=aircomp_pruned", lambda s: s.scheme.uplink == "over_the_air_pruned")
COMMON_MASK = Use("air.count_mode=common_mask", lambda s: s.air.count_mode == "common_mask")
OWN_MASKS = Use("air.count_mode other than common_mask", lambda s: s.air.count_mode != "common_mask")
NOT_PRUNED_AIR = Use(
    "by schemes other than aircomp_pruned", lambda s: s.scheme.uplink != "over_the_air_pruned"
)
PLACES = Use(
    "with the emulated OFDMA uplink, or over the air with air.path_loss=true",
    lambda s: _ofdma(s) or (_air(s) and s.air.path_loss),
)
RATIO_LIMIT = Use(
    f"with channel=measured or the policies {', '.join(_RATIO_POLICIES)}",
    lambda s: _measured(s) or (_ofdma(s) and _policy(s, *_RATIO_POLICIES)),
)
INFEASIBLE = Use(
    f"with the policies {', '.join(_RATIO_POLICIES)} and radio.max_pruning_ratio below 1",
    lambda s: _ofdma(s) and _policy(s, *_RATIO_POLICIES) and s.radio.max_pruning_ratio < 1,
)
FIXED_RATIO = Use("by scheme.allocation=fixed_ratio", lambda s: _ofdma(s) and _policy(s, "fixed_ratio"))
PRUNING = Use("by schemes that prune", _prunes)
PERSONAL = Use(
    "with a personal part (scheme.personalization=true and model.personal)",
    lambda s: bool(s.personal_patterns),
)
PERSONALIZATION = Use("with scheme.personalization=true", lambda s: s.scheme.personalization)
PERSONAL_PHASE = Use(
    "with a personal part that has steps of its own (not training.algorithm=simultaneous)",
    lambda s: bool(s.personal_patterns) and s.training.algorithm != "simultaneous",
)
PERSONAL_STEPS = Use(
    "with a personal part that has steps of its own, and training.personal_epochs=null",
    lambda s: PERSONAL_PHASE.holds(s) and s.training.personal_epochs is None,
)
GLOBAL_STEPS = Use("with training.global_epochs=null", lambda s: s.training.global_epochs is None)
PROBE = Use("with channel=measured and measured.probe=true", lambda s: _measured(s) and s.measured.probe)
NORM_LIMIT = Use("with fleet.upload_norm_limit", lambda s: s.fleet.upload_norm_limit is not None)
TRAINING = Use("by jobs that train (no study.name)", lambda s: s.study.name is None)
STUDY = Use("by studies (study.name)", lambda s: s.study.name is not None)
MLFLOW = Use("with tracker=mlflow", lambda s: s.tracker.name == "mlflow")


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
