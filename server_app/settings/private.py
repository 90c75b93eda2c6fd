"""What has to hold for a run to be private: found before anything is trained."""

from __future__ import annotations

from importlib import util
from typing import TYPE_CHECKING

from schema import ConfigError
from schema.uses import RANKING

if TYPE_CHECKING:
    from server_app.settings.tree import Settings


def accountant_installed() -> bool:
    """Return whether the extra that computes epsilon is there."""
    return util.find_spec("dp_accounting") is not None


def check_privacy(settings: Settings) -> None:
    """See that `privacy.clip_norm` gives what it promises with the other settings.

    Raises:
        ConfigError: naming the keys, their values and the remedy.
    """
    clip = settings.privacy.clip_norm
    if clip is None or settings.study.name is not None:
        return
    scheme, training = settings.scheme, settings.training
    problem = ""
    if scheme.uplink not in ("ofdma", "over_the_air"):
        problem = (
            f"scheme.uplink = {scheme.uplink} sends masks, or adapts, by the data; use scheme=over_the_air"
        )
    elif RANKING.holds(settings) and training.importance != "random":
        problem = (
            f"training.importance = {training.importance} picks by the data which weights are sent, and that "
            "is seen; set training.importance=random, or use a dense scheme (scheme=fedavg)"
        )
    elif settings.server.mode != "synchronous":
        problem = f"server.mode = {settings.server.mode} is not accounted for; use server.mode=synchronous"
    elif settings.model.buffers == "shared":
        problem = "model.buffers = shared sends running statistics of the data; use model.buffers=personal"
    elif scheme.uplink == "over_the_air":
        problem = _over_the_air(settings)
    if not problem and not accountant_installed():
        problem = (
            "epsilon is computed by dp-accounting, which is not installed: pip install 'airflower[privacy]'"
        )
    if problem:
        raise ConfigError(f"privacy.clip_norm = {clip:g}: {problem}; or set privacy.clip_norm=null")


def _over_the_air(settings: Settings) -> str:
    air = settings.air
    if not air.noise:
        return "over the air the receiver's noise gives the privacy; set air.noise=true"
    if air.payload != "delta":
        return f"air.payload = {air.payload} sends weights, not updates; set air.payload=delta"
    if air.channel_error_variance > 0 or settings.channel.csi_delay_rounds > 0:
        return (
            "with channels that are not known exactly, what a device moves has no bound; set "
            "air.channel_error_variance=0 and channel.csi_delay_rounds=0"
        )
    if air.taps > 1:
        return (
            f"air.taps = {air.taps}: the power that a user needs on unlike subcarriers tells of its update; "
            "set air.taps=1"
        )
    if settings.scheme.weighting != "uniform":
        return "scheme.weighting = samples weighs by the data; set scheme.weighting=uniform"
    return ""
