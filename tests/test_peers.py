"""The sides of the peers' table do the same steps: what they are given is our run, as tensors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.peers.given import steps, vector
from benchmarks.peers.prepare import give
from benchmarks.peers.profiles import _OF_A_ROUND
from benchmarks.peers.workloads import WORKLOADS, Workload
from tests.end_to_end.jobs import final_weights, run_job

TINY = {
    "mlp": Workload("tiny", "mlp", 4, 6, 4, participants=2, rounds=2),
    "resnet8": replace(
        WORKLOADS["W4"], devices=4, images=6, batch=4, shape=(3, 8, 8), participants=2, rounds=2
    ),
    "alternating": Workload("tiny", "lenet5", 4, 6, 4, participants=2, rounds=2, alternating=True),
}


@pytest.mark.parametrize(
    "tiny", ["mlp", "resnet8", pytest.param("alternating", marks=pytest.mark.exhaustive)]
)
def test_a_plain_loop_over_what_is_given_has_the_weights_of_our_run(tmp_path: Path, tiny):
    workload = TINY[tiny]
    run_job(tmp_path / "run", *workload.overrides())
    given = give(workload, tmp_path / "run", tmp_path, threads=1)
    assert [len(devices) for devices in given.participants] == [2, 2]
    assert bool(given.personal) == workload.alternating
    model = given.network()
    assert any(isinstance(one, nn.GroupNorm) for one in model.modules()) == (tiny == "resnet8")
    own, weights = dict(model.named_parameters()), given.weights
    kept: dict[int, dict[str, torch.Tensor]] = {}
    for number, devices in enumerate(given.participants, 1):
        uploads = []
        for device in devices:
            start = {**weights, **{name: kept.get(device, given.weights)[name] for name in given.personal}}
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(start[name])
            steps(given, model, number, device)
            uploads.append({name: parameter.detach().clone() for name, parameter in own.items()})
            kept[device] = uploads[-1]
        weights = {name: torch.stack([one[name] for one in uploads]).mean(0) for name in own}
    mine, theirs = vector(weights, given), final_weights(tmp_path / "run")
    moved = np.abs(theirs - vector(given.weights, given)).max()
    assert moved > 1e-3
    assert np.abs(mine - theirs).max() < 1e-3 * moved


def test_the_stages_of_a_profile_are_functions_that_there_are():
    root = Path(__file__).resolve().parents[1]
    for text, (file, name) in _OF_A_ROUND.items():
        places = [path for path in root.rglob(file) if "tests" not in path.parts]
        assert any(name == "__init__" or f"def {name}(" in path.read_text() for path in places), text
