import pytest
import torch
from torch import nn

from client_app.evaluation import evaluate
from client_app.network import ModuleNetwork
from task.models import build_model
from task.split import split_parameters


def test_metrics_are_those_of_the_joined_model_whatever_the_batch_size():
    module = build_model("lenet5", generator=torch.Generator().manual_seed(0))
    model = ModuleNetwork(module, split_parameters(module, ["conv*"]))
    personal, global_part = 0.5 * model.personal[0], 2.0 * model.global_part[0]
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(23, 1, 28, 28, generator=generator), torch.randint(0, 10, (23,))
    plain = build_model("lenet5", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.mul_(0.5 if name.startswith("conv") else 2.0)
        logits = plain(images)
    for batch_size in (1, 7, 100):
        found = evaluate(
            model,
            global_part=global_part,
            personal=personal,
            images=images,
            labels=labels,
            batch_size=batch_size,
        )
        assert found.num_samples == 23
        assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
        assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, global_part=global_part, personal=personal, images=images[:0], labels=labels[:0])
