"""Trackers see what the CSV records hold, and are off unless asked for."""

import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest

from experiments.studies import run_study
from records.recorder import read_table
from records.trackers import TrackedJob, numbers
from schema import ConfigError
from server_app.settings import compose_settings
from tests.experiments.small_sweeps import run_tiny


@pytest.fixture
def scalars(monkeypatch):
    """What a stand-in for tensorboardX is given, and whether it was closed."""
    given: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, logdir):
            given.append(("folder", logdir))

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            given.append(("closed",))

        def add_scalar(self, tag, value, step):
            given.append((tag, value, step))

        def flush(self):
            pass

    module: Any = ModuleType("tensorboardX")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    return given


def test_tensorboard_gets_the_numbers_of_the_rounds(tmp_path, scalars):
    run_tiny(tmp_path, "tracker=tensorboard", "rounds=2")
    assert scalars[0] == ("folder", str(tmp_path))
    assert scalars[-1] == ("closed",)
    rows = read_table(tmp_path / "rounds.csv")
    for name in ("accuracy_mean", "loss_mean", "latency_s", "pruning_ratio_mean"):
        given = [entry[1:] for entry in scalars if entry[0] == f"round/{name}"]
        assert given == [(float(row[name]), step) for step, row in enumerate(rows, 1)]
    assert any(entry[0] == "measured/train_seconds" for entry in scalars)


def test_nothing_is_tracked_by_default(tmp_path):
    run_tiny(tmp_path, "rounds=1")
    assert not list(tmp_path.glob("events*"))


def test_mlflow_gets_parameters_and_metrics(tmp_path, monkeypatch):
    calls: list[tuple[Any, ...]] = []

    class Active:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            calls.append(("end",))

    module: Any = ModuleType("mlflow")
    module.set_tracking_uri = lambda uri: calls.append(("uri", uri))
    module.set_experiment = lambda name: calls.append(("experiment", name))
    module.start_run = lambda run_name: Active()
    module.log_params = lambda params: calls.append(("params", params))
    module.log_metrics = lambda values, step: calls.append(("metrics", step, values))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_tiny(tmp_path, "tracker=mlflow", "rounds=2", f"tracker.database={tmp_path}/x.db")
    assert calls[0] == ("uri", f"sqlite:///{tmp_path}/x.db")
    assert calls[1] == ("experiment", "airflower")
    parameters = {name: value for call in calls if call[0] == "params" for name, value in call[1].items()}
    assert parameters["radio.latency_threshold_ms"] == "25.0"
    assert max(map(len, parameters.values())) <= 500
    assert [call[1] for call in calls if call[0] == "metrics"] == [1, 2]
    assert calls[-1] == ("end",)


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("tensorboard", "tensorboardX")])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"airflower\[{name}\]"):
        run_tiny(tmp_path, f"tracker={name}")


def test_text_and_absent_values_are_left_out():
    assert numbers({"a": 1, "b": None, "c": "x", "d": 0.5}) == {"a": 1.0, "d": 0.5}


def test_a_tracker_that_fails_costs_its_own_entries(tmp_path, monkeypatch, caplog, scalars):
    def add_scalar(self, tag, value, step):
        if step == 2:
            raise OSError("the server has gone")
        calls.append(step)

    calls: list[int] = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", add_scalar)
    summary = run_tiny(tmp_path, "tracker=tensorboard", "rounds=4")
    assert (summary["rounds"], set(calls)) == (4, {1})
    assert "tracker = tensorboard failed at step 2 and gets nothing more: the server has gone" in caplog.text


class Shelf:
    """A tracker of one's own: what it is given, and how it ended."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, job: TrackedJob, *, room: str = "") -> None:
        self.opened.append((job.folder, job.unit, job.settings["seed"], room))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        raise OSError("it cannot be closed")

    def record(self, step, values):
        self.opened.append((step, values["accuracy_mean"]))


def test_a_tracker_of_ones_own_is_named_by_where_it_is_and_has_options(tmp_path, caplog):
    Shelf.opened.clear()
    own = f"tracker.name={__name__}:Shelf"
    summary = run_tiny(tmp_path / "run", own, "tracker.options.room=attic", "rounds=2")
    rows = read_table(tmp_path / "run" / "rounds.csv")
    assert Shelf.opened == [
        (tmp_path / "run", "round", 1, "attic"),
        *((step, float(row["accuracy_mean"])) for step, row in enumerate(rows, 1)),
    ]
    assert summary["status"] == "completed"
    assert "the tracker could not be closed: it cannot be closed" in caplog.text
    with pytest.raises(ConfigError, match=r"tracker\.name = .* has no option 'rooms'"):
        run_tiny(tmp_path / "other", own, "tracker.options.rooms=attic")


# The real things: each extra in an environment that has it.


def test_tensorboard_itself_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_tiny(tmp_path, "tracker=tensorboard", "rounds=2")
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    rows = read_table(tmp_path / "rounds.csv")
    for name in ("accuracy_mean", "latency_s"):
        events_of = [(event.step, event.value) for event in read.Scalars(f"round/{name}")]
        assert events_of == [(i, pytest.approx(float(row[name]))) for i, row in enumerate(rows, 1)]


@pytest.mark.parametrize("earlier", ["nothing", "empty mlruns", "mlruns with an experiment"])
def test_the_real_mlflow_has_the_rounds_where_the_configuration_says(tmp_path, monkeypatch, earlier):
    """MLflow 3 keeps a database by default, and refuses the folder of MLflow 2 where it is there."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if earlier != "nothing":
        (tmp_path / "mlruns").mkdir()
    if earlier == "mlruns with an experiment":
        (tmp_path / "mlruns" / "0").mkdir()
        (tmp_path / "mlruns" / "0" / "meta.yaml").write_text(
            'artifact_location: x\nexperiment_id: "0"\nlifecycle_stage: active\nname: Default\n'
        )
    run_tiny(tmp_path / "run", "tracker=mlflow", "rounds=2")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("airflower")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["radio.latency_threshold_ms"] == "25.0"
    rows = read_table(tmp_path / "run" / "rounds.csv")
    history = client.get_metric_history(run.info.run_id, "accuracy_mean")
    assert [(m.step, m.value) for m in history] == [
        (i, float(r["accuracy_mean"])) for i, r in enumerate(rows, 1)
    ]
    assert not list(tmp_path.glob("mlruns/*/*/metrics"))


def test_an_mlflow_that_cannot_be_reached_ends_the_job_before_training(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # "discard": nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="tracker = mlflow: MLflow does not take the run"):
        run_tiny(tmp_path / "run", "tracker=mlflow")
    assert read_table(tmp_path / "run" / "rounds.csv") == []


def test_a_study_is_tracked_too(tmp_path, scalars):
    settings = compose_settings(["study.name=planning", "study.draws=3", "tracker=tensorboard"])
    run_study(settings, tmp_path)
    tags = {entry[0] for entry in scalars if len(entry) == 3}
    assert {entry[2] for entry in scalars if len(entry) == 3} == {0, 1, 2}
    assert any(tag.startswith("draw/") for tag in tags)
