"""The two parameter sets of the OFDMA experiments (Liu et al. 2024, Section V).

`paper_literal` is what the paper prints. With it the paper's own Table I is out of reach: a dense 32-bit
upload of the fully connected part over a tenth of 20 MHz takes at least 140.6 ms even at 45.8 bit/s/Hz, yet
the table gives 55 ms. `calibrated` has 20 MHz *per device* (200 MHz for ten) and a 64-antenna server,
which reproduces every entry of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from radio.channel import ChannelModel
from radio.latency import ComputeModel
from radio.units import dbm_to_watt

# The CNN of the paper on 28 x 28 x 1 images: convolutions personal, fully connected layers global.
PERSONAL_WEIGHTS = 52_096
GLOBAL_WEIGHTS = 402_826


@dataclass(frozen=True)
class OfdmaProfile:
    """Everything the latency model and the allocation need, in SI units but for the names in dBm.

    Attributes:
        name: of the profile.
        bandwidth: B, Hz, shared by all devices.
        channel: the cell.
        compute: work per round.
        transmit_power_dbm: p.
        noise_power_dbm: sigma^2, the same for every share of the band.
        cpu_frequency: f, Hz, of every device.
        latency_threshold: T_th, s.
        bits_per_weight: q.
    """

    name: str
    bandwidth: float
    channel: ChannelModel = field(default_factory=lambda: ChannelModel(num_devices=10, antennas=64))
    # The paper's allocation does not charge the importance steps; its Table I is reproduced without.
    compute: ComputeModel = field(
        default_factory=lambda: ComputeModel(PERSONAL_WEIGHTS, GLOBAL_WEIGHTS, include_importance_cost=False)
    )
    transmit_power_dbm: float = 28.0
    noise_power_dbm: float = -110.0
    cpu_frequency: float = 3e9
    latency_threshold: float = 25e-3
    bits_per_weight: int = 32

    @property
    def transmit_power(self) -> float:
        """Transmit power, W."""
        return dbm_to_watt(self.transmit_power_dbm)

    @property
    def noise_power(self) -> float:
        """Noise power, W."""
        return dbm_to_watt(self.noise_power_dbm)

    @property
    def payload_bits(self) -> int:
        """Q, bits of the dense upload of the global part."""
        return self.bits_per_weight * self.compute.global_weights

    def whole_model(self, latency_threshold: float) -> OfdmaProfile:
        """Return the profile without a personal part: all weights are trained, pruned and sent."""
        compute = replace(
            self.compute,
            personal_weights=0,
            personal_steps=0,
            global_weights=self.compute.personal_weights + self.compute.global_weights,
        )
        return replace(self, compute=compute, latency_threshold=latency_threshold)


PROFILES: dict[str, OfdmaProfile] = {
    profile.name: profile
    for profile in (
        OfdmaProfile("calibrated", bandwidth=200e6),
        OfdmaProfile("paper_literal", bandwidth=20e6),
    )
}


def get_profile(name: str) -> OfdmaProfile:
    """Return a profile by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in PROFILES:
        raise ValueError(f"profile = {name!r} is unknown; valid: {', '.join(PROFILES)}")
    return PROFILES[name]
