"""Local rounds: what devices do between a broadcast and their uploads, for one device or many at once.

The protocol is that of Liu et al. 2024, section II and Algorithm 1. With v the personal and u the global part
of a device, an algorithm (`client_app.algorithms`) puts together

1. steps on v against the dense broadcast u, eq. (6);
2. trial steps on a scratch copy of u that rank its weights, eq. (20); the least important are pruned;
3. from the *broadcast* times the mask, eq. (21), masked steps on u, eq. (22).

Mini-batches of each phase come from a stream of their own, so that runs that differ only in the pruning ratio
see the same batches.

Devices whose steps have equal shapes share a chunk. What a device gets depends on no other device of its
chunk, not even on one that diverges. Nor need the devices of a chunk do the same: those that rank weights
come first, then the others that share some, last those that share nothing, so that each phase is one of the
first so many devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from client_app.importance import NEEDS_GRADIENT, RANKINGS
from client_app.masks import Mask, select_mask, select_masks
from client_app.network import Arrays, Network, Vector, as_vector
from client_app.optimizers import optimizer
from client_app.samples import Augment, SamplePool, Samples, TensorPool, filled, noise_seeds, spawn
from protocol.training import TrainingSpec
from task.split import Layout

# What a device does with the global part: its own mask, a mask from outside, no pruning, or nothing at all.
# In the order of a chunk.
_Kind = Literal["ranked", "given", "dense", "silent"]
_KINDS: tuple[_Kind, ...] = get_args(_Kind)


class DivergedError(ArithmeticError):
    """Local training left the finite numbers."""


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
    """

    samples: npt.NDArray[np.int64]
    personal: Vector
    num_pruned: int
    generator: Callable[[], torch.Generator]
    mask: Mask | None = None
    buffers: Arrays = field(default_factory=dict)

    def kind(self, num_weights: int) -> _Kind:
        """Return what kind of round this is when `num_weights` are global."""
        if self.num_pruned == num_weights:
            return "silent"
        if self.num_pruned == 0:
            return "dense"
        return "ranked" if self.mask is None else "given"


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a device has after its part of a round.

    Attributes:
        personal: float32 (N_v,), its new personal part; stays on the device.
        global_part: float32 (N_u,), its global part, exactly 0 where pruned.
        mask: bool (N_u,), True where kept; all False means that nothing is uploaded.
        personal_loss, global_loss: mean mini-batch loss of the steps on each part; NaN where no step was
            taken. Where both parts train in one step, there is one loss for both.
        personal_steps, importance_steps, global_steps: steps taken.
        buffers: its running statistics by name.
    """

    personal: npt.NDArray[np.float32]
    global_part: npt.NDArray[np.float32]
    mask: Mask
    personal_loss: float
    global_loss: float
    personal_steps: int
    importance_steps: int
    global_steps: int
    buffers: Arrays = field(default_factory=dict)


class Algorithm(Protocol):
    """A local algorithm: which phases a round has; see `client_app.algorithms`."""

    silent_apart: ClassVar[bool]

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        ...

    def correct(self, work: LocalWork) -> None:
        """Change the gradients of a step before it is taken."""
        ...

    def personal_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on v of a round; an epoch has `batches` batches."""
        ...

    def global_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on u of a round; an epoch has `batches` batches."""
        ...


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
        self, broadcast: Vector, devices: Sequence[DeviceRound]
    ) -> Iterator[dict[int, LocalResult | Exception]]:
        """Train devices for one round; the results depend on the arguments only.

        Args:
            broadcast: float32 (N_u,), the server's dense global part; not changed.
            devices: their parts of the round, in any order.

        Yields:
            For each chunk its devices' results by position in `devices`: a `LocalResult`, a ValueError if the
            order does not fit, or a DivergedError if a loss or weight is not finite.

        Raises:
            ValueError: if the broadcast has the wrong shape.
        """
        size = self._network.split.global_part.size
        start = as_vector("broadcast", broadcast, size).to(self._network.device)
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
                    work = LocalWork(
                        self._network,
                        self._pool,
                        self._algorithm,
                        self._training,
                        [devices[member] for member in members],
                        [kinds[member] for member in members],
                        start,
                        self._protected,
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


class LocalWork:
    """A round of the devices of one chunk: the phases that an algorithm puts together.

    Attributes:
        network: the devices' copies; `.grad` of its parts is what `Algorithm.correct` may change.
        training: steps and step sizes.
        start: float32 (N_u,), the broadcast.
        uploading: how many of the devices, the first ones, share something.
        trains_global: whether the present steps are those on u.
    """

    def __init__(
        self,
        network: Network,
        pool: SamplePool,
        algorithm: Algorithm,
        training: TrainingSpec,
        devices: Sequence[DeviceRound],
        kinds: Sequence[_Kind],
        start: torch.Tensor,
        protected: Mask | None,
    ) -> None:
        self.network, self.training, self.start = network, training, start
        self._algorithm, self._devices, self._protected = algorithm, devices, protected
        number = {kind: kinds.count(kind) for kind in _KINDS}
        self._ranked, self._pruned = number["ranked"], number["ranked"] + number["given"]
        self.uploading = self._pruned + number["dense"]
        self.trains_global = False
        self._samples = Samples(network, training, pool, [one.samples for one in devices])
        # Generators are made only where something is drawn: it costs a tenth of a small device's round.
        draws = (
            not self._samples.whole
            or training.importance == "random"
            or pool.augment is not None
            or network.draws
        )
        streams = [spawn(one.generator(), 3) for one in devices] if draws else [[]] * len(devices)
        self._streams = list(zip(*streams, strict=True)) if draws else [(), (), ()]
        self._importance: torch.Tensor | None = None
        self._kept: torch.Tensor | None = None
        self._personal_losses: list[torch.Tensor] = []
        self._trial_losses: list[torch.Tensor] = []
        self._global_losses: list[torch.Tensor] = []
        network.use(len(devices))
        network.read_global_from(start)
        network.personal.copy_(_stack([one.personal for one in devices]))
        if network.buffer_names:
            network.load_buffers([one.buffers for one in devices])

    def train_personal(self, *, steps: int, epochs: int | None) -> None:
        """Take steps on v, u dense and frozen, eq. (6); none where there is no personal part."""
        if not self.network.split.personal.size:
            return
        self.network.train_only(personal=True)
        self._samples.cache_features(0, steps, epochs)
        optimizers = [optimizer(self.network.personal, self.training.personal_learning_rate, self.training)]
        self._personal_losses += self._steps(self._streams[0], steps, epochs, optimizers)
        self._samples.forget_features()

    def train_global(self, *, steps: int, epochs: int | None, personal: bool = False) -> None:
        """Prune as ordered, eq. (20), and take masked steps on u from the masked broadcast, eqs. (21), (22).

        Only of the devices that share something.

        Args:
            steps, epochs: how many steps, or passes over the data instead.
            personal: whether v moves with every step, too.
        """
        if not self.uploading:
            return
        trials = self.training.importance_steps
        if not self._ranked or self.training.importance not in NEEDS_GRADIENT:
            trials = 0
        self.network.train_only(global_part=True)
        self._go_on_with(self.uploading)
        if not personal:
            self._samples.cache_features(trials, steps, epochs)
        self._prune(trials)
        self._train_masked(steps, epochs, both=personal and self.network.split.personal.size > 0)

    def _go_on_with(self, devices: int) -> None:
        """Let the coming steps be those of the first so many devices."""
        self.network.use(devices)
        self._samples.use(devices)

    def _steps(
        self, streams: Sequence[torch.Generator], steps: int, epochs: int | None, optimizers: Sequence[Any]
    ) -> list[torch.Tensor]:
        kept = self._kept
        losses = []
        with self.network.drawing_from(noise_seeds(streams, "network")):
            for batch in self._samples.batches(streams, steps, epochs):
                losses.append(self.network.backward(*batch, skip=self._samples.skip))
                self._algorithm.correct(self)
                for one in optimizers:
                    one.step()
                if kept is not None:
                    # Optimisers work entry by entry, so zeroing after the step equals masking the gradient,
                    # and holds whatever the optimiser adds to it.
                    self.network.global_part[: len(kept)].mul_(kept)
        return losses

    def _prune(self, trials: int) -> None:
        """Find the masks of the devices that prune: ranked by themselves, or given."""
        masks = []
        if self._ranked:
            self._go_on_with(self._ranked)
            self._importance, self._trial_losses = self._rank(trials)
            masks.append(self._select(self._importance))
            self._go_on_with(self.uploading)
        if self._pruned > self._ranked:
            given = [one.mask for one in self._devices[self._ranked : self._pruned] if one.mask is not None]
            masks.append(torch.from_numpy(np.stack(given)).to(self.start.device))
        if masks:
            mask = torch.cat(masks) if len(masks) > 1 else masks[0]
            # From bytes, the conversion is seven times as fast as from bool.
            self._kept = mask.view(torch.uint8).to(torch.float32)

    def _rank(self, steps: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the importance (D, N_u) of the weights from trial steps on u, eq. (20), and the losses."""
        training, network, start = self.training, self.network, self.start
        if training.importance == "random":
            streams = self._streams[1][: len(network.global_part)]
            draws = [torch.rand(start.shape, generator=stream) for stream in streams]
            return torch.stack(draws).to(start.device), []
        displacement: torch.Tensor | None = None
        losses = []
        # The steps are on a scratch copy: what they see moves no running statistics.
        buffers = network.copy_buffers() if network.buffer_names else []
        with network.drawing_from(noise_seeds(self._streams[1], "network")):
            for batch in self._samples.batches(self._streams[1], steps, None):
                if displacement is not None:
                    torch.add(start, displacement, out=network.global_part)
                    network.read_global_from(None)
                losses.append(network.backward(*batch, skip=self._samples.skip))
                assert network.global_part.grad is not None
                if displacement is None:
                    displacement = network.global_part.grad.mul(-training.global_learning_rate)
                else:
                    displacement.sub_(network.global_part.grad, alpha=training.global_learning_rate)
        if buffers:
            network.load_buffers(buffers)
        if displacement is None:  # the magnitude is not a matter of gradients
            displacement = torch.zeros_like(start)
        return RANKINGS[training.importance](displacement, start).expand_as(network.global_part), losses

    def _select(self, importance: torch.Tensor) -> torch.Tensor:
        """Return the masks, bool (D, N_u); what a diverged device gets has no meaning."""
        on_processor = self.start.device.type == "cpu"
        return self._select_each(importance) if on_processor else self._select_at_once(importance)

    def _select_each(self, importance: torch.Tensor) -> torch.Tensor:
        masks = np.zeros(importance.shape, dtype=np.bool_)
        weights = self.start.numpy()
        finite = torch.isfinite(importance.sum(1)).tolist()
        ranked = self._devices[: len(importance)]
        for mask, row, one, well in zip(masks, importance.numpy(), ranked, finite, strict=True):
            if well:
                mask[:] = select_mask(row, weights, one.num_pruned, protected=self._protected)
        return torch.from_numpy(masks)

    def _select_at_once(self, importance: torch.Tensor) -> torch.Tensor:
        where, protected = self.start.device, self._protected
        return select_masks(
            importance,
            self.start,
            torch.tensor([one.num_pruned for one in self._devices[: len(importance)]]).to(where),
            protected=None if protected is None else torch.from_numpy(protected).to(where),
        )

    def _train_masked(self, steps: int, epochs: int | None, *, both: bool) -> None:
        network, training, kept = self.network, self.training, self._kept
        network.train_only(global_part=True, personal=both)
        number = 0 if kept is None else len(kept)
        if kept is not None:
            torch.mul(self.start, kept, out=network.global_part[:number])
        network.global_part[number:].copy_(self.start)
        network.read_global_from(None)
        optimizers = [optimizer(network.global_part, training.global_learning_rate, training)]
        if both:
            optimizers.append(optimizer(network.personal, training.personal_learning_rate, training))
        self.trains_global = True
        self._global_losses += self._steps(self._streams[2], steps, epochs, optimizers)
        self.trains_global = False
        if both:
            self._personal_losses = self._global_losses

    def results(self) -> list[LocalResult | Exception]:
        """Return each device's result or DivergedError."""
        uploading = self.uploading
        self.network.use(len(self._devices))
        personal, global_part = self.network.hand_over()
        phases = [(personal, self._personal_losses)]
        if uploading:
            phases.append((global_part[:uploading], self._global_losses))
        if self._importance is not None:
            phases.insert(0, (self._importance, self._trial_losses))
        buffers: Sequence[Arrays] = [{}] * len(self._devices)
        if self.network.buffer_names:
            buffers = self.network.copy_buffers()
        errors = self._errors(phases)
        for device, state in enumerate(buffers):
            if errors[device] is None and not all(np.isfinite(values).all() for values in state.values()):
                errors[device] = DivergedError("training diverged: running statistics are not finite")
        count, size = len(self._devices), self.network.split.global_part.size
        of_device, weights = personal.cpu().numpy(), global_part[:uploading].cpu().numpy()
        masks: list[Mask] = [] if self._kept is None else [*self._kept.cpu().numpy().astype(np.bool_)]
        masks += [np.ones(size, np.bool_)] * (uploading - len(masks))
        no_weights, no_mask = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        of_personal = _by_device(self._personal_losses, count)
        of_global = _by_device(self._global_losses, uploading)
        results: list[LocalResult | Exception] = []
        for device, error in enumerate(errors):
            uploads = device < uploading
            results.append(
                error
                or LocalResult(
                    personal=of_device[device],
                    global_part=weights[device] if uploads else no_weights,
                    mask=masks[device] if uploads else no_mask,
                    personal_loss=mean_loss(of_personal[device]),
                    global_loss=mean_loss(of_global[device] if uploads else []),
                    personal_steps=len(self._personal_losses),
                    importance_steps=len(self._trial_losses) if device < self._ranked else 0,
                    global_steps=len(self._global_losses) if uploads else 0,
                    buffers=buffers[device],
                )
            )
        return results

    def _errors(
        self, phases: Sequence[tuple[torch.Tensor, list[torch.Tensor]]]
    ) -> list[DivergedError | None]:
        """Return, for each device, the error of the first phase that left the finite numbers."""
        sums = iter(torch.cat([weights.sum(1) for weights, _ in phases]).tolist())
        losses = [_by_device(found, len(weights)) for weights, found in phases]
        errors: list[DivergedError | None] = [None] * len(self._devices)
        for (weights, _), of_phase in zip(phases, losses, strict=True):
            for device, mine in enumerate(of_phase):
                if all(map(math.isfinite, (next(sums), *mine))) or errors[device] is not None:
                    continue
                try:
                    require_finite(weights[device].cpu(), mine)
                except DivergedError as error:
                    errors[device] = error
        return errors


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
) -> LocalResult:
    """Train one device for one round.

    Args:
        network: its weights are overwritten.
        images: (n, ...), the device's training samples as the network takes them, n >= 1.
        labels: targets (n, ...).
        broadcast: float32 (N_u,), the server's dense global part; not changed.
        personal, num_pruned, mask: as in `DeviceRound`.
        algorithm, training: as in `LocalTraining`.
        generator: CPU generator of the mini-batches (and of random masks, dropout and augmentation).
        buffers: as in `DeviceRound`.
        augment: of its batches.

    Raises:
        ValueError: if shapes or numbers do not fit.
        DivergedError: if a loss or weight is not finite.
    """
    if labels.ndim == 0 or labels.numel() == 0 or images.shape[:1] != labels.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must have one positive length"
        )
    one = DeviceRound(np.arange(len(labels)), personal, num_pruned, lambda: generator, mask, buffers or {})
    local = LocalTraining(network, TensorPool(images, labels, augment), algorithm, training)
    for chunk in local.rounds(broadcast, [one]):
        result = chunk[0]
        if isinstance(result, Exception):
            raise result
        return result
    raise AssertionError("a round of one device has one result")


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


def mean_loss(losses: Sequence[float]) -> float:
    """Return the mean; NaN where no step was taken."""
    return math.fsum(losses) / len(losses) if losses else math.nan


def _stack(vectors: Sequence[Vector]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors]))


def _by_device(losses: Sequence[torch.Tensor], devices: int) -> list[list[float]]:
    """Turn one (D,) tensor for each step into one list for each device, with one copy."""
    if not losses:
        return [[]] * devices
    found: list[list[float]] = torch.stack(list(losses), 1).tolist()
    return found


def _exact_products(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which convolutions neither round float32 to 10 bits nor vary from run to run."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
