"""What was trained can be taken out, and predicts what the run's last test measured, to the sample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.export import ExportError, export, main
from server_app.job import prepare
from server_app.results import ResultsError, Run, load_run, load_runs
from server_app.settings import compose_settings
from task.trained import TrainedModel
from tests.end_to_end.jobs import SMALL, run_small


def accuracy(run: Run, device: int, row: int = -1) -> float:
    table = run.devices
    mine = np.asarray(table["device"]) == device
    return float(np.asarray(table["test_accuracy"])[mine][row])


def right(model: TrainedModel, overrides: tuple[str, ...], device: int) -> float:
    """Return the share of a device's test samples, as they are stored, that the model gets right."""
    task = prepare(compose_settings([*SMALL, *overrides])).task
    part = torch.from_numpy(task.parts[device].test)
    inputs, labels = task.data.test
    return float((model.predict(inputs[part]) == labels[part]).double().mean())


CASES: dict[str, tuple[str, ...]] = {
    "personal part": ("rounds=3",),
    "nothing personal": ("scheme=pruning_only", "rounds=3"),
    "ditto": ("training=ditto", "rounds=3"),
    "batch norm": ("model=resnet8", "model.options.norm=batch", "rounds=1", "fleet.num_devices=2"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_device_model_predicts_what_the_last_test_measured(tmp_path: Path, case: str) -> None:
    run_small(tmp_path, *CASES[case])
    run = load_run(tmp_path)
    for device in (0, 1):
        model = run.model(device)
        assert right(model, CASES[case], device) == pytest.approx(accuracy(run, device), abs=1e-12)
        assert f"device {device} after round" in model.origin


def test_an_exported_program_is_the_model(tmp_path: Path) -> None:
    run_small(tmp_path, "rounds=2")
    model = load_run(tmp_path).model(1)
    export(model, tmp_path / "out" / "model.pt2")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    pictures = torch.randint(0, 256, (5, *model.facts.sample_shape), dtype=torch.uint8)
    torch.testing.assert_close(program(pictures), model(pictures))
    torch.testing.assert_close(program(pictures[:1]), model(pictures[:1]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt2"]


def test_the_weights_are_written_with_what_they_are(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    run_small(tmp_path, "rounds=2")
    assert main([str(tmp_path), "--device", "2", "--to", str(tmp_path / "m.safetensors")]) == 0
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["airflower"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    network = load_run(tmp_path).model(2).network
    assert facts["model"]["name"] == "mlp"
    assert weights.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)


def test_onnx_predicts_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run_small(tmp_path, "rounds=2")
    model = load_run(tmp_path).model(0)
    export(model, tmp_path / "m.onnx")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    pictures = torch.randint(0, 256, (7, *model.facts.sample_shape), dtype=torch.uint8)
    (outputs,) = session.run(None, {"samples": pictures.numpy()})
    np.testing.assert_allclose(outputs, model(pictures).detach().numpy(), atol=1e-5)


def test_tables_and_configuration_are_there(tmp_path: Path) -> None:
    for seed in (1, 2):
        run_small(tmp_path / str(seed), "rounds=2", f"seed={seed}")
    runs = load_runs(tmp_path)
    assert [run.config["seed"] for run in runs] == [1, 2]
    assert list(runs[0].rounds["round"]) == [1, 2]
    assert len(runs[0].devices["device"]) == 20
    assert runs[0].summary["status"] == "completed"
    assert set(runs[0].timing) >= {"round"}


def refusal(tmp_path: Path, capsys: Any, *arguments: str) -> str:
    assert main([str(tmp_path), *arguments]) == 1
    return str(capsys.readouterr().err)


def test_what_cannot_be_taken_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "m.pt2")
    assert "is no run folder" in refusal(tmp_path, capsys, "--to", out)
    run_small(tmp_path, "rounds=1")
    assert "has a personal part" in refusal(tmp_path, capsys, "--to", out)
    assert "device = 10; the run has devices 0 to 9" in refusal(
        tmp_path, capsys, "--device", "10", "--to", out
    )
    assert ".safetensors, .pt2, .onnx" in refusal(tmp_path, capsys, "--device", "1", "--to", "m.pth")
    (tmp_path / "task.json").write_text("{}")
    assert "is not readable" in refusal(tmp_path, capsys, "--device", "1", "--to", out)
    (tmp_path / "task.json").unlink()
    assert "task.json is missing" in refusal(tmp_path, capsys, "--device", "1", "--to", out)
    with pytest.raises(ResultsError, match="no run folder at or below"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="the ending decides"):
        export(TrainedModel.__new__(TrainedModel), Path("m.bin"))
