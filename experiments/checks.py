"""All that a run would refuse before it trains, asked before any job of a sweep has run."""

from __future__ import annotations

import json

from server_app.settings import Settings

# Decides nothing of what is checked here; the resumed checkpoint is looked at on its own.
_NO_MATTER = ("rounds", "evaluate_every", "checkpoint_every", "engine", "tracker", "report", "resume")


def check_fully(settings: Settings, seen: set[str]) -> None:
    """Check a job as its run would.

    Args:
        settings: of the job.
        seen: what was checked before, to be added to; the same is not checked again.

    Raises:
        ConfigError: as the run would.
    """
    if settings.tracker.name != "none":
        from records.trackers import check_tracker

        check_tracker(settings.tracker.name, settings.tracker.options)
    if settings.study.name is not None:
        from experiments.studies import resolve

        resolve(settings.study.name)
        return
    if settings.engine.name == "flower":
        from engines.superlink import commands

        commands()
    deciding = {name: value for name, value in settings.to_dict().items() if name not in _NO_MATTER}
    identity = json.dumps(deciding, sort_keys=True, default=str)
    if identity not in seen:
        from server_app.job import prepare
        from server_app.strategy import build_strategy

        build_strategy(prepare(settings))
        seen.add(identity)
    if settings.resume:
        from server_app.resume import load_checkpoint

        load_checkpoint(settings)
