"""The mean-squared error of a scheduling method over channel draws (arXiv 2508.00341, Figs. 4 to 7)."""

from __future__ import annotations

from experiments.studies import StudyResult
from protocol.streams import generator
from radio.scheduling import schedule
from server_app.channels import analog_cell
from server_app.settings import Settings


def scheduling(settings: Settings) -> StudyResult:
    """Schedule `study.draws` independent rounds.

    K is fleet.num_devices, N air.antennas, M air.num_selected. All methods meet the same channels, those of
    the rounds of a run with the same seed.

    Raises:
        ValueError: if the method is unknown or M exceeds K.
    """
    air, scheduler = settings.air, settings.scheduler
    cell = analog_cell(settings)
    draws, timing = [], []
    for draw in range(settings.study.draws + 1):
        # Draw 1 is scheduled twice: the first time, unrecorded, pays for imports and caches.
        index = max(draw, 1)
        found = schedule(
            cell.draw_vectors(index).true,
            air.num_selected,
            method=scheduler.method,
            beamformer=scheduler.beamformer,
            rng=generator(settings.seed, "scheduling", index),
            upper_bound=air.certificate,
            **scheduler.options,
        )
        if draw == 0:
            continue
        draws.append(
            {
                "draw": draw,
                "normalised_mse": found.normalised_mse,
                "min_gain": found.min_gain,
                "gain_upper_bound": found.upper_bound,
                "iterations": found.iterations,
            }
        )
        timing.append({"draw": draw, "measured_schedule_seconds": found.runtime_s})
    return StudyResult(draws, timing)
