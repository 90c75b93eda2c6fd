"""What the command says is true: checks before training, job names, verdicts of sweeps, Hydra's own doors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.sweep import _job_folder, job_name, say_how_it_ended
from server_app.settings import compose_settings
from tests.experiments.small_sweeps import TINY, airflower

QUICK = (*TINY[:-1], "rounds=1", "engine.workers=1")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "model.personal=[fc2*],[conv*]"), "model.personal.*conv.* matches no parameter.*in the job"),
        (("-m", "scheme.allocation=joint,nowhere:at_all"), "cannot be imported.*in the job"),
        (("-m", "seed=1,2", "resume=nowhere"), "resume = nowhere: no usable checkpoint"),
        (("-m", "study.name=planning,nosuch"), "study.name = 'nosuch' is unknown"),
        (("-m", "seed=1,x"), "seed = 'x' is not a whole number"),
        (("seed=1,2",), "Ambiguous value"),
        (
            ("partition=dirichlet", "partition.options.min_smaples=1"),
            "min_smaples.*valid: alpha, min_samples",
        ),
        (("-m", "--cfg", "job", "seed=1,2"), "--multirun and --cfg exclude each other"),
    ],
)
def test_what_is_wrong_stops_the_command_before_any_job_has_a_folder(tmp_path, arguments, message):
    quick = () if any("study" in argument for argument in arguments) else QUICK  # a study does not train
    result = airflower(tmp_path, *quick, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stdout + result.stderr, re.DOTALL)
    assert not list(tmp_path.rglob("*.csv"))
    assert not list(tmp_path.rglob("config.yaml")) or "min_smaples" in message


def test_a_key_of_a_sweep_has_an_effect_in_one_of_its_jobs_at_least(tmp_path):
    """Schemes are compared in one sweep; what only one of them uses may stand beside it."""
    mixed = ("-m", *QUICK, "scheme=proposed,over_the_air", "air.num_selected=2", "hydra.sweep.dir=s")
    result = airflower(tmp_path, *mixed)
    assert result.returncode == 0, result.stdout + result.stderr
    refused = airflower(tmp_path, "-m", *QUICK, "scheme=proposed,fedavg", "air.num_selected=2")
    assert refused.returncode == 2
    assert "air.num_selected = 2 has no effect here" in refused.stderr
    assert "every job of the sweep" in refused.stderr
    assert not (tmp_path / "multirun").exists()


def test_hydras_own_doors_open(tmp_path):
    """A folder of configurations, a sweep by mode, a glob, what would run, and completion in a shell."""
    own = tmp_path / "mine (1)" / "scheme"
    own.mkdir(parents=True)
    (own / "fenced.yaml").write_text("defaults: [equal_bandwidth, _self_]\nname: fenced\n")
    result = airflower(
        tmp_path,
        *("--config-dir", "mine (1)", *QUICK, "hydra.mode=MULTIRUN", "scheme=glob(fe*)", "hydra.sweep.dir=s"),
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()} == {
        "scheme=fedavg",
        "scheme=fenced",
    }
    for arguments, shown in (
        (("-sc", "install=bash"), "complete"),
        (("--cfg", "job", "seed=7"), "seed: 7"),
        (("--info", "searchpath"), "pkg://conf"),
    ):
        result = airflower(tmp_path, *arguments)
        assert result.returncode == 0, result.stderr
        assert shown in result.stdout


@pytest.mark.exhaustive  # it starts Ray
def test_a_sweep_judges_its_own_jobs_only(tmp_path):
    """An older failed job beside them is not theirs; a sweep over engines runs each of them."""
    old = tmp_path / "s" / "seed=9"
    (old / ".hydra").mkdir(parents=True)
    (old / "summary.json").write_text('{"status": "failed"}')
    sweep = ("-m", *QUICK, "engine=inprocess,ray", "hydra.sweep.dir=s", "fleet.num_devices=2")
    result = airflower(tmp_path, *sweep)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "finished before" not in result.stdout
    assert "all 2 job(s) completed" in result.stdout
    for name in ("inprocess", "ray"):
        stored = OmegaConf.load(tmp_path / "s" / f"engine={name}" / "config.yaml")
        assert stored.engine.name == name
    again = airflower(tmp_path, *sweep)
    assert again.stdout.count("finished before") == 2


def test_a_sweep_with_more_overrides_than_a_name_can_hold(tmp_path):
    """Each value makes the former name longer than a file system allows."""
    words = [f"+report.word{i}={'x' * 20}" for i in range(15)]
    result = airflower(tmp_path, "-m", *QUICK, *words, "seed=1,2", "hydra.sweep.dir=s")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()} == {"seed=1", "seed=2"}


def test_a_job_folder_can_be_resumed_by_its_name(tmp_path):
    """As typed, with its commas and equals signs."""
    arguments = ("-m", *QUICK, "seed=1", "radio.latency_threshold_ms=20,25", "hydra.sweep.dir=s=1,é (x)")
    assert airflower(tmp_path, *arguments).returncode == 0
    folder = next(path for path in (tmp_path / "s=1,é (x)").iterdir() if path.name.endswith("=20"))
    resume = (
        *TINY[:-1],
        "rounds=2",
        "radio.latency_threshold_ms=20",
        f"resume={folder.relative_to(tmp_path)}",
    )
    result = airflower(tmp_path, *resume, "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "rounds.csv").read_text().count("\n") == 3


TASKS = st.dictionaries(
    st.sampled_from(["seed", "scheme", "model.personal", "++partition.options.alpha", "dataset.root"]),
    st.text(min_size=1, max_size=200),
    min_size=1,
)


@given(TASKS, TASKS)
def test_names_of_jobs_fit_a_file_system_and_differ(first, second):
    names = []
    for task in (first, second):
        name = job_name([f"{key}={value}" for key, value in task.items()], [*first, *second])
        names.append(name)
        assert 0 < len(name.encode()) <= 120
        assert not set(name) & set('/\\:*?"<>|\0\n ')
        assert name not in (".", "..")
    assert (names[0] == names[1]) == ([*first.items()] == [*second.items()])


def test_a_folder_with_the_name_of_former_versions_is_gone_on_with(tmp_path):
    former = "model=mlp,rounds=2,seed=1"
    task = former.split(",")
    assert _job_folder(task, "seed", str(tmp_path), former) == "seed=1"
    (tmp_path / former).mkdir()
    (tmp_path / former / "config.yaml").write_text("seed: 1\n")
    assert _job_folder(task, "seed", str(tmp_path), former) == former
    assert _job_folder([*task, "engine=ray"], "engine", str(tmp_path), former) == "engine=ray"


def test_the_verdict_names_the_jobs_that_have_not_completed(tmp_path, capsys):
    settings = compose_settings(QUICK)
    for name, status in (("good", "completed"), ("bad", "failed"), ("other", "failed")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"status": status}))
    with pytest.raises(SystemExit) as end:
        say_how_it_ended(tmp_path, {tmp_path / "bad": settings, tmp_path / "never begun": settings})
    assert end.value.code == 1
    text = capsys.readouterr().err
    assert "2 job(s)" in text
    assert "bad; never begun" in text
    assert "other" not in text


def test_the_command_reads_settings_without_torch_and_scipy():
    """A mistyped key is said at once."""
    code = "import sys, experiments.command_line; print(bool({'torch', 'scipy'} & {*sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
