"""A node answers with its own model, from what it wrote itself; no fleet is started."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args
from PIL import Image

from client_app import device
from client_app.own_model import StateError, own_model
from deploy import cli
from deploy.predict import answers
from deploy.supernode import NodeOptions, with_state_dir
from protocol.arrays import vectors_record, weights_record
from protocol.messages import EvaluateOrder, TrainOrder
from server_app.job import prepare
from server_app.settings import compose_settings
from task.split import persistent_buffers

INDEX = 1
SMALL = (
    "model=mlp", "fleet.num_devices=3", "partition.samples_per_device=60", "training.optimizer=sgd",
    "training.global_learning_rate=0.05", "training.personal_learning_rate=0.05",
    "training.global_steps=20", "partition.test_samples_per_device=20",
)  # fmt: skip


def _node(tmp_path, *overrides):
    """Let a node train for two rounds and be tested; return its context, its job and the global parts."""
    job = prepare(compose_settings([*SMALL, *overrides]))
    config: dict[str, Any] = {"partition-id": INDEX, "num-partitions": 3, "state-dir": str(tmp_path)}
    context = Context(1, INDEX, config, RecordDict(), {})
    spec, rng = job.spec.to_json(), np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal(job.initial_weights.size).astype(np.float32)
    parts = [job.initial_weights, job.initial_weights + noise, job.initial_weights - noise]
    first = {name: buffer.flatten().numpy() for name, buffer in persistent_buffers(job.task.model).items()}
    shared = {name: first[name] for name in job.split.shared_buffers}
    more: dict[str, Any] = {"run": "r", "buffers": vectors_record(shared) if shared else None}
    for number in (1, 2):
        device.train(TrainOrder(number, 50, spec, weights_record(parts[number - 1]), **more), context)
    tested = device.test(EvaluateOrder(2, spec, weights_record(parts[2]), **more), context)
    return job, tested, context


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.algorithm=ditto", "training.options.lam=0.1", "model.personal=[]"),
        ("model=resnet8", "model.options.width=2", "personalisation=fedbn", "training.global_steps=3"),
        ("model=resnet8", "model.options.width=2", "model.buffers=shared", "training.global_steps=3"),
    ],
    ids=["personal part", "ditto", "fedbn", "shared statistics"],
)
def test_it_predicts_what_the_node_was_tested_with_to_the_sample(tmp_path, overrides):
    job, tested, context = _node(tmp_path, *overrides)
    context.state.clear()
    model = own_model(tmp_path)
    part = job.task.parts[INDEX]
    images, labels = (job.task.data.test[i][torch.from_numpy(part.test)] for i in (0, 1))
    assert float((model.predict(images) == labels).float().mean()) == pytest.approx(tested.accuracy)
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    assert float(loss.detach()) == pytest.approx(tested.loss, rel=1e-5)
    assert "round 2" in model.origin
    assert f"device {INDEX}" in model.origin


def test_a_picture_is_answered_by_its_label_from_the_command_line(tmp_path, capsys):
    job, _, _ = _node(tmp_path / "state")
    place = int(job.task.parts[INDEX].test[0])
    image = job.task.data.test[0][place]
    path = tmp_path / "digit.png"
    Image.fromarray(image[0].numpy()).save(path)
    assert cli.supernode(["predict", "--state-dir", str(tmp_path / "state"), "--top", "2", str(path)]) == 0
    said = capsys.readouterr().out.split()
    model = own_model(tmp_path / "state")
    assert said[0] == str(path)
    assert int(said[1]) == int(model.predict(image[None])[0])
    assert float(said[2]) >= float(said[4]) > 0
    np.save(tmp_path / "many.npy", job.task.data.test[0][:3].numpy())
    lines = list(answers(model, tmp_path / "many.npy"))
    expected = model.predict(job.task.data.test[0][:3]).tolist()
    assert [int(line.split()[1]) for line in lines] == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--run", "another"], "another holds no model.*There: .*-r"),
        (["--device", "7"], r"devices \[1\], none of device 7"),
        (["--top", "0"], "--top 0"),
        ([], "flat.npy holds float64.*the model takes uint8 \\(n, 1, 28, 28\\)"),
    ],
)
def test_what_cannot_be_answered_is_said(tmp_path, capsys, arguments, text):
    _node(tmp_path / "state")
    np.save(tmp_path / "flat.npy", np.zeros((2, 5)))
    given = ["predict", "--state-dir", str(tmp_path / "state"), *arguments, str(tmp_path / "flat.npy")]
    assert cli.supernode(given) == 1
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(capsys.readouterr().err)


def test_a_damaged_part_is_passed_over_for_the_one_before_and_an_empty_folder_named(tmp_path):
    _node(tmp_path)
    newest = max(tmp_path.rglob("device-*-round-*.npz"))
    newest.write_bytes(newest.read_bytes()[:-40])
    assert "personal part of round 1" in own_model(tmp_path).origin
    with pytest.raises(StateError, match="holds no model of a node"):
        own_model(tmp_path / "nowhere")


def test_only_the_last_global_part_is_kept_and_only_its_owner_may_read_it(tmp_path):
    _node(tmp_path)
    (only,) = tmp_path.rglob("device-*-global-*.npz")
    assert only.name.endswith("global-000002.npz")
    assert only.stat().st_mode & 0o077 == 0


def test_a_node_keeps_its_personal_part_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ä state"))
    config = "partition-id=3 num-partitions=4"
    for given in (["--insecure", "--node-config", config], [f"--node-config={config}"]):
        arguments, note = with_state_dir(given)
        folder = tmp_path / "ä state" / "airflower" / "device-3"
        assert str(folder) in note
        assert folder.is_dir()
        read = NodeOptions.read(arguments).node_config
        assert parse_config_args([read])["state-dir"] == str(folder)
    for own in ('state-dir="/mine"', 'state-dir=""'):
        assert with_state_dir(["--node-config", f"{config} {own}"]) == (
            ["--node-config", f"{config} {own}"],
            "",
        )
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    arguments, note = with_state_dir(["--node-config", config])
    assert arguments == ["--node-config", config]
    assert "a restart loses" in note
