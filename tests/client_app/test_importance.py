import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from client_app.importance import RANKINGS, exact_importance
from client_app.network import ModuleNetwork
from task.models import build_model
from task.split import split_parameters


@pytest.fixture
def small():
    module = build_model("mlp", options={"hidden": 3}, generator=torch.Generator().manual_seed(0))
    model = ModuleNetwork(module, split_parameters(module, ["fc1*"]))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 1, 28, 28, generator=generator)
    return model, images, torch.randint(0, 10, (40,), generator=generator)


def test_exact_importance_is_the_loss_change_of_removing_a_weight(small):
    """By hand for fc2.bias[4]: removing it subtracts b from one logit."""
    model, images, labels = small
    before = model.global_part.clone()
    importance = exact_importance(model, images, labels)
    assert torch.equal(model.global_part, before)
    place = model.split.global_part.slices()["fc2.bias"].start + 4
    with torch.no_grad():
        logits = model.module(images).double()
        without = logits.clone()
        without[:, 4] -= float(model.global_part[0, place])
        loss = torch.nn.functional.cross_entropy
        expected = float(loss(without, labels) - loss(logits, labels)) ** 2
    assert importance[place] == pytest.approx(expected, rel=1e-3)


def test_first_order_importance_ranks_like_the_exact_one(small):
    """(g u)^2 is the first term of the Taylor series of eq. (19): nearly equal for small weights."""
    model, images, labels = small
    model.global_part.mul_(0.1)
    exact = exact_importance(model, images, labels)
    model.train_only(global_part=True)
    model.backward(images[None], labels[None])
    step = -0.02 * model.global_part.grad[0]
    first_order = RANKINGS["first_order"](step, model.global_part[0])
    update = RANKINGS["update"](step, model.global_part[0])
    assert spearmanr(first_order, exact).statistic > 0.95
    assert np.corrcoef(first_order, exact)[0, 1] > 0.95
    assert spearmanr(update, exact).statistic > 0.2
