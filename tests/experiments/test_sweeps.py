"""Sweeps go on where they stopped, and a job that fails costs only itself."""

import json
import shutil
import time

import pytest

from experiments.api import sweep
from experiments.command_line import sweep_of
from experiments.sweep import is_finished, sweep_name
from server_app.settings import compose_settings
from tests.experiments.small_sweeps import TINY, airflower, run_tiny, start

JOBS = (*TINY, "engine.workers=1", "radio.latency_threshold_ms=1,2,3")
SWEEP = ("--multirun", *JOBS)


@pytest.fixture
def undisturbed(tmp_path, monkeypatch):
    """Return what runs a sweep from beginning to end in this process, without figures, and its contents."""

    def done(*overrides):
        with monkeypatch.context() as patch:
            patch.setattr("server_app.run.draw_run", lambda *_: None)
            (tmp_path / "whole").mkdir()
            patch.chdir(tmp_path / "whole")
            sweep(overrides, quiet=True)
        return contents(tmp_path / "whole")

    return done


def contents(folder):
    """Return all files that a seed decides, with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".png"
        and path.parent.name != ".hydra"  # only the command line has it
        and "timing" not in path.name
        and path.name != "manifest.json"  # names the run, and what the clock measured
        and path.name not in ("run.log", "live.json", "multirun.yaml", "hydra.yaml", "server.npz")
    }


def test_an_interrupted_sweep_ends_with_the_files_of_an_uninterrupted_one(tmp_path, undisturbed):
    """One job is as a kill leaves it half way, one has not begun; the finished one is not done again."""
    whole = undisturbed(*JOBS)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (folder,) = (tmp_path / "killed" / "multirun").iterdir()
    done, half, missing = sorted(path for path in folder.iterdir() if path.is_dir())
    shutil.rmtree(missing)
    summary = json.loads((half / "summary.json").read_text())
    (half / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    (half / "rounds.csv").write_text("round,accuracy_mean\n1,0.3")
    (half / "checkpoint.partial").mkdir()
    before = (done / "timing.csv").read_bytes()
    result = airflower(tmp_path / "killed", *SWEEP)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished before, skipped") == 1
    assert (done / "timing.csv").read_bytes() == before
    assert contents(tmp_path / "killed") == whole


def test_a_sweep_that_is_killed_and_started_again_ends_with_the_files_of_an_uninterrupted_one(
    tmp_path, undisturbed
):
    """SIGKILL in the middle of the second job's rounds: nothing can be tidied up."""
    jobs = (*TINY[:-1], "rounds=12", "engine.workers=1", "radio.latency_threshold_ms=1,2")
    whole = undisturbed(*jobs)
    (tmp_path / "killed").mkdir()
    process = start(tmp_path / "killed", "--multirun", *jobs)
    try:
        kill_in_job(process, tmp_path / "killed" / "multirun", completed=1, rows=3)
    finally:
        process.kill()
        process.wait()
    found = [status(path) for path in (tmp_path / "killed" / "multirun").glob("*/*/summary.json")]
    assert sorted(found) in (["completed", "killed"], ["completed", "running"])  # its guard may have said so
    result = airflower(tmp_path / "killed", "--multirun", *jobs)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished before, skipped") == 1
    assert contents(tmp_path / "killed") == whole


def kill_in_job(process, folder, *, completed, rows):
    """SIGKILL the process once that many jobs are completed and the next has recorded that many rounds."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        summaries = list(folder.glob("*/*/summary.json"))
        running = [path.parent / "rounds.csv" for path in summaries if status(path) == "running"]
        if len(summaries) == completed + 1 and running and running[0].is_file():
            lines = running[0].read_text().count("\n")
            if lines > rows:
                process.kill()
                return
        time.sleep(0.002)
    pytest.fail("the sweep ended, or did not begin its second job, before it could be killed")


def status(path):
    return json.loads(path.read_text())["status"]


def test_a_failed_job_does_not_lose_the_others(tmp_path):
    """The step size of the first job makes its weights overflow at once."""
    result = airflower(
        tmp_path,
        "--multirun",
        *TINY,
        "engine.workers=1",
        "training.optimizer=sgd",
        "training.global_learning_rate=1e38,0.02",
        "hydra.sweep.dir=sweep",
    )
    assert result.returncode == 1
    assert "1 job(s) of sweep failed" in result.stderr
    status = {
        float(path.parent.name.split("global_learning_rate=")[1].split(",")[0]): json.loads(path.read_text())[
            "status"
        ]
        for path in (tmp_path / "sweep").glob("*/summary.json")
    }
    assert status == {1e38: "failed", 0.02: "completed"}


@pytest.mark.slow
def test_jobs_in_parallel_give_the_same_records(tmp_path, undisturbed):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    whole = undisturbed(*JOBS)
    (tmp_path / "two").mkdir()
    result = airflower(tmp_path / "two", *SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "two") == whole


def test_a_job_is_finished_if_its_records_are_whole_and_its_configuration_is_the_same(tmp_path):
    settings = compose_settings(TINY)
    run_tiny(tmp_path)
    assert is_finished(tmp_path, settings)
    assert is_finished(tmp_path, compose_settings([*TINY, "engine.workers=1", "tracker=tensorboard"]))
    assert not is_finished(tmp_path, compose_settings([*TINY, "rounds=3"]))
    for name in ("rounds.csv", "devices.csv", "summary.json", "config.yaml"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        assert not is_finished(tmp_path, settings), f"{name} deleted"
        for damaged in (content[:-20], content.replace(b"1", b"2"), b"", b"\xff\xfe"):
            (tmp_path / name).write_bytes(damaged)
            assert not is_finished(tmp_path, settings), f"{name} damaged"
        (tmp_path / name).write_bytes(content)
    assert is_finished(tmp_path, settings)


def test_the_same_sweep_twice_at_once_leaves_the_files_of_one(tmp_path, undisturbed):
    """Each job is done by one of the two; the other waits for it, and then passes it over."""
    whole = undisturbed(*JOBS[:-1], "radio.latency_threshold_ms=1,2")
    (tmp_path / "twice").mkdir()
    both = [start(tmp_path / "twice", *SWEEP[:-1], "radio.latency_threshold_ms=1,2") for _ in range(2)]
    texts = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum(out.count("finished before, skipped") for out, _ in texts) == 2
    assert contents(tmp_path / "twice") == whole


def test_the_same_command_names_the_same_folder():
    assert sweep_name(["seed=1,2", "scheme=fedavg"]) == sweep_name(
        ["scheme=fedavg", "seed=1,2", "engine.workers=1"]
    )
    assert sweep_name(["seed=1,2"]) != sweep_name(["seed=1,2,3"])
    assert sweep_name(["experiment=p1_fig6", "size=quick", "engine=flower"]) == "p1_fig6-quick"
    assert sweep_name(["experiment=p1_fig6", "size=quick", "rounds=3"]).startswith("p1_fig6-quick-")


def test_the_command_line_replaces_what_an_experiment_sweeps_over():
    overrides = ["experiment=p1_fig6", "size=quick", "seed=7"]
    jobs, swept = sweep_of(overrides)
    assert len(jobs) == 4
    assert swept == ["radio.latency_threshold_ms"]
    assert all("seed=7" in job for job in jobs)
