"""Over-the-air aggregation at the antennas: symbols, channels, noise, combiner; nothing of `radio.air`.

Every symbol of every user is formed and sent, all antennas receive all of them, and the server combines
what it received. The keyed noise stream gives the noise along the beam; across the beam it is drawn from
elsewhere, and must not matter.
"""

import numpy as np

Array = np.ndarray


def draw_channels(
    stream: np.random.Generator, gain: Array, antennas: int, error: float
) -> tuple[Array, Array]:
    """The users' channels CN(0, g I), (K, N), and what the server takes them for: h + CN(0, error I)."""
    parts = stream.standard_normal((gain.size, 2 * antennas))
    true = (parts[:, 0::2] + 1j * parts[:, 1::2]) * np.sqrt(gain / 2)[:, None]
    if error == 0:
        return true, true
    parts = stream.standard_normal((gain.size, antennas, 2)) * np.sqrt(error / 2)
    return true, true + parts[..., 0] + 1j * parts[..., 1]


class Air:
    """One upload of M users with power 1 to N antennas.

    Args:
        true, known: (M, N) channels, and those that everything is designed with.
        beam: (N,) receive beam.
        noise_power: per antenna and symbol.
        packing: "iq" or "real".
    """

    def __init__(self, true: Array, known: Array, beam: Array, noise_power: float, packing: str) -> None:
        self.true, self.known, self.beam = true, known, beam / np.linalg.norm(beam)
        self.noise_power, self.packing = noise_power, packing
        self.variance = 0.0  # of the noise on a real entry of what `send` returns

    def send(self, entries: Array, amplitude: Array, stream: np.random.Generator) -> Array:
        """Send (M, d) real entries of mean square at most 1; return an estimate of sum_k w_k u_k, (d,)."""
        projected = self.known @ self.beam.conj()  # m^H h
        sending = amplitude > 0
        eta = (np.abs(projected[sending]) ** 2 / amplitude[sending] ** 2).min()
        transmit = amplitude * np.sqrt(eta) * projected.conj() / np.abs(projected) ** 2
        symbols = self._pack(entries)
        sent = transmit[:, None] * symbols
        power = (np.abs(sent) ** 2).mean(axis=1)
        assert power.max() <= 1 + 1e-9, "a user exceeds its power"
        received = self.true.T @ sent  # (N, uses)
        size, uses = entries.shape[1], symbols.shape[1]
        if self.noise_power:
            along = self._pack(stream.standard_normal((1, size)))[0] * np.sqrt(self.noise_power)
            if self.packing == "real":  # the real part of CN(0, sigma^2) has half the power
                along = along * np.sqrt(0.5)
            other = np.random.default_rng(0).standard_normal((2, self.beam.size, uses))
            across = (other[0] + 1j * other[1]) * np.sqrt(self.noise_power / 2)
            across -= np.outer(self.beam, self.beam.conj() @ across)
            received = received + np.outer(self.beam, along) + across
        self.variance = self.noise_power / eta / (1 if self.packing == "iq" else 2)
        return self._unpack(self.beam.conj() @ received / np.sqrt(eta), size)

    def _pack(self, entries: Array) -> Array:
        if self.packing == "real":
            return entries.astype(complex)
        padded = np.pad(entries, ((0, 0), (0, entries.shape[1] % 2)))
        return (padded[:, 0::2] + 1j * padded[:, 1::2]) / np.sqrt(2)

    def _unpack(self, symbols: Array, size: int) -> Array:
        if self.packing == "real":
            return symbols.real
        return (np.stack([symbols.real, symbols.imag], axis=1) * np.sqrt(2)).ravel()[:size]


def average(updates: Array, weights: Array, air: Air, mode: str, stream: np.random.Generator) -> Array:
    """The server's estimate of sum_k phi_k g_k for dense updates (M, d)."""
    mean, square = updates.mean(axis=1), (updates**2).mean(axis=1)
    if mode == "per_user":
        std = np.sqrt(square - mean**2)
        sent = air.send((updates - mean[:, None]) / std[:, None], weights * std, stream)
        return sent + weights @ mean
    centre = weights @ mean
    scale = np.sqrt((square - 2 * centre * mean + centre**2).max())
    return air.send((updates - centre) / scale, weights * scale, stream) + centre


def pruned_update(
    deltas: Array, masks: Array, air: Air, mode: str, shrink: bool, stream: np.random.Generator
) -> tuple[Array, Array, Array]:
    """What the server adds to each weight, which weights moved, and the error-free masked mean.

    Args:
        deltas: (M, d) updates, 0 where pruned.
        masks: (M, d) bool.
        air: the upload.
        mode: how the server knows the divisor: bitmap, common_mask or count_free.
        shrink: multiply by V / (V + noise), V from the update itself.
        stream: of the noise.
    """
    users, size = deltas.shape
    slots = masks.any(axis=0) if mode == "common_mask" else np.ones(size, bool)
    kept = masks.sum(axis=0)
    scale = np.sqrt((deltas[:, slots] ** 2).mean(axis=1).max())
    total = np.zeros(size)
    total[slots] = scale * air.send(deltas[:, slots] / scale, np.ones(users), stream)
    divisor = kept if mode == "bitmap" else np.where(slots, users, 0)
    moved = divisor > 0
    raw = np.where(moved, total / np.maximum(divisor, 1), 0)
    noise = scale**2 * air.variance / np.maximum(divisor, 1) ** 2
    if shrink and air.variance:
        trust = moved / noise
        second = max(((raw**2 - noise) * trust).sum() / trust.sum(), 0)
        raw = raw * second / (second + noise)
    exact = deltas.sum(axis=0) / np.maximum(kept, 1)
    return raw, moved, exact
