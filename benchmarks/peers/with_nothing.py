"""A plain loop, its devices shared out to as many processes as there are threads."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import torch

from benchmarks.peers.given import Given, done, finish, folder_of_side, load, steps


def _train(given: Given, connection: Connection) -> None:
    """Train the devices that come through the connection; answer with the sum of their weights."""
    torch.set_num_threads(1)
    model = given.network()
    own = dict(model.named_parameters())
    kept: dict[int, dict[str, torch.Tensor]] = {}
    names = [name for name in own if name not in given.personal]
    while (order := connection.recv()) is not None:
        number, devices, weights = order
        total = {name: torch.zeros_like(own[name]) for name in names}
        for device in devices:
            with torch.no_grad():
                for name, parameter in own.items():
                    mine = kept.get(device, given.weights)
                    parameter.copy_(mine[name] if name in given.personal else weights[name])
            steps(given, model, number, device)
            with torch.no_grad():
                for name in names:
                    total[name] += own[name]
                if given.personal:
                    kept[device] = {name: own[name].clone() for name in given.personal}
        connection.send(total)


def main() -> None:
    """Train."""
    folder = folder_of_side()
    given = load(folder)
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for _ in range(given.threads):
        mine, theirs = context.Pipe()
        processes.append(context.Process(target=_train, args=(given, theirs), daemon=True))
        processes[-1].start()
        ends.append(mine)
    weights = {name: value for name, value in given.weights.items() if name not in given.personal}
    for number, devices in enumerate(given.participants, 1):
        for place, end in enumerate(ends):
            end.send((number, devices[place :: len(ends)], weights))
        sums = [end.recv() for end in ends]
        weights = {name: sum(one[name] for one in sums) / len(devices) for name in weights}
        done(number, given)
    for end in ends:
        end.send(None)
    finish(folder, weights)


if __name__ == "__main__":
    main()
