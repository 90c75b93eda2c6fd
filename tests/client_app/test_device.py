"""What a device answers to an order, and what it keeps."""

import hashlib
import sys

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client_app import device
from protocol import own_files
from protocol.arrays import mask_record, weights_record
from protocol.fields import MessageError
from protocol.messages import EvaluateOrder, HelloOrder, SaveOrder, TrainOrder
from radio import payload
from server_app.job import prepare
from server_app.settings import compose_settings

DEVICES, N = 3, 260
SMALL = (
    "model=mlp", "model.personal=[fc1*]", f"fleet.num_devices={DEVICES}", "partition.samples_per_device=33",
    "partition.test_samples_per_device=20", "training.optimizer=sgd", "training.global_learning_rate=0.1",
)  # fmt: skip


def _context(index=1, **config):
    return Context(1, index, {"partition-id": index, "num-partitions": DEVICES, **config}, RecordDict(), {})


def _job(*overrides):
    # Where everything is global, to name the personal part is refused.
    small = [one for one in SMALL if "scheme=fedavg" not in overrides or "personal" not in one]
    return prepare(compose_settings([*small, *overrides]))


def _order(job, num_pruned=100, number=1, **more):
    return TrainOrder(number, num_pruned, job.spec.to_json(), weights_record(job.initial_weights), **more)


def _steps(report):
    """Recover the weight-steps of a round from the two times that a device reports."""
    seconds = report.metrics["measured-train-seconds"]
    return seconds / report.metrics["measured-seconds-per-weight-step"]


def test_what_the_devices_of_a_run_share_is_made_once(monkeypatch):
    """What looks at signatures takes longer than a tiny network's steps, and so is not done for a report."""
    job, context = _job(), _context()
    first = device.train(_order(job), context)

    def again(*_):
        raise AssertionError("made anew")

    monkeypatch.setattr("inspect.signature", again)
    second = device.train(_order(job, number=2), context)
    assert _steps(second) == pytest.approx(_steps(first))


def test_a_node_finds_the_modules_of_its_own_working_directory(tmp_path, monkeypatch):
    """The server's folder is not the node's: only the name of a network travels, not its file."""
    (tmp_path / "on_this_node.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))\n"
    )
    monkeypatch.setenv(own_files.VARIABLE, str(tmp_path))
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    job = _job("scheme=fedavg", "model.name=on_this_node:net")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "on_this_node")
    device.run_context.cache_clear()
    assert device.train(_order(job, num_pruned=0), _context()).payload is not None


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        # v: 25 x 784 + 25 = 19 625 weights, u: 260; tau_v v + (importance + tau_u) u
        (("training.personal_steps=3", "training.global_steps=4"), 3 * 19625 + (1 + 4) * 260),
        (("training.importance_steps=2",), 2 * 19625 + (2 + 2) * 260),
        (("scheme=simultaneous", "training.global_steps=5"), 5 * 19625 + (1 + 5) * 260),
        # 33 images make 5 batches of 8
        (
            ("training.batch_size=8", "training.personal_epochs=2", "training.global_epochs=3"),
            2 * 5 * 19625 + (1 + 3 * 5) * 260,
        ),
        (("scheme=fedavg",), (1 + 2) * 19885),
    ],
)
def test_times_are_reported_per_weight_and_step(overrides, steps):
    job = _job(*overrides)
    report = device.train(_order(job, 0), _context())
    assert _steps(report) == pytest.approx(steps)
    assert report.metrics["measured-compute-seconds"] >= report.metrics["measured-train-seconds"]
    assert report.num_examples == 33
    assert "stated-uplink-bps" not in report.metrics
    assert "state-set-aside" not in report.metrics


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_a_digital_upload_is_the_weights_and_an_analog_one_the_update(bits):
    digital = _job(f"radio.bits_per_weight={bits}")
    analog = _job("scheme=aircomp_pruned", "air.num_selected=2")
    received = [
        payload.decode(device.train(_order(job), _context()).payload.tobytes(), num_weights=N)
        for job in (digital, analog)
    ]
    assert [upload.bits for upload in received] == [bits, 32]
    assert [upload.num_kept for upload in received] == [160, 160]
    assert np.array_equal(received[0].mask, received[1].mask)
    step = float(np.ptp(received[0].values)) / 254 if bits == 8 else 2.0**-10
    start = digital.initial_weights[received[0].index]
    np.testing.assert_allclose(received[0].values, start + received[1].values, atol=step)
    assert 0 < np.abs(received[1].values).max() < 0.5


def test_a_mask_of_the_server_is_used_and_a_device_that_keeps_nothing_sends_nothing():
    job = _job()
    mask = np.arange(N) % 4 == 0
    report = device.train(_order(job, N - 65, mask=mask_record(mask)), _context())
    assert np.array_equal(payload.decode(report.payload.tobytes(), num_weights=N).mask, mask)
    silent = device.train(_order(job, N), _context())
    assert silent.payload is None
    assert silent.metrics["personal-loss"] > 0
    assert "global-loss" not in silent.metrics


def test_devices_and_rounds_have_batches_of_their_own():
    job = _job("training.batch_size=4")
    uploads = {
        (index, number): device.train(_order(job, 0, number), _context(index)).payload.tobytes()
        for index in range(DEVICES)
        for number in (1, 2)
    }
    assert len(set(uploads.values())) == 6
    assert device.train(_order(job, 0), _context(2)).payload.tobytes() == uploads[2, 1]


def test_the_personal_part_stays_with_the_device_and_is_what_it_is_tested_with(tmp_path):
    job = _job("training.personal_learning_rate=0.2")
    context, spec = _context(), job.spec.to_json()
    weights = weights_record(job.initial_weights)
    test = EvaluateOrder(5, spec, weights)
    device.save(SaveOrder(directory=str(tmp_path / "empty"), round=0, spec=spec), context)
    assert not list(tmp_path.rglob("*.*"))  # there is none yet
    before = device.test(test, context)
    for number in range(1, 6):
        device.train(_order(job, N, number), context)
    after = device.test(test, context)
    assert before.num_samples == after.num_samples == 20
    assert after.loss < 0.9 * before.loss
    assert device.test(test, _context()).loss == before.loss  # another device of that number: nothing yet


def test_a_stored_part_makes_those_of_replaced_runs_go(tmp_path):
    """As the order is read from the wire; the run that is not named stays, and so it does without a part."""
    job = _job()
    spec, context = job.spec.to_json(), _context(**{"state-dir": str(tmp_path)})
    for run in ("old", "needed"):
        device.train(_order(job, run=run), _context(**{"state-dir": str(tmp_path)}))
    told = SaveOrder("", 2, spec, discard=("old",), run="new", resume_run="needed", resume_part=1)
    told = SaveOrder.from_records(told.to_records())
    assert (told.discard, told.resume_run, told.resume_part) == (("old",), "needed", 1)
    names = {path.name: path for path in tmp_path.iterdir()}
    device.train(_order(job, number=2, run="new", resume_run="needed", resume_part=1), context)
    assert device.save(told, context).round == 2
    gone = {name for name, path in names.items() if not path.exists()}
    assert gone == {f"{job.spec.run_key}-old"}


def test_a_checkpoint_holds_the_part_after_its_round_and_its_report_says_which_bytes(tmp_path):
    job, context = _job("training.personal_learning_rate=0.2"), _context()
    spec, weights = job.spec.to_json(), weights_record(job.initial_weights)
    for number in (1, 2):
        device.train(_order(job, N, number), context)
    report = device.save(SaveOrder(directory=str(tmp_path), round=2, spec=spec), context)
    (stored,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert report.round == 2
    assert (report.size, report.sha256) == (
        stored.stat().st_size,
        hashlib.sha256(stored.read_bytes()).hexdigest(),
    )
    later = EvaluateOrder(3, spec, weights, str(tmp_path), "another run", "", 2)
    assert device.test(later, _context()).loss == device.test(EvaluateOrder(3, spec, weights), context).loss


def test_what_a_node_keeps_bears_its_round_and_a_damaged_part_is_reported(tmp_path):
    """After round n: the personal part of round n, and the global part that came with it, of round n - 1."""
    job = _job()
    for number in (4, 5):
        report = device.train(_order(job, 0, number, run="a"), _context(**{"state-dir": str(tmp_path)}))
        assert "state-set-aside" not in report.metrics
    kept = {path.name: path for path in tmp_path.rglob("device-000001-*")}
    assert sorted(kept) == [
        "device-000001-global-000004.npz", "device-000001-round-000004.npz", "device-000001-round-000005.npz",
    ]  # fmt: skip
    kept["device-000001-round-000005.npz"].write_bytes(b"damaged")
    report = device.train(_order(job, 0, 6, run="a"), _context(**{"state-dir": str(tmp_path)}))
    assert report.metrics["state-set-aside"] == 1


@pytest.mark.parametrize("rate", [0, -1.0, True, "fast"])
def test_a_rate_that_is_none_costs_the_round_and_leaves_the_personal_part(rate):
    job, context = _job(), _context()
    first = device.train(_order(job, 0), context).payload.tobytes()
    context.node_config["uplink-bps"] = rate
    with pytest.raises(MessageError, match="uplink-bps"):
        device.train(_order(job, 0, 2), context)
    context.node_config["uplink-bps"] = 2.5e6
    again = device.train(_order(job, 0, 2), context)
    assert again.metrics["stated-uplink-bps"] == 2.5e6
    untouched = _context()
    assert device.train(_order(job, 0), untouched).payload.tobytes() == first
    assert device.train(_order(job, 0, 2), untouched).payload.tobytes() == again.payload.tobytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"partition-id": "1"}, "partition-id = '1'"),
        ({"partition-id": True}, "partition-id = True"),
        ({"num-partitions": None}, "num-partitions = None"),
        ({"partition-id": 3}, "partition-id = 3.*3 devices"),
        ({"partition-id": -1}, "partition-id = -1"),
        ({"data-dir": 5}, "data-dir = 5"),
    ],
)
def test_a_node_that_is_not_set_up_right_says_what_is_wrong(config, message):
    with pytest.raises(MessageError, match=message):
        device.train(_order(_job()), _context(**config))


def test_orders_that_do_not_fit_the_model_are_refused():
    job = _job()
    order = TrainOrder(1, 0, job.spec.to_json(), weights_record(np.zeros(N - 1, np.float32)))
    with pytest.raises(MessageError, match="has 259 weights; the model has 260"):
        device.train(order, _context())
    with pytest.raises(MessageError, match="mask has 2 bytes"):
        device.train(_order(job, mask=mask_record(np.ones(9, bool))), _context())


def test_a_device_says_which_it_is_and_what_it_lacks():
    spec = _job().spec.to_json()
    for asked in ("", spec):
        said = device.introduce(HelloOrder(asked), _context(2))
        assert (said.index, said.num_devices, said.own_images, said.problem) == (2, DEVICES, False, "")
    said = device.introduce(HelloOrder(spec), _context(**{"uplink-bps": -3}))
    assert (said.index, said.num_devices) == (1, DEVICES)
    assert "uplink-bps = -3" in said.problem
    assert device.introduce(HelloOrder(""), _context(**{"uplink-bps": -3})).problem == ""
