"""`actor_critic`: a learned baseline for scheduling, trained on the channel it is asked about.

A continuous action (the beam) and a discrete one (the users), as in the comparison of arXiv 2508.00341; the
network details are ours. Users are tokens of features [Re h_k, Im h_k, ||h_k||]; self-attention over users
and mean pooling give the state z. The actor draws a beam from a Gaussian around a linear read-out of z and
M users without replacement from logits that see the user's gain under that beam (Gumbel top-M, whose
log-probability is Plackett-Luce). One step per episode, reward 10 log10(min gain + 1e-3), advantage against a
critic on z. The answer is the mean beam with the top logits;
`keep_best` takes the best action met in training instead if it is better, with the strongest users of its
beam, which is more than the published baseline does.

It lives outside `radio`, which does not know torch; `radio.scheduling` loads it when asked for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from radio.beamforming.problem import Complex, canonical_phase, gains
from radio.scheduling.problem import BeamSolver, Selection, best_for_beam


class ActorCritic(nn.Module):
    """Encoder over users, Gaussian beam head, user-logit head, critic."""

    def __init__(self, antennas: int, embedding: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2 * antennas + 1, embedding), nn.Tanh())
        self.attention = nn.MultiheadAttention(embedding, num_heads=4, batch_first=True)
        self.beam_mean = nn.Linear(embedding, 2 * antennas)
        self.log_std = nn.Parameter(torch.full((2 * antennas,), -1.0))
        self.from_state = nn.Linear(2 * embedding, embedding)
        self.from_gain = nn.Linear(2, embedding, bias=False)
        self.logit = nn.Sequential(nn.Tanh(), nn.Linear(embedding, 1))
        self.critic = nn.Sequential(nn.Linear(embedding, embedding), nn.Tanh(), nn.Linear(embedding, 1))

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return user embeddings (K, E) and the pooled state (E,) of features (K, 2N + 1)."""
        tokens = self.embed(features)[None]
        mixed = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed[0], mixed[0].mean(dim=0)

    def user_logits(self, users: Tensor, state: Tensor, magnitude: Tensor, norms: Tensor) -> Tensor:
        """Return logits (B, K) for beams whose |h_k^H m| are `magnitude` (B, K)."""
        fixed = self.from_state(torch.cat([users, state.expand_as(users)], dim=1))
        pair = torch.stack([magnitude, norms.expand_as(magnitude)], dim=-1)
        logits: Tensor = self.logit(fixed + self.from_gain(pair)).squeeze(-1)
        return logits


def _project(channels: Tensor, raw: Tensor) -> Tensor:
    """Return |h_k^H m| (B, K) of the beams in `raw` (B, 2N), scaled to unit norm."""
    beams = torch.view_as_complex(raw.reshape(len(raw), -1, 2).contiguous())
    beams = beams / beams.abs().square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return (beams.conj() @ channels.T).abs()


def _plackett_luce(logits: Tensor, order: Tensor) -> Tensor:
    """Return the log-probability (B,) of drawing `order` (B, M) without replacement."""
    chosen = logits.gather(1, order)
    rest = logits.scatter(1, order, -torch.inf).logsumexp(dim=1, keepdim=True)
    # What is left before draw i: the users never drawn, and the draws i, i+1, ...
    later = torch.flip(torch.logcumsumexp(torch.flip(chosen, [1]), dim=1), [1])
    return (chosen - torch.logaddexp(later, rest)).sum(dim=1)


def actor_critic(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    updates: int = 1600,
    batch: int = 128,
    embedding: int = 64,
    learning_rate: float = 1e-3,
    entropy: float = 0.01,
    keep_best: bool = False,
) -> Selection:
    """Train on this channel and act (seconds per call; a baseline, not a product).

    Args:
        channels: (K, N), checked.
        num_selected: M.
        beamformer: unused; the beam is the actor's own.
        rng: seeds the network and its draws.
        updates: gradient steps.
        batch: actions per step.
        embedding: width E.
        learning_rate: of Adam.
        entropy: weight of the beam's log standard deviation in the objective.
        keep_best: answer with the best action met, and the strongest users of its beam.

    Raises:
        ValueError: if `updates`, `batch` or `embedding` is out of range.
    """
    del beamformer
    if updates < 1 or batch < 2 or embedding < 4 or embedding % 4:
        raise ValueError(
            f"updates = {updates}, batch = {batch}, embedding = {embedding}: "
            "need updates >= 1, batch >= 2, embedding a positive multiple of 4"
        )
    seed = int(rng.integers(2**63))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layer initialisation draws from the global stream
        torch.manual_seed(seed)
        model = ActorCritic(channels.shape[1], embedding)
    unit = channels / np.sqrt(np.mean(np.abs(channels) ** 2))
    h = torch.from_numpy(unit.astype(np.complex64))
    norms = h.abs().square().sum(dim=1).sqrt()
    features = torch.cat([h.real, h.imag, norms[:, None]], dim=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    best_beam, best_users, best_gain = None, None, -1.0
    for _ in range(updates):
        users, state = model.encode(features)
        mean, std = model.beam_mean(state), model.log_std.exp()
        raw = (mean + std * torch.randn(batch, len(mean), generator=generator)).detach()
        magnitude = _project(h, raw)
        logits = model.user_logits(users, state, magnitude, norms)
        uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1.0 - 1e-7)
        order = (logits.detach() - torch.log(-torch.log(uniform))).topk(num_selected, dim=1).indices
        worst = magnitude.gather(1, order).min(dim=1).values.square()
        reward = 10.0 * torch.log10(worst + 1e-3)
        value = model.critic(state).squeeze(-1)
        advantage = reward - value.detach()
        advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-6)
        log_beam = (-0.5 * ((raw - mean) / std) ** 2 - model.log_std).sum(dim=1)
        policy_loss = -(advantage * (log_beam + _plackett_luce(logits, order))).mean()
        loss = policy_loss + 0.5 * (reward - value).square().mean() - entropy * model.log_std.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        top = int(worst.argmax())
        if float(worst[top]) > best_gain:
            best_gain = float(worst[top])
            best_beam, best_users = raw[top], order[top]

    with torch.no_grad():
        users, state = model.encode(features)
        mean = model.beam_mean(state)[None]
        logits = model.user_logits(users, state, _project(h, mean), norms)
        order = logits.topk(num_selected, dim=1).indices
    final = _complex(mean[0])
    chosen = np.sort(order[0].numpy())
    if keep_best and best_beam is not None and best_users is not None:
        met = _complex(best_beam)
        met_users = np.sort(best_users.numpy())
        if gains(channels[met_users], met).min() > gains(channels[chosen], final).min():
            final = met
        chosen = best_for_beam(channels, final, num_selected)  # for a fixed beam these are optimal
    return Selection(chosen, final, iterations=updates)


def _complex(raw: Tensor) -> Complex:
    pairs = raw.detach().double().numpy().reshape(-1, 2)
    return canonical_phase(pairs[:, 0] + 1j * pairs[:, 1])
