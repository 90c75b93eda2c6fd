"""Which weights the devices of a chunk keep: ranked by trial steps, eq. (20) of Liu et al. 2024, then cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from client_app.importance import GRADIENT_FREE, ranking
from client_app.masks import Mask, select_mask, select_masks
from client_app.network import Network
from client_app.samples import noise_seeds
from protocol.training import TrainingSpec
from task.split import Layout


def trial_steps(training: TrainingSpec) -> int:
    """Return how many trial steps rank the weights: none where the ranking needs no gradient."""
    return 0 if training.importance in GRADIENT_FREE else training.importance_steps


def rank(
    network: Network,
    start: torch.Tensor,
    training: TrainingSpec,
    batches: Callable[[int], Iterable[Sequence[Any]]],
    streams: Sequence[torch.Generator],
    skip: int,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the importance (D, N_u) of the weights, and the losses of the trial steps.

    Args:
        network: of D devices, which hold the broadcast; the global part is to be trained.
        start: the broadcast, (N_u,).
        training: which ranking, and the step size of the trial steps.
        batches: from a number of steps to so many mini-batches.
        streams: of each device, for random ranks and what the network draws.
        skip: layers that the batches have behind them.
    """
    if training.importance == "random":
        devices = streams[: len(network.global_part)]
        draws = [torch.rand(start.shape, generator=stream) for stream in devices]
        return torch.stack(draws).to(start.device), []
    displacement: torch.Tensor | None = None
    losses = []
    # The steps are on a scratch copy: what they see moves no running statistics.
    buffers = network.copy_buffers() if network.buffer_names else []
    with network.drawing_from(noise_seeds(streams, "network")):
        for batch in batches(trial_steps(training)):
            if displacement is not None:
                torch.add(start, displacement, out=network.global_part)
                network.read_global_from(None)
            losses.append(network.backward(*batch, skip=skip))
            assert network.global_part.grad is not None
            if displacement is None:
                displacement = network.global_part.grad.mul(-training.global_learning_rate)
            else:
                displacement.sub_(network.global_part.grad, alpha=training.global_learning_rate)
    if buffers:
        network.load_buffers(buffers)
    if displacement is None:  # the magnitude is not a matter of gradients
        displacement = torch.zeros_like(start)
    return ranking(training.importance)(displacement, start).expand_as(network.global_part), losses


def select(
    importance: torch.Tensor, start: torch.Tensor, num_pruned: Sequence[int], protected: Mask | None
) -> torch.Tensor:
    """Return the masks, bool (D, N_u); what a diverged device gets has no meaning.

    Args:
        importance: (D, N_u).
        start: the broadcast, (N_u,).
        num_pruned: of each device.
        protected: bool (N_u,), weights that go last; None for no weight.
    """
    chosen = select_each if start.device.type == "cpu" else select_at_once
    return chosen(importance, start, num_pruned, protected)


def select_each(
    importance: torch.Tensor, start: torch.Tensor, num_pruned: Sequence[int], protected: Mask | None
) -> torch.Tensor:
    """Select one device after the other, on the processor."""
    masks = np.zeros(importance.shape, dtype=np.bool_)
    finite = torch.isfinite(importance.sum(1)).tolist()
    for mask, row, number, well in zip(masks, importance.numpy(), num_pruned, finite, strict=True):
        if well:
            mask[:] = select_mask(row, start.numpy(), number, protected=protected)
    return torch.from_numpy(masks)


def select_at_once(
    importance: torch.Tensor, start: torch.Tensor, num_pruned: Sequence[int], protected: Mask | None
) -> torch.Tensor:
    """Select all devices' masks where the tensors are."""
    return select_masks(
        importance,
        start,
        torch.tensor(num_pruned).to(start.device),
        protected=None if protected is None else torch.from_numpy(protected).to(start.device),
    )


def bias_mask(layout: Layout) -> Mask:
    """Return bool (N,), True where a vector holds biases."""
    biases = np.zeros(layout.size, dtype=np.bool_)
    for name, place in layout.slices().items():
        if name.rsplit(".", 1)[-1] == "bias":
            biases[place] = True
    return biases


def check_pruning(size: int, num_pruned: int, mask: Mask | None) -> None:
    """Check the order to prune `num_pruned` of `size` weights, with `mask` if that is not None.

    Raises:
        ValueError: if they do not fit.
    """
    if not 0 <= num_pruned <= size:
        raise ValueError(f"num_pruned = {num_pruned}; it must be in 0..{size}")
    if mask is not None and (mask.shape != (size,) or mask.dtype != np.bool_):
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; it must be bool ({size},)")
    if mask is not None and (absent := size - int(np.count_nonzero(mask))) != num_pruned:
        raise ValueError(f"mask prunes {absent} weights; num_pruned = {num_pruned}")
