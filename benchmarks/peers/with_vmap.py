"""A plain loop on one thread that trains fifty devices at once by `torch.func.vmap`."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from benchmarks.peers.given import done, finish, folder_of_side, load

_AT_ONCE = 50


def main() -> None:
    """Train."""
    folder = folder_of_side()
    given = load(folder)
    torch.set_num_threads(1)
    model = given.network()

    def loss(weights: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(model, weights, (images,)), labels)

    gradients = vmap(grad(loss))
    weights = given.weights
    for number, devices in enumerate(given.participants, 1):
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for few in torch.split(torch.tensor(devices), _AT_ONCE):
            mine = {name: value.expand(len(few), *value.shape) for name, value in weights.items()}
            for batch in given.batches(number, 0):  # its place in the images: the same for all
                found = gradients(mine, given.images[few][:, batch], given.labels[few][:, batch])
                mine = {name: value - given.rate * found[name] for name, value in mine.items()}
            for name in total:
                total[name] += mine[name].sum(0)
        weights = {name: value / len(devices) for name, value in total.items()}
        done(number, given)
    finish(folder, weights)


if __name__ == "__main__":
    main()
