"""What the receiver of `strategies.adaptive_over_the_air` makes of the superposition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from radio.air.denoising import correlation_of_symbols, shrinkage
from radio.air.regularised import regularised
from radio.air.transceiver import SILENT_STD, AirAverage, Link, measure
from radio.air.zero_forcing import zero_forcing
from strategies.air_interface import AirInterface
from strategies.air_receiver import AirUpdate
from strategies.noise_aware import NoiseAwareMomentum
from strategies.over_the_air import sample_shares, send_dense, senders_of, sent_power
from strategies.plan import Outcome, RoundPlan, Weights
from strategies.records import Value
from strategies.settings import AdaptiveSettings, Weighting

_REMEMBERED = 0.8  # share of earlier rounds in the estimate of the correlation
_CORRELATION, _UNDELIVERED = "air-correlation", "air-undelivered-"


@dataclass
class Memory:
    """What is known from earlier rounds.

    Attributes:
        correlation: estimate of the correlation between what two users send; None before the first round.
        undelivered: by device, what it wanted to send and could not, float32 (N_u,). Each device keeps its
            own; those of the emulated ones are kept here.
    """

    correlation: float | None = None
    undelivered: dict[int, Weights] = field(default_factory=dict)

    def learn(self, correlation: float | None) -> None:
        """Take the correlation that a round tells."""
        if correlation is None:
            return
        before = correlation if self.correlation is None else self.correlation
        self.correlation = _REMEMBERED * before + (1.0 - _REMEMBERED) * correlation

    def keep(self, device: int, wanted: Weights, share: float) -> None:
        """Remember what a device could not deliver of what it wanted to; its mean arrived."""
        if share < 1.0:
            left = (1.0 - share) * (wanted - wanted.mean(dtype=np.float64))
            self.undelivered[device] = left.astype(np.float32)
        else:
            self.undelivered.pop(device, None)

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a run that goes on needs."""
        kept: dict[str, npt.NDArray[np.generic]] = {
            f"{_UNDELIVERED}{device}": left for device, left in self.undelivered.items()
        }
        if self.correlation is not None:
            kept[_CORRELATION] = np.array([self.correlation])
        return kept

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        if _CORRELATION in state:
            self.correlation = float(state[_CORRELATION][0])
        self.undelivered = {
            int(name.removeprefix(_UNDELIVERED)): np.array(left, np.float32)
            for name, left in state.items()
            if name.startswith(_UNDELIVERED)
        }


def combine_adaptive(
    air: AirInterface,
    weighting: Weighting,
    adaptive: AdaptiveSettings,
    blocks: Sequence[slice],
    memory: Memory,
    momentum: NoiseAwareMomentum,
    noise: np.random.Generator,
    plan: RoundPlan,
    weights: Weights,
    uploads: Mapping[int, AirUpdate],
) -> Outcome:
    """Send the updates of the users that answered through the air and move the weights.

    Args:
        air: the analog uplink.
        weighting: of the users in the average.
        adaptive: what is switched on.
        blocks: parts of the global part that are shrunk by a factor each.
        memory, momentum: of earlier rounds; this one changes them.
        noise: draws the receiver noise.
        plan: of the round, with an `AirPlan`.
        weights: the global part that was broadcast.
        uploads: by user.
    """
    chosen, present, senders = senders_of(plan, uploads)
    users = [int(user) for user in chosen.users[present]]
    base = weights if air.payload == "model" else np.float32(0)

    def wanted(position: int) -> Weights:
        left = memory.undelivered.get(users[position])
        values = senders[position].values
        return values if left is None else values + left

    scaling = zero_forcing
    if adaptive.receive_scaling == "regularised":
        scaling = partial(regularised, correlation=memory.correlation or 0.0)
    link, result = send_dense(
        air,
        _shares(sample_shares(weighting, senders), wanted, len(users), adaptive.norm_exponent),
        noise,
        chosen.channels.of(present),
        chosen.beam,
        lambda position: wanted(position) + base,
        scaling=scaling,
    )
    memory.learn(_correlation(link, result))
    change = result.estimate - base
    share = link.inverse.share
    if (share < 1.0).any() and air.payload == "model":
        # The server knows what it broadcast, and that so much of it is missing from the sum.
        change += float(link.weights @ (1.0 - share)) * (weights - weights.mean(dtype=np.float64))
    if adaptive.error_feedback:
        for position, user in enumerate(users):
            memory.keep(user, wanted(position), float(share[position]))
    factors = shrinkage(change, link.noise_variance, blocks)
    if blocks:
        change *= factors
    columns: dict[str, Value] = {
        "mse_predicted": result.predicted_mse,
        "mse_realised": result.realised_mse,
        "least_delivered": float(share.min()),
        "shrinkage_mean": float(factors.mean()),
        "symbol_correlation": memory.correlation,
    }
    # What is left of the noise after shrinking, in the mean over the entries.
    noise_left = link.noise_variance * float(np.square(factors).mean())
    moved = (weights + momentum.step(change, noise_left)).astype(np.float32)
    return Outcome(moved, columns, power=sent_power(chosen, present, result))


def _shares(
    share: npt.NDArray[np.float64] | None, wanted: Callable[[int], Weights], users: int, exponent: float
) -> npt.NDArray[np.float64] | None:
    """Return the weight of each user by the deviation of its update to a power, (M,), not normalised."""
    if exponent == 0.0:
        return share
    deviation = measure(wanted, users).std
    if deviation.min() <= SILENT_STD:
        return share
    before = np.ones(users) if share is None else share
    return np.asarray(before * (deviation / deviation.mean()) ** exponent)


def _correlation(link: Link, result: AirAverage) -> float | None:
    heard = result.estimate - link.offset
    return correlation_of_symbols(
        float(heard @ heard) / heard.size, link.noise_variance, link.amplitude * link.inverse.share
    )
