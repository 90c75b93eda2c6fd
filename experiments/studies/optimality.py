"""How far a scheduling method is from the proved optimum of users and beam."""

from __future__ import annotations

import math

from experiments.studies import StudyResult
from protocol.streams import generator
from radio.scheduling import schedule
from server_app.channels import analog_cell
from server_app.settings import Settings

PROVED_DB = 0.001  # a gap of bound and optimum that counts as closed
OPTIMAL_DB = 0.005  # a loss below that is the optimum, found up to the tolerance of the beam solvers


def optimality(settings: Settings) -> StudyResult:
    """Schedule `study.draws` independent rounds by the method, and by branch and bound (`radio.branching`).

    All methods meet the same channels, those of the rounds of a run with the same seed. Columns: the loss of
    the gain in dB, 10 lg(g* / g) with g the least effective channel gain of the method's users and g* the
    optimum; whether the method is at it; whether the optimum is unproved, and the gap that is left then.

    Raises:
        ValueError: if the method is unknown or M exceeds K.
    """
    air, scheduler = settings.air, settings.scheduler
    cell = analog_cell(settings)
    draws, timing = [], []
    for draw in range(1, settings.study.draws + 1):
        channels = cell.draw_vectors(draw).true
        found = schedule(
            channels,
            air.num_selected,
            method=scheduler.method,
            beamformer=scheduler.beamformer,
            rng=generator(settings.seed, "scheduling", draw),
            **scheduler.options,
        )
        best = schedule(
            channels,
            air.num_selected,
            method="branch_and_bound",
            rng=generator(settings.seed, "scheduling", draw),
            gap_db=PROVED_DB,
        )
        assert best.upper_bound is not None
        optimum = max(best.min_gain, found.min_gain)
        loss = 10 * math.log10(optimum / found.min_gain)
        gap = 10 * math.log10(max(best.upper_bound / optimum, 1.0))
        draws.append(
            {
                "draw": draw,
                "loss_db": loss,
                "optimal": int(loss <= OPTIMAL_DB),
                "unproved": int(best.status != "proved"),
                "gap_db": gap,
                "nodes": best.iterations,
            }
        )
        timing.append(
            {
                "draw": draw,
                "measured_schedule_seconds": found.runtime_s,
                "measured_proof_seconds": best.runtime_s,
            }
        )
    worst = max(row["loss_db"] for row in draws)
    return StudyResult(draws, timing, {"worst_loss_db": worst})
