"""Round latency of the four schemes of Liu et al. 2024, Table I, by Monte Carlo over channel draws.

python -m benchmarks.latency_table [--draws 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from protocol.streams import generator
from radio.allocation import Allocation
from radio.arrays import FloatArray
from radio.channel import draw_gain, mean_gain, place_devices
from radio.latency import device_latency, round_latency, slack
from radio.ofdma import FixedNoise, full_band_rate
from radio.policies import OfdmaProblem, get_policy
from radio.profiles import OfdmaProfile, get_profile

PRUNING_ONLY_THRESHOLD = 45e-3  # s; the table's entry of that scheme, which looks like its own budget


@dataclass(frozen=True)
class Row:
    """One scheme.

    Attributes:
        scheme: name.
        latency: (draws,) round latency, s.
        pruning_ratio: (draws, K).
        paper: what the paper prints.
    """

    scheme: str
    latency: FloatArray
    pruning_ratio: FloatArray
    paper: str


def rates(profile: OfdmaProfile, draws: int, seed: int) -> FloatArray:
    """Return (draws, K) full-band rates of independent rounds, bit/s."""
    places = place_devices(profile.channel, generator(seed, "placement"))
    gains = mean_gain(places, profile.channel, generator(seed, "placement", 1))
    channel = draw_gain(profile.channel, gains, generator(seed, "channel"), draws)
    return full_band_rate(channel, profile.bandwidth, profile.transmit_power, profile.noise_power)


def problem(profile: OfdmaProfile, rate: FloatArray) -> OfdmaProblem:
    """Return the allocation problem of the paper: no charge for positions."""
    fixed = profile.compute.fixed_time(profile.cpu_frequency)
    return OfdmaProblem(
        rates=FixedNoise(rate),
        slack=slack(profile.latency_threshold, fixed),
        compute_time=profile.compute.compute_time(profile.cpu_frequency),
        payload_bits=float(profile.payload_bits),
    )


def latency(profile: OfdmaProfile, rate: FloatArray, plan: Allocation) -> FloatArray:
    """Return (draws,) round latencies of a plan, s."""
    kept = 1 - plan.pruning_ratio
    return round_latency(
        device_latency(
            profile.compute.fixed_time(profile.cpu_frequency),
            profile.compute.compute_time(profile.cpu_frequency),
            kept,
            kept * profile.payload_bits,
            plan.bandwidth_fraction * rate,
        )
    )


def table(profile: OfdmaProfile, draws: int, seed: int) -> Iterator[Row]:
    """Yield the four rows; all schemes see the same channels."""
    rate = rates(profile, draws, seed)
    whole = profile.whole_model(PRUNING_ONLY_THRESHOLD)
    for scheme, policy, setting, paper in (
        ("proposed", "joint", profile, "25"),
        ("equal resource", "equal_bandwidth_joint_rho", profile, "38 ± 0.45"),
        ("personalisation only", "dense_equal_bandwidth", profile, "55 ± 0.55"),
        ("pruning only", "joint", whole, "45"),
    ):
        plan = get_policy(policy)(problem(setting, rate))
        yield Row(scheme, latency(setting, rate, plan), plan.pruning_ratio, paper)


def dense_upload(profile: OfdmaProfile) -> float:
    """Return the least time in s of a dense upload at an equal share over a lossless channel (h = 1)."""
    lossless = full_band_rate(1.0, profile.bandwidth, profile.transmit_power, profile.noise_power)
    return float(profile.payload_bits * profile.channel.num_devices / lossless)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=5000, help="channel draws (rounds)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    profile = get_profile("calibrated")
    print(f"profile {profile.name}, {arguments.draws} draws, seed {arguments.seed}\n")
    print(f"| {'scheme':<20} | {'latency, ms':>14} | {'mean ratio':>10} | {'paper, ms':>9} |")
    print(f"|{'-' * 22}|{'-' * 15}:|{'-' * 11}:|{'-' * 10}:|")
    for row in table(profile, arguments.draws, arguments.seed):
        ms = row.latency * 1e3
        print(
            f"| {row.scheme:<20} | {ms.mean():>6.2f} ± {ms.std():<5.2f} | {row.pruning_ratio.mean():>10.3f} "
            f"| {row.paper:>9} |"
        )
    literal = get_profile("paper_literal")
    print(
        f"\nprofile {literal.name}: a dense upload takes at least {dense_upload(literal) * 1e3:.1f} ms "
        "even without path loss"
    )


if __name__ == "__main__":
    main()
