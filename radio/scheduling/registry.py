"""Names of scheduling policies. A policy is one function:

    def my_policy(channels, num_selected, *, beamformer, rng, **options) -> Selection

with `channels` (K, N) checked, ``beamformer(channels_of_the_set, initial=None) -> Beam`` and a Generator.
Either decorate it with ``@policy("my_policy")`` or refer to it as ``"package.module:my_policy"``.
"""

from __future__ import annotations

from radio.scheduling.problem import Policy
from registry import Registry

SCHEDULERS: Registry[Policy] = Registry("scheduler", key="scheduler.method", given={"beamformer", "rng"})
policy = SCHEDULERS.register
