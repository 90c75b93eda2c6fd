"""One batch before training: what is wrong with a network, a loss or a metric is said with its key."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from task import Dataset
from task.build import Learning, TaskError, build_task
from task.check import check_task

IMAGES = torch.linspace(-1.0, 1.0, 12 * 4).reshape(12, 4)
LABELS = torch.arange(12) % 3
DATA = Dataset(train=(IMAGES, LABELS), test=(IMAGES, LABELS), num_classes=3)


class Net(nn.Module):
    """Its parts are what the tests break."""

    def __init__(self, inputs: int = 4, outputs: int = 3, scale: float = 1.0, fewer: int = 0) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, outputs)
        self.scale, self.fewer = scale, fewer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)[self.fewer :] * self.scale
        return out


def task_of(net: nn.Module, monkeypatch: pytest.MonkeyPatch, data: Dataset = DATA, **learning: Any) -> Any:
    monkeypatch.setattr(f"{__name__}.made", lambda num_classes: net)
    return build_task(
        dataset=data,
        parts=None,
        num_devices=2,
        model={"name": f"{__name__}:made", "options": {}},
        personal=[],
        deal=np.random.default_rng(0),
        init=torch.Generator().manual_seed(0),
        learning=Learning(**learning),
    )


def made(num_classes: int) -> nn.Module:
    raise NotImplementedError


def lost(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.sum(1) / 0.0


def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    ("net", "learning", "message"),
    [
        (Net(inputs=5), {}, r"model.name = net: the network fails on a batch \(8, 4\): RuntimeError: .*mat1"),
        (
            Net(outputs=2),
            {},
            r"returns \(8, 2\); for labels of 3 classes \(8, 3\) is expected; .*num_classes = 3",
        ),
        (Net(outputs=5), {}, r"returns \(8, 5\); for labels of 3 classes \(8, 3\) is expected"),
        (Net(fewer=2), {}, r"returns \(6, 3\) for 8 samples; the samples are to be in front"),
        (Net(scale=float("nan")), {}, "loss of the first batch is nan .*outputs are not finite.*-1 to "),
        (Net(), {"loss": f"{__name__}:lost"}, "loss of the first batch is (nan|-?inf) .*outputs are finite"),
        (Net(), {"loss": f"{__name__}:fails"}, r"task.loss = .*fails on outputs \(8, 3\).*no such luck"),
        (Net(), {"metrics": [f"{__name__}:fails"]}, "task.metrics = .*fails on outputs .*no such luck"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(monkeypatch, net, learning, message):
    task = task_of(net, monkeypatch, **learning)
    with pytest.raises(TaskError, match=message):
        check_task(task, batch_size=8, model_name="net")


def test_samples_that_are_not_finite_are_found(monkeypatch):
    images = IMAGES.clone()
    images[0, 0] = torch.inf
    data = Dataset(train=(images, LABELS), test=(IMAGES, LABELS), num_classes=3)
    with pytest.raises(TaskError, match="not finite"):
        check_task(task_of(Net(), monkeypatch, data), batch_size=12, model_name="net")


def test_nothing_is_left_of_the_check(monkeypatch):
    """Weights, running statistics and the global generator are as before."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    task = task_of(net, monkeypatch)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    random = torch.random.get_rng_state()
    check_task(task, batch_size=8, model_name="net")
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert task.model.training == net.training
    assert all(parameter.grad is None for parameter in task.model.parameters())
