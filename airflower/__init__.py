"""airflower from Python, a notebook for one: the commands as functions that return results.

    from airflower import run, sweep

    result = run(["scheme=proposed", "rounds=20"])
    result.summary["final_accuracy_mean"]
    results = sweep(["radio.latency_threshold_ms=15,20,25", "seed=1,2,3", "rounds=20"])

What they leave on disk is what the commands leave, and `load_run`, `load_runs` read it again.
"""

from experiments.api import report, run, sweep
from schema import ConfigError
from server_app.results import ResultsError, Run, load_run, load_runs

__all__ = ["ConfigError", "ResultsError", "Run", "load_run", "load_runs", "report", "run", "sweep"]
