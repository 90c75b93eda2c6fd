"""Beamformers on equal user sets: gain, time, and share of the best of 200 convex-approximation runs.

    python -m benchmarks.beamforming_speed [--sets 20] [--dc-sets 4] [--exact-draws 200] [--large]

Also: how often `multistart` equals `brute_force` at (K, N, M) = (12, 4, 4), and with --large the time and
peak memory of `policy_greedy` at K = 100 000, N = 16, M = 64, L = 10.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from benchmarks.scheduling_speed import Setting, draw_channels
from radio.beamforming import beamform, set_upper_bound
from radio.beamforming.problem import Complex
from radio.scheduling import schedule
from radio.scheduling.greedy import candidate_sets

CASES = (Setting(100, 4, 10), Setting(100, 8, 10), Setting(100, 8, 20), Setting(100, 16, 20))


def user_set(setting: Setting, kind: str, draw: int) -> Complex:
    """Return the channels of a policy set or of a random set, (M, N)."""
    channels = draw_channels(setting, draw)
    if kind == "random":
        return channels[: setting.selected]
    return np.asarray(channels[candidate_sets(channels, setting.selected, 1, "min")[0]])


def beams(sets: int, dc_sets: int) -> None:
    """Print gain over the best of 200 runs and milliseconds, per case and method."""
    out = sys.stdout
    out.write(
        f"{'set':<8}{'N':>4}{'M':>4} | {'fast/200 sca':>13}{'worst':>8}{'fast ms':>9}{'200 sca ms':>12}"
        f"{'gain/SDR':>10} | {'dc sets':>8}{'fast/dc gain':>14}{'dc ms':>10}"
        f"{'dc/fast time':>14}{'sdr ms':>9}\n"
    )
    for setting in CASES:
        for kind in ("policy", "random"):
            ratio, fast_s, sca_s, tight = [], 0.0, 0.0, []
            dc_gain, fast_gain, dc_s, sdr_s, fast_dc_s = 0.0, 0.0, 0.0, 0.0, 0.0
            beamform(user_set(setting, kind, 0))
            for draw in range(sets):
                chosen = user_set(setting, kind, draw)
                begin = time.perf_counter()
                fast = beamform(chosen, starts=16)
                middle = time.perf_counter()
                many = beamform(chosen, method="sca", starts=200, rng=np.random.default_rng(1))
                sca_s += time.perf_counter() - middle
                fast_s += middle - begin
                ratio.append(fast.min_gain / many.min_gain)
                tight.append(fast.min_gain / set_upper_bound(chosen))
                if draw < dc_sets:
                    fast_dc_s += middle - begin
                    begin = time.perf_counter()
                    published = beamform(chosen, method="dc")
                    middle = time.perf_counter()
                    beamform(chosen, method="sdr")
                    sdr_s += time.perf_counter() - middle
                    dc_s += middle - begin
                    dc_gain += published.min_gain
                    fast_gain += fast.min_gain
            n = max(dc_sets, 1)
            out.write(
                f"{kind:<8}{setting.antennas:>4}{setting.selected:>4} | {np.mean(ratio):>13.4f}"
                f"{min(ratio):>8.4f}"
                f"{1e3 * fast_s / sets:>9.2f}{1e3 * sca_s / sets:>12.1f}{np.mean(tight):>10.4f}"
                f" | {dc_sets:>8}"
                f"{fast_gain / max(dc_gain, 1e-300):>14.4f}{1e3 * dc_s / n:>10.1f}"
                f"{dc_s / max(fast_dc_s, 1e-9):>14.0f}{1e3 * sdr_s / n:>9.1f}\n"
            )
            out.flush()


def exact(draws: int) -> None:
    """Print the share of draws on which `multistart` is within 1 % of `brute_force`."""
    setting = Setting(12, 4, 4)
    ratio = []
    for draw in range(draws):
        channels = draw_channels(setting, draw)
        best = schedule(channels, 4, method="brute_force")
        ratio.append(schedule(channels, 4).min_gain / best.min_gain)
    agree = float(np.mean(np.array(ratio) >= 0.99))
    sys.stdout.write(
        f"\n(12, 4, 4): multistart within 1 % of brute_force on {100 * agree:.1f} % of {draws} draws, "
        f"worst ratio {min(ratio):.6f}\n"
    )


def large() -> None:
    """Print time and peak memory of `policy_greedy` at K = 100 000."""
    channels = draw_channels(Setting(100_000, 16, 64), 0)
    found = schedule(channels, 64, method="policy_greedy", candidates=10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(f"\npolicy_greedy, K = 100 000: {found.runtime_s:.2f} s, peak {peak:.2f} GiB\n")


def main(argv: list[str] | None = None) -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=20, help="user sets per case")
    parser.add_argument("--dc-sets", type=int, default=4, help="of these, how many the cvxpy methods solve")
    parser.add_argument("--exact-draws", type=int, default=200, help="draws against brute force; 0: none")
    parser.add_argument("--large", action="store_true", help="also K = 100 000")
    arguments = parser.parse_args(argv)
    if arguments.large:
        large()  # first: the peak memory is of the process
    if arguments.sets > 0:
        beams(arguments.sets, arguments.dc_sets)
    if arguments.exact_draws > 0:
        exact(arguments.exact_draws)
    return 0


if __name__ == "__main__":
    sys.exit(main())
