"""What a device does in a round: personal steps, importance, mask, masked steps.

The protocol of Liu et al. 2024, section II and Algorithm 1, with the alternating (FedAlt) and simultaneous
(FedSim) orders of Pillutla et al. 2022. With v the personal and u the shared part of one device:

1. alternating only: steps on v against the dense broadcast u, eq. (6);
2. trial steps on a scratch copy of u rank its weights, eq. (20); the least important are pruned;
3. from the *broadcast* times the mask, eq. (21), masked steps on u, eq. (22); simultaneous: on v, too.

Mini-batches of each phase come from a stream of their own, so that runs that differ only in the pruning ratio
see the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client_app.flat_model import FlatModel, Vector, as_vector
from client_app.importance import NEEDS_GRADIENT, rank_weights
from client_app.masks import Mask, select_mask
from client_app.optimizers import optimizer
from protocol.training import TrainingSpec
from task.split import Layout

FEATURE_CACHE_BYTES = 1 << 28


class DivergedError(ArithmeticError):
    """Local training left the finite numbers."""


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a device has after its part of a round.

    Attributes:
        personal: float32 (N_v,), its new personal part; stays on the device.
        shared: float32 (N_u,), its shared part, exactly 0 where pruned.
        mask: bool (N_u,), True where kept; all False means that nothing is uploaded.
        personal_loss, global_loss: mean mini-batch loss of the steps on each part; NaN where no step was
            taken. The simultaneous algorithm has one loss for both.
        personal_steps, importance_steps, global_steps: steps taken.
    """

    personal: npt.NDArray[np.float32]
    shared: npt.NDArray[np.float32]
    mask: Mask
    personal_loss: float
    global_loss: float
    personal_steps: int
    importance_steps: int
    global_steps: int


def local_round(
    model: FlatModel,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    broadcast: Vector,
    personal: Vector,
    num_pruned: int,
    spec: TrainingSpec,
    generator: torch.Generator,
    mask: Mask | None = None,
) -> LocalResult:
    """Train one device for one round; the result depends on the arguments only.

    Args:
        model: the network; its weights are overwritten.
        images: float32 (n, 1, 28, 28), the device's normalised training images, n >= 1.
        labels: int64 (n,).
        broadcast: float32 (N_u,), the server's dense shared part; not changed.
        personal: float32 (N_v,), the device's personal part; not changed. N_v may be 0.
        num_pruned: shared weights to prune, 0..N_u. 0: no importance step, plain partial personalisation.
            N_u: only the personal part trains and nothing is uploaded.
        spec: steps and step sizes.
        generator: CPU generator of the mini-batches (and of random masks).
        mask: bool (N_u,), a mask given from outside (all devices prune alike); it must prune exactly
            `num_pruned` weights, and no importance step is taken.

    Raises:
        ValueError: if shapes or numbers do not fit.
        DivergedError: if a loss or weight is not finite.
    """
    split = model.split
    start = as_vector("broadcast", broadcast, split.shared.size)
    _check(images, labels)
    check_pruning(split.shared.size, num_pruned, mask)
    personal_stream, importance_stream, global_stream = spawn(generator, 3)
    device = _Device(model, images, labels, spec)
    model.module.train()
    model.load(personal=personal, shared=start)

    nobody_hears = num_pruned == split.shared.size
    personal_losses: list[float] = []
    if split.personal.size and (spec.algorithm == "alternating" or nobody_hears):
        # Nothing can be uploaded: the simultaneous order, too, is left with its steps on v.
        together = spec.algorithm == "simultaneous"
        personal_losses = device.train_personal(
            personal_stream,
            steps=spec.global_steps if together else spec.personal_steps,
            epochs=spec.global_epochs if together else spec.personal_epochs,
        )
    if nobody_hears:
        require_finite(model.personal, personal_losses)
        return LocalResult(
            personal=model.personal.numpy().copy(),
            shared=np.zeros(split.shared.size, dtype=np.float32),
            mask=np.zeros(split.shared.size, dtype=np.bool_),
            personal_loss=mean_loss(personal_losses),
            global_loss=math.nan,
            personal_steps=len(personal_losses),
            importance_steps=0,
            global_steps=0,
        )

    importance_steps = 0
    if spec.algorithm == "alternating":
        model.train_only(shared=True)
        trial_steps = spec.importance_steps if mask is None and num_pruned > 0 else 0
        device.cache_features(trial_steps)
    if mask is None and num_pruned:
        mask, importance_steps = device.rank_and_select(start, num_pruned, importance_stream)
    global_losses = device.train_shared(start, mask if num_pruned else None, global_stream)
    if spec.algorithm == "simultaneous" and split.personal.size:
        personal_losses = global_losses
    require_finite(model.personal, personal_losses)
    require_finite(model.shared, global_losses)
    return LocalResult(
        personal=model.personal.numpy().copy(),
        shared=model.shared.numpy().copy(),
        mask=np.ones(split.shared.size, dtype=np.bool_) if mask is None else np.array(mask, dtype=np.bool_),
        personal_loss=mean_loss(personal_losses),
        global_loss=mean_loss(global_losses),
        personal_steps=len(personal_losses),
        importance_steps=importance_steps,
        global_steps=len(global_losses),
    )


class _Device:
    """The phases of a round on one device's data."""

    def __init__(
        self, model: FlatModel, images: torch.Tensor, labels: torch.Tensor, spec: TrainingSpec
    ) -> None:
        self._model = model
        self._labels = labels
        self._spec = spec
        self._images = images
        self._inputs = images
        self._forward: nn.Module = model.forward

    def train_personal(self, stream: torch.Generator, *, steps: int, epochs: int | None) -> list[float]:
        """Take steps on v, u dense and frozen, eq. (6)."""
        self._model.train_only(personal=True)
        personal = optimizer(self._model.personal, self._spec.personal_learning_rate, self._spec)
        losses = []
        for batch in self._batches(stream, steps, epochs):
            losses.append(self._gradient(batch))
            personal.step()
        return _floats(losses)

    def cache_features(self, trial_steps: int) -> None:
        """Run the frozen first layers once over the data set if the coming steps would do it more often."""
        spec, size = self._spec, int(self._labels.numel())
        batch = min(spec.batch_size, size)
        visits = trial_steps * batch + (
            spec.global_epochs * size if spec.global_epochs else spec.global_steps * batch
        )
        stages = self._model.frozen_prefix()
        if stages is None or visits <= size:
            return
        prefix, rest = stages
        with torch.no_grad():
            chunks = torch.split(self._images, max(spec.batch_size, 64))
            first = prefix(chunks[0])
            if first[0].numel() * first.element_size() * size <= FEATURE_CACHE_BYTES:
                self._inputs = torch.cat([first, *(prefix(chunk) for chunk in chunks[1:])])
                self._forward = rest

    def rank_and_select(
        self, start: torch.Tensor, num_pruned: int, stream: torch.Generator
    ) -> tuple[Mask, int]:
        """Rank the weights by trial steps on u with v frozen, eq. (20), and choose the mask."""
        spec, model = self._spec, self._model
        displacement = torch.zeros_like(start)
        steps = spec.importance_steps if spec.importance in NEEDS_GRADIENT else 0
        model.train_only(shared=True)
        losses = []
        for step, batch in enumerate(self._batches(stream, steps, None)):
            if step:
                torch.add(start, displacement, out=model.shared)
            losses.append(self._gradient(batch))
            assert model.shared.grad is not None
            displacement.sub_(model.shared.grad, alpha=spec.global_learning_rate)
        importance = rank_weights(spec.importance, displacement, start, stream)
        require_finite(torch.from_numpy(importance), _floats(losses))
        protected = None if spec.prune_bias else bias_mask(model.split.shared)
        return select_mask(importance, start.numpy(), num_pruned, protected=protected), steps

    def train_shared(self, start: torch.Tensor, mask: Mask | None, stream: torch.Generator) -> list[float]:
        """Take masked steps on u from the masked broadcast, eqs. (21), (22); simultaneous: on v, too."""
        spec, model = self._spec, self._model
        both = spec.algorithm == "simultaneous" and model.split.personal.size > 0
        model.train_only(shared=True, personal=both)
        kept = None if mask is None else torch.from_numpy(mask.astype(np.float32))
        model.load(shared=start if kept is None else start * kept)
        optimizers = [optimizer(model.shared, spec.global_learning_rate, spec)]
        if both:
            optimizers.append(optimizer(model.personal, spec.personal_learning_rate, spec))
        losses = []
        for batch in self._batches(stream, spec.global_steps, spec.global_epochs):
            losses.append(self._gradient(batch))
            for one in optimizers:
                one.step()
            if kept is not None:
                # Optimisers work entry by entry, so zeroing after the step equals masking the gradient, and
                # holds whatever the optimiser adds to it.
                model.shared.mul_(kept)
        return _floats(losses)

    def _gradient(self, batch: torch.Tensor | slice) -> torch.Tensor:
        return self._model.backward(self._forward, self._inputs[batch], self._labels[batch])

    def _batches(
        self, stream: torch.Generator, steps: int, epochs: int | None
    ) -> Iterator[torch.Tensor | slice]:
        return mini_batches(
            int(self._labels.numel()), self._spec.batch_size, stream, steps=steps, epochs=epochs
        )


def mini_batches(
    num_samples: int, batch_size: int, generator: torch.Generator, *, steps: int, epochs: int | None = None
) -> Iterator[torch.Tensor | slice]:
    """Yield the indices of successive mini-batches, shuffled anew for each pass over the data.

    With `epochs` every sample is visited once in a pass, and the last batch may be smaller; with `steps` all
    batches have min(batch_size, num_samples) images, and a pass leaves its incomplete remainder out.

    Args:
        num_samples: size n of the data set.
        batch_size: images per batch; from n on, each batch is the whole data set.
        generator: CPU generator of the order.
        steps: number of batches, if `epochs` is None.
        epochs: number of passes.
    """
    if batch_size >= num_samples:
        for _ in range(epochs or steps):
            yield slice(None)
        return
    if epochs is not None:
        for _ in range(epochs):
            yield from torch.split(torch.randperm(num_samples, generator=generator), batch_size)
        return
    for step in range(steps):
        place = step % (num_samples // batch_size)
        if place == 0:
            order = torch.randperm(num_samples, generator=generator)
        yield order[place * batch_size : (place + 1) * batch_size]


def spawn(generator: torch.Generator, number: int) -> list[torch.Generator]:
    """Return independent generators, one for each phase of a round."""
    seeds = torch.randint(0, 2**63 - 1, (number,), generator=generator)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def bias_mask(layout: Layout) -> Mask:
    """Return bool (N,), True where a vector holds biases."""
    biases = np.zeros(layout.size, dtype=np.bool_)
    for name, place in layout.slices().items():
        if name.rsplit(".", 1)[-1] == "bias":
            biases[place] = True
    return biases


def _check(images: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.ndim != 1 or labels.numel() == 0 or images.shape[:1] != labels.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must have one positive length"
        )


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


def require_finite(vector: torch.Tensor, losses: Sequence[float]) -> None:
    """Check the weights and losses of a phase.

    Raises:
        DivergedError: if one is not finite.
    """
    # The sum of finite float32 weights overflows only when they are as good as diverged, and costs a
    # twentieth of testing each.
    if not math.isfinite(float(vector.sum())) or not all(map(math.isfinite, losses)):
        finite = [loss for loss in losses if math.isfinite(loss)]
        raise DivergedError(
            f"training diverged: {len(losses) - len(finite)} of {len(losses)} losses and "
            f"{int((~torch.isfinite(vector)).sum())} of {vector.numel()} entries are not finite; "
            "a smaller learning rate or fewer local steps may help"
        )


def _floats(losses: list[torch.Tensor]) -> list[float]:
    return [float(loss) for loss in losses]


def mean_loss(losses: Sequence[float]) -> float:
    """Return the mean; NaN where no step was taken."""
    return math.fsum(losses) / len(losses) if losses else math.nan
