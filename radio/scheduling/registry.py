"""Names of scheduling policies. A policy is one function:

    def my_policy(channels, num_selected, *, beamformer, rng, **options) -> Selection

with `channels` (K, N) checked, ``beamformer(channels_of_the_set, initial=None) -> Beam`` and a Generator.
Either decorate it with ``@policy("my_policy")`` or refer to it as ``"package.module:my_policy"``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from radio.scheduling.problem import Policy

_Function = TypeVar("_Function", bound=Policy)

_POLICIES: dict[str, Policy | str] = {}


def policy(name: str) -> Callable[[_Function], _Function]:
    """Register the decorated function as scheduling method `name`."""

    def register(function: _Function) -> _Function:
        _POLICIES[name] = function
        return function

    return register


def methods() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_POLICIES))


def resolve(method: str) -> Policy:
    """Return the policy called `method`, importing a dotted reference.

    Raises:
        ValueError: if the name is neither registered nor an importable ``"package.module:function"``.
    """
    target = _POLICIES.get(method, method)
    if callable(target):
        return target
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ValueError(
            f"scheduling method {method!r} is unknown; "
            f"valid: {', '.join(methods())}, or 'package.module:function'"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scheduling method {method!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"scheduling method {method!r} is not a function")
    resolved: Policy = found
    return resolved
