"""What a network computes is what one counts by hand, each part its own."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from server_app.job import prepare
from server_app.links import device_times
from server_app.settings import compose_settings
from task.models import build_model
from task.split import split_parameters
from task.work import multiply_adds

# 4 maps of 3x3 over one channel of 28x28, then 4 * 14 * 14 inputs to 10 outputs.
CONV, LINEAR = 28 * 28 * 4 * 9, 4 * 14 * 14 * 10


def net(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(784, num_classes),
    )  # fmt: skip


def counted(model, patterns, sample):
    work = multiply_adds(model, split_parameters(model, patterns), sample)
    return work.personal, work.of_global


def test_a_convolution_and_a_linear_layer_counted_by_hand():
    model, sample = net(10), torch.zeros(1, 1, 28, 28)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert counted(model, ["0.*"], sample) == (CONV, LINEAR)
    assert counted(model, ["last:1"], sample) == (LINEAR, CONV)
    assert counted(model, [], sample) == (0, CONV + LINEAR)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # Eight positions, four gates of 64 units from 32 inputs and 64 states.
        ("lstm", 8 * 4 * 64 * (32 + 64)),
        # Two layers: queries, keys, values and their mixture, scores and sums, two linear layers.
        ("transformer", 2 * (8 * 4 * 64 * 64 + 2 * 8 * 8 * 64 + 8 * 2 * 64 * 256)),
    ],
)
def test_what_fused_kernels_compute_counts_too(name, by_hand):
    model = build_model(name, num_classes=10, sample_shape=(8,), generator=torch.Generator().manual_seed(0))
    sample = torch.zeros(1, 8, dtype=torch.int64)
    assert counted(model, ["last:1"], sample) == (640, by_hand)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 28, 28)),
        ("lenet5", (1, 28, 28)),
        ("resnet8", (3, 32, 32)),
        ("lstm", (8,)),
        ("transformer", (8,)),
    ],
)
def test_torch_counts_the_same(name, shape):
    model = build_model(name, num_classes=10, sample_shape=shape, generator=torch.Generator().manual_seed(0))
    sample = torch.zeros(1, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        model.train()(sample.expand(2, *shape))
    assert sum(counted(model, ["last:1"], sample)) == counter.get_total_flops() / 2 / 2


def test_counting_does_not_load_torchs_compiler():
    """Which takes a second, and memory in each process."""
    code = (
        "import sys, torch; from torch import nn; from task.split import split_parameters as split;"
        "from task.work import multiply_adds; net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2));"
        "assert multiply_adds(net, split(net, []), torch.zeros(1, 2, 2)).of_global == 8;"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("batch", [16, 64])
def test_times_go_by_the_multiply_adds_of_a_batch(batch):
    """A device with fewer samples than a batch computes with what it has: here 40."""
    settings = compose_settings([
        f"model.name={__name__}:net", "model.personal=[0.*]", "radio.cycles=flops",
        "radio.cycles_per_multiply_add=0.5",
        f"training.batch_size={batch}", "partition.samples_per_device=40",
        "radio.include_importance_cost=true",
    ])  # fmt: skip
    fixed, compute = device_times(prepare(settings))
    training, samples = settings.training, min(batch, 40)
    step = 0.5 * samples / settings.radio.cpu_hz
    np.testing.assert_allclose(compute, training.global_steps * step * LINEAR, rtol=1e-12)
    importance = training.importance_steps * step * LINEAR
    np.testing.assert_allclose(fixed, training.personal_steps * step * CONV + importance, rtol=1e-12)
