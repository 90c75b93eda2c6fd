"""The lean optimisers are torch.optim's, bit for bit."""

import pytest
import torch

from client_app.optimizers import optimizer
from protocol.training import TrainingSpec


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
def test_steps_equal_those_of_torch(name, momentum, decay):
    rng = torch.Generator().manual_seed(0)
    mine = torch.randn(5000, generator=rng)
    theirs = mine.clone()
    spec = TrainingSpec(optimizer=name, momentum=momentum, weight_decay=decay)
    if name == "adam":
        reference: torch.optim.Optimizer = torch.optim.Adam([theirs], lr=0.01, weight_decay=decay, fused=True)
    else:
        reference = torch.optim.SGD([theirs], lr=0.01, momentum=momentum, weight_decay=decay)
    steps = optimizer(mine, 0.01, spec)
    for _ in range(5):
        mine.grad = torch.randn(5000, generator=rng)
        theirs.grad = mine.grad.clone()
        steps.step()
        reference.step()
    assert torch.equal(mine, theirs)
