"""Local rounds: what devices do between a broadcast and their uploads, for one device or many at once.

The protocol is that of Liu et al. 2024, section II and Algorithm 1. With v the personal and u the global part
of a device, an algorithm (`client_app.algorithms`) puts together the phases of `client_app.phases.LocalWork`:

1. steps on v against the dense broadcast u, eq. (6);
2. trial steps on a scratch copy of u that rank its weights, eq. (20); the least important are pruned;
3. from the *broadcast* times the mask, eq. (21), masked steps on u, eq. (22).

Mini-batches of each phase come from a stream of their own, so that runs that differ only in the pruning ratio
see the same batches.

Devices whose steps have equal shapes share a chunk. What a device gets depends on no other device of its
chunk, not even on one that diverges. Nor need the devices of a chunk do the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from client_app.masks import Mask
from client_app.network import Arrays, Network, Vector, as_vector
from client_app.phases import Algorithm, LocalWork
from client_app.pruning import bias_mask, check_pruning
from client_app.results import LocalResult
from client_app.samples import Augment, SamplePool, TensorPool, filled
from protocol.training import TrainingSpec

# What a device does with the global part: its own mask, a mask from outside, no pruning, or nothing at all.
# In the order of a chunk.
_Kind = Literal["ranked", "given", "dense", "silent"]
_KINDS: tuple[_Kind, ...] = get_args(_Kind)


@dataclass(frozen=True, eq=False)
class DeviceRound:
    """One device's part of a round.

    Attributes:
        samples: int64 (n,), its samples in the training set, n >= 1.
        personal: float32 (N_v,), its personal part; not changed.
        num_pruned: global weights to prune, 0..N_u. 0: no importance step, plain partial personalisation.
            N_u: only the personal part trains and nothing is uploaded.
        generator: returns the CPU generator of the mini-batches and of random masks; called only where
            something is drawn (a device with at most `batch_size` samples has nothing to shuffle).
        mask: bool (N_u,), a mask given from outside (all devices prune alike); it must prune exactly
            `num_pruned` weights, and no importance step is taken. None: the device makes its own.
        buffers: running statistics to start from, by name; one that is not there has its first value.
        state: named arrays (N_u,) of the algorithm that the device kept; empty before its first round.
    """

    samples: npt.NDArray[np.int64]
    personal: Vector
    num_pruned: int
    generator: Callable[[], torch.Generator]
    mask: Mask | None = None
    buffers: Arrays = field(default_factory=dict)
    state: Mapping[str, Vector] = field(default_factory=dict)

    def kind(self, num_weights: int) -> _Kind:
        """Return what kind of round this is when `num_weights` are global."""
        if self.num_pruned == num_weights:
            return "silent"
        if self.num_pruned == 0:
            return "dense"
        return "ranked" if self.mask is None else "given"


class LocalTraining:
    """Trains the devices of a run; keeps the tensors of a chunk from round to round.

    Args:
        network: of one device or of many.
        pool: the training set of all devices.
        algorithm: what a round consists of.
        training: steps and step sizes.
        devices_at_once: at most so many share a chunk. On a CPU a few megabytes of weights should not be
            exceeded.

    Raises:
        ValueError: if `devices_at_once` is not positive.
    """

    def __init__(
        self,
        network: Network,
        pool: SamplePool,
        algorithm: Algorithm,
        training: TrainingSpec,
        *,
        devices_at_once: int = 1,
    ) -> None:
        if devices_at_once < 1:
            raise ValueError(f"batch_devices = {devices_at_once}; it must be at least 1")
        self._network, self._pool = network, pool
        self._algorithm, self._training = algorithm, training
        self._at_once = min(devices_at_once, network.most_devices or devices_at_once)
        self._protected = None if training.prune_bias else bias_mask(network.split.global_part)

    def rounds(
        self,
        broadcast: Vector,
        devices: Sequence[DeviceRound],
        *,
        received: Mapping[str, Vector] | None = None,
        rate: float = 1.0,
    ) -> Iterator[dict[int, LocalResult | Exception]]:
        """Train devices for one round; the results depend on the arguments only.

        Args:
            broadcast: float32 (N_u,), the server's dense global part; not changed.
            devices: their parts of the round, in any order.
            received: named vectors (N_u,) of the server, for an algorithm that has some.
            rate: factor of the learning rates in this round.

        Yields:
            For each chunk its devices' results by position in `devices`: a `LocalResult`, a ValueError if the
            order does not fit, or a DivergedError if a loss or weight is not finite.

        Raises:
            ValueError: if the broadcast has the wrong shape.
        """
        size = self._network.split.global_part.size
        start = as_vector("broadcast", broadcast, size).to(self._network.device)
        vectors = {
            name: as_vector(name, vector, size).to(self._network.device)
            for name, vector in (received or {}).items()
        }
        training = scaled(self._training, rate)
        kinds: dict[int, _Kind] = {}
        buckets: dict[tuple[bool, int], list[int]] = {}
        refused: dict[int, LocalResult | Exception] = {}
        for position, one in enumerate(devices):
            try:
                self._check(one)
            except ValueError as error:
                refused[position] = error
            else:
                kinds[position] = one.kind(size)
                buckets.setdefault(self._shape(one, kinds[position]), []).append(position)
        if refused:
            yield refused
        for positions in buckets.values():
            positions.sort(key=lambda position: _KINDS.index(kinds[position]))
            for first in range(0, len(positions), self._at_once):
                members = positions[first : first + self._at_once]
                with _exact_products(self._network.device):
                    number = Counter(kinds[member] for member in members)
                    work = LocalWork(
                        self._network,
                        self._pool,
                        self._algorithm,
                        training,
                        [devices[member] for member in members],
                        ranked=number["ranked"],
                        pruned=number["ranked"] + number["given"],
                        uploading=len(members) - number["silent"],
                        start=start,
                        received=vectors,
                        protected=self._protected,
                    )
                    self._algorithm.run(work)
                    results = work.results()
                yield dict(zip(members, results, strict=True))

    def _shape(self, one: DeviceRound, kind: _Kind) -> tuple[bool, int]:
        """Return what must be equal for equal shapes in every step."""
        training, number = self._training, len(one.samples)
        apart = kind == "silent" and self._algorithm.silent_apart
        if number <= training.batch_size:
            return apart, filled(number, training.batch_size, self._network.fill_to)
        epochs = training.personal_epochs or training.global_epochs
        return apart, number if epochs else training.batch_size + 1

    def _check(self, one: DeviceRound) -> None:
        split = self._network.split
        if one.samples.ndim != 1 or one.samples.size == 0:
            raise ValueError(f"samples has shape {one.samples.shape}; it must be (n,) with n >= 1")
        if one.personal.shape != (split.personal.size,):
            raise ValueError(
                f"personal has shape {tuple(one.personal.shape)}; the model needs ({split.personal.size},)"
            )
        check_pruning(split.global_part.size, one.num_pruned, one.mask)
        for name in self._algorithm.keeps:
            if name in one.state and one.state[name].shape != (split.global_part.size,):
                raise ValueError(
                    f"the device kept {name!r} of shape {tuple(one.state[name].shape)}; "
                    f"the algorithm needs ({split.global_part.size},)"
                )


def scaled(training: TrainingSpec, rate: float) -> TrainingSpec:
    """Return the training of a round whose learning rates are multiplied by `rate`."""
    if rate == 1.0:
        return training
    return replace(
        training,
        personal_learning_rate=rate * training.personal_learning_rate,
        global_learning_rate=rate * training.global_learning_rate,
    )


def local_round(
    network: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    broadcast: Vector,
    personal: Vector,
    num_pruned: int,
    algorithm: Algorithm,
    training: TrainingSpec,
    generator: torch.Generator,
    mask: Mask | None = None,
    buffers: Arrays | None = None,
    augment: Augment | None = None,
    state: Mapping[str, Vector] | None = None,
    received: Mapping[str, Vector] | None = None,
    rate: float = 1.0,
) -> LocalResult:
    """Train one device for one round.

    Args:
        network: its weights are overwritten.
        images: (n, ...), the device's training samples as the network takes them, n >= 1.
        labels: targets (n, ...).
        broadcast: float32 (N_u,), the server's dense global part; not changed.
        personal, num_pruned, mask, state: as in `DeviceRound`.
        algorithm, training: as in `LocalTraining`.
        generator: CPU generator of the mini-batches (and of random masks, dropout and augmentation).
        buffers: as in `DeviceRound`.
        augment: of its batches.
        received, rate: as in `LocalTraining.rounds`.

    Raises:
        ValueError: if shapes or numbers do not fit.
        DivergedError: if a loss or weight is not finite.
    """
    if labels.ndim == 0 or labels.numel() == 0 or images.shape[:1] != labels.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must have one positive length"
        )
    one = DeviceRound(
        np.arange(len(labels)), personal, num_pruned, lambda: generator, mask, buffers or {}, state or {}
    )
    local = LocalTraining(network, TensorPool(images, labels, augment), algorithm, training)
    for chunk in local.rounds(broadcast, [one], received=received, rate=rate):
        result = chunk[0]
        if isinstance(result, Exception):
            raise result
        return result
    raise AssertionError("a round of one device has one result")


def _exact_products(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which convolutions neither round float32 to 10 bits nor vary from run to run."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
