"""Trackers see what the CSV records hold, and are off unless asked for."""

import math
import struct
import sys
from types import ModuleType
from typing import Any

import pytest

from experiments.studies import run_study
from keys import ConfigError
from records.recorder import read_table
from server_app.settings import compose_settings
from server_app.trackers import EventsFile, crc32c, numbers
from tests.experiments.small_sweeps import run_tiny


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    """Decode one protocol-buffer message into (field number, value) pairs."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 1:
            (value,), at = struct.unpack_from("<d", data, at), at + 8
        elif kind == 5:
            (value,), at = struct.unpack_from("<f", data, at), at + 4
        else:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


def mask(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    """Read an events file as TensorBoard does: checksums first."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        head = data[at : at + 8]
        size = struct.unpack("<Q", head)[0]
        assert struct.unpack_from("<I", data, at + 8)[0] == mask(crc32c(head))
        body = data[at + 12 : at + 12 + size]
        assert struct.unpack_from("<I", data, at + 12 + size)[0] == mask(crc32c(body))
        yield list(fields(body))
        at += 16 + size


def test_the_checksum_is_crc_32c():
    """Check values of RFC 3720, appendix B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_the_events_file_holds_the_numbers_of_the_rounds(tmp_path):
    run_tiny(tmp_path, "tracker=tensorboard", "rounds=2")
    (path,) = tmp_path.glob("events.out.tfevents.*")
    first, *rounds = events(path)
    assert dict(first)[3] == b"brain.Event:2"
    rows = read_table(tmp_path / "rounds.csv")
    assert [dict(event).get(2) for event in rounds] == [1, 2]
    for event, row in zip(rounds, rows, strict=True):
        values = {}
        for _, value in fields(dict(event)[5]):
            entry = dict(fields(value))
            values[entry[1].decode()] = entry[2]
        for name in ("accuracy_mean", "loss_mean", "latency_s", "pruning_ratio_mean"):
            assert math.isclose(values[f"round/{name}"], float(row[name]), rel_tol=1e-6)
        assert "measured/train_seconds" in values


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


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"airflower\[mlflow\]"):
        run_tiny(tmp_path, "tracker=mlflow")


def test_text_and_absent_values_are_left_out():
    assert numbers({"a": 1, "b": None, "c": "x", "d": 0.5}) == {"a": 1.0, "d": 0.5}


def test_a_tracker_that_fails_costs_its_own_entries(tmp_path, monkeypatch, caplog):
    def record(self, step, values):
        if step == 2:
            raise OSError("the server has gone")
        calls.append(step)

    calls: list[int] = []
    monkeypatch.setattr(EventsFile, "record", record)
    summary = run_tiny(tmp_path, "tracker=tensorboard", "rounds=4")
    assert (summary["rounds"], calls) == (4, [1])
    assert "tracker = tensorboard failed at step 2 and gets nothing more: the server has gone" in caplog.text


# The real things: each extra in an environment that has it.


def test_tensorboard_itself_reads_what_was_written(tmp_path):
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


def test_a_study_is_tracked_too(tmp_path):
    settings = compose_settings(["study.name=planning", "study.draws=3", "tracker=tensorboard"])
    run_study(settings, tmp_path)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    _, *draws = events(path)
    assert len(draws) == 3
    tags = {dict(fields(value))[1].decode() for _, value in fields(dict(draws[0])[5])}
    assert any(tag.startswith("draw/") for tag in tags)
