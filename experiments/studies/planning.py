"""Rounds that are planned and never trained: latencies, shares and pruning ratios (Liu et al. 2024)."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from experiments.studies import StudyResult
from protocol.streams import generator
from radio.allocation.policies import printed_values
from radio.latency import slack
from server_app.job import prepare
from server_app.links import ofdma_cell
from server_app.settings import Settings
from server_app.strategy import build_strategy
from strategies.ofdma import OfdmaStrategy
from strategies.plan import OfdmaPlan

# Columns of a round that not every plan has.
_WHERE_KNOWN = ("outage_share", "energy_j")


def planning(settings: Settings) -> StudyResult:
    """Plan `study.draws` rounds of the scheme with all devices, exactly as a run with this seed would.

    Raises:
        ValueError: if the scheme does not use the OFDMA uplink.
    """
    strategy = build_strategy(prepare(settings))
    if not isinstance(strategy, OfdmaStrategy):
        raise ValueError(
            f"scheme.uplink = {settings.scheme.uplink}: this study plans OFDMA rounds; "
            "study.name=scheduling looks at the other uplinks"
        )
    devices = range(settings.fleet.num_devices)
    draws, timing = [], []
    for draw in range(1, settings.study.draws + 1):
        started = time.perf_counter()
        plan = strategy.plan(draw, devices)
        seconds = time.perf_counter() - started
        detail = plan.detail
        assert isinstance(detail, OfdmaPlan)
        ratios = np.array([float(a.columns["pruning_ratio"] or 0) for a in plan.assignments])
        draws.append(
            {
                "draw": draw,
                "latency_s": detail.latency({}),
                "pruning_ratio_mean": float(ratios.mean()),
                "pruning_ratio_max": float(ratios.max()),
                "starved_share": float(np.mean(ratios >= 1)),
                "kept_share": float(np.mean(1 - ratios)),
                **{name: plan.columns[name] for name in _WHERE_KNOWN if name in plan.columns},
            }
        )
        timing.append({"draw": draw, "measured_plan_seconds": seconds})
    return StudyResult(draws, timing)


def printed_formula(settings: Settings) -> StudyResult:
    """Look at eqs. (54) and (58) as printed: how often does the "optimum" leave its own constraints?

    Rows hold 1 where some device gets a negative bandwidth fraction or a negative pruning ratio.
    """
    job = prepare(settings)
    cell = ofdma_cell(job)
    emulated = cell.emulate(partial(generator, settings.seed))
    draws = []
    for draw in range(1, settings.study.draws + 1):
        share, ratio, _ = printed_values(
            emulated.draw(draw).rates.full_band,
            slack(cell.latency_threshold, cell.fixed_time),
            cell.compute_time,
            float(cell.bits_per_weight * job.split.global_part.size),
        )
        draws.append(
            {
                "draw": draw,
                "negative_bandwidth": int((share < 0).any()),
                "negative_ratio": int((ratio < 0).any()),
                "least_bandwidth_fraction": float(share.min()),
                "least_pruning_ratio": float(ratio.min()),
            }
        )
    return StudyResult(draws)
