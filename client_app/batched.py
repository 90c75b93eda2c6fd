"""Local rounds of many devices as one set of tensors: for GPUs and for networks so small that calls dominate.

The protocol is that of `client_app.local_training`, with the same mini-batches, masks and numbers within
float32 rounding. Devices whose steps have equal shapes share a chunk of at most `batch_devices`; what a
device gets depends on no other device of its chunk, not even on one that diverges.

Devices with fewer samples than a batch need not have equally many: their batches are filled up, to a
multiple of eight, with samples of weight zero. Nor need the devices of a chunk do the same: those that rank
weights come first, then the others that share some, last those that share nothing, so that each phase is one
of the first so many devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client_app.flat_model import Vector, as_vector
from client_app.importance import NEEDS_GRADIENT, RANKINGS
from client_app.local_training import (
    FEATURE_CACHE_BYTES,
    DivergedError,
    LocalResult,
    bias_mask,
    check_pruning,
    mean_loss,
    mini_batches,
    require_finite,
    spawn,
)
from client_app.masks import Mask, select_mask, select_masks
from client_app.optimizers import optimizer
from client_app.precision import product_type
from client_app.stacked_model import StackedModel
from protocol.training import TrainingSpec
from task.datasets import ImageData
from task.split import Split

# What a device does with the shared part: its own mask, a mask from outside, no pruning, or nothing at all.
# In the order of a chunk.
_Kind = Literal["ranked", "given", "dense", "silent"]
_KINDS: tuple[_Kind, ...] = get_args(_Kind)
_FILL_TO = 8  # samples: few widths for fleets of all sizes, and little work in vain


@dataclass(frozen=True, eq=False)
class DeviceRound:
    """One device's part of a round.

    Attributes:
        samples: int64 (n,), its samples in the training set, n >= 1.
        personal: float32 (N_v,), its personal part; not changed.
        num_pruned: shared weights to prune, 0..N_u, as in `local_round`.
        generator: returns the CPU generator of the mini-batches and of random masks; called only where
            something is drawn (a device with at most `batch_size` samples has nothing to shuffle).
        mask: bool (N_u,), a mask given from outside, or None.
    """

    samples: npt.NDArray[np.int64]
    personal: Vector
    num_pruned: int
    generator: Callable[[], torch.Generator]
    mask: Mask | None = None

    def kind(self, num_weights: int) -> _Kind:
        """Return what kind of round this is when `num_weights` can be shared."""
        if self.num_pruned == num_weights:
            return "silent"
        if self.num_pruned == 0:
            return "dense"
        return "ranked" if self.mask is None else "given"


class BatchedTraining:
    """Trains the devices of a run in chunks; keeps the tensors of a chunk from round to round."""

    def __init__(
        self,
        module: nn.Module,
        split: Split,
        data: ImageData,
        spec: TrainingSpec,
        *,
        batch_devices: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare chunks.

        Args:
            module: the network, see `StackedModel`; its weights are not used.
            split: names and places of the parameters.
            data: the data set; its training images are copied to `device` (as bytes).
            spec: steps and step sizes.
            batch_devices: devices at once. On a CPU a few megabytes of weights should not be exceeded.
            device: "cpu", "cuda" or "cuda:0", ...

        Raises:
            ValueError: if the network cannot be batched, or `batch_devices` is not positive.
            RuntimeError: if there is no such device.
        """
        if batch_devices < 1:
            raise ValueError(f"batch_devices = {batch_devices}; it must be at least 1")
        self._device = torch.device(device)
        dtype = product_type(spec.precision, self._device)
        self._model = StackedModel(module, split, device=self._device, dtype=dtype)
        self._split, self._spec, self._batch_devices = split, spec, batch_devices
        self._data = _on_device(data, self._device)
        self._protected = None if spec.prune_bias else bias_mask(split.shared)

    def rounds(
        self, broadcast: Vector, devices: Sequence[DeviceRound]
    ) -> Iterator[dict[int, LocalResult | Exception]]:
        """Train devices for one round.

        Args:
            broadcast: float32 (N_u,), the server's dense shared part; not changed.
            devices: their parts of the round, in any order.

        Yields:
            For each chunk, what `local_round` returns or raises (ValueError, DivergedError) for each of its
            devices, by position in `devices`.

        Raises:
            ValueError: if the broadcast has the wrong shape.
        """
        start = as_vector("broadcast", broadcast, self._split.shared.size).to(self._device)
        kinds: dict[int, _Kind] = {}
        buckets: dict[tuple[bool, int], list[int]] = {}
        refused: dict[int, LocalResult | Exception] = {}
        for position, one in enumerate(devices):
            try:
                self._check(one)
            except ValueError as error:
                refused[position] = error
            else:
                kinds[position] = one.kind(self._split.shared.size)
                buckets.setdefault(self._shape(one, kinds[position]), []).append(position)
        if refused:
            yield refused
        for positions in buckets.values():
            positions.sort(key=lambda position: _KINDS.index(kinds[position]))
            for first in range(0, len(positions), self._batch_devices):
                members = positions[first : first + self._batch_devices]
                with _exact_products(self._device):
                    chunk = _Chunk(
                        self._model,
                        self._split,
                        self._spec,
                        self._data,
                        [devices[member] for member in members],
                        [kinds[member] for member in members],
                        start,
                        self._protected,
                    )
                    results = chunk.run()
                yield dict(zip(members, results, strict=True))

    def _shape(self, one: DeviceRound, kind: _Kind) -> tuple[bool, int]:
        """Return what must be equal for equal shapes in every step."""
        spec, number = self._spec, len(one.samples)
        # Where both parts train at once, a device that shares nothing takes its personal steps alone.
        apart = kind == "silent" and spec.algorithm == "simultaneous"
        if number <= spec.batch_size:
            return apart, _filled(number, spec.batch_size)
        return apart, number if spec.personal_epochs or spec.global_epochs else spec.batch_size + 1

    def _check(self, one: DeviceRound) -> None:
        if one.samples.ndim != 1 or one.samples.size == 0:
            raise ValueError(f"samples has shape {one.samples.shape}; it must be (n,) with n >= 1")
        if one.personal.shape != (self._split.personal.size,):
            raise ValueError(
                f"personal has shape {tuple(one.personal.shape)}; "
                f"the model needs ({self._split.personal.size},)"
            )
        check_pruning(self._split.shared.size, one.num_pruned, one.mask)


class _Chunk:
    """The phases of a round of devices with equal shapes."""

    def __init__(
        self,
        model: StackedModel,
        split: Split,
        spec: TrainingSpec,
        data: ImageData,
        devices: Sequence[DeviceRound],
        kinds: Sequence[_Kind],
        start: torch.Tensor,
        protected: Mask | None,
    ) -> None:
        self._model, self._split, self._spec = model, split, spec
        self._devices, self._start, self._protected = devices, start, protected
        self._number = {kind: kinds.count(kind) for kind in _KINDS}
        self._samples = _Samples(model, spec, data, devices, start.device)
        # Generators are made only where something is drawn: it costs a tenth of a small device's round.
        draws = not self._samples.whole or spec.importance == "random"
        streams = [spawn(one.generator(), 3) for one in devices] if draws else [[]] * len(devices)
        self._streams = list(zip(*streams, strict=True)) if draws else [(), (), ()]
        model.use(len(devices))
        model.read_shared_from(start)
        model.personal.copy_(_stack([one.personal for one in devices]))

    def run(self) -> list[LocalResult | Exception]:
        """Train for one round; return each device's result or DivergedError."""
        spec, samples, number = self._spec, self._samples, self._number
        together = spec.algorithm == "simultaneous"
        ranked, pruned = number["ranked"], number["ranked"] + number["given"]
        sharing = pruned + number["dense"]
        importance: torch.Tensor | None = None
        kept: torch.Tensor | None = None
        personal_losses: list[torch.Tensor] = []
        trial_losses: list[torch.Tensor] = []
        global_losses: list[torch.Tensor] = []
        shared: torch.Tensor | None = None
        if self._split.personal.size and (not sharing or not together):
            personal_losses = self._train_personal(together)
        if sharing:
            trials = spec.importance_steps if ranked and spec.importance in NEEDS_GRADIENT else 0
            self._model.train_only(shared=True)
            self._go_on_with(sharing)
            if not together:
                samples.cache_features(trials, spec.global_steps, spec.global_epochs)
            if ranked:
                self._go_on_with(ranked)
                importance, trial_losses = self._rank(trials)
                kept = self._select(importance)
                self._go_on_with(sharing)
            if pruned > ranked:
                given = self._given(ranked, pruned)
                kept = given if kept is None else torch.cat([kept, given])
            global_losses, shared = self._train_shared(kept)
            if together and self._split.personal.size:
                personal_losses = global_losses
        self._model.use(len(self._devices))
        phases = [(self._model.personal, personal_losses)]
        if shared is not None:
            phases.append((shared, global_losses))
        if importance is not None:
            phases.insert(0, (importance, trial_losses))
        errors = self._errors(phases)
        return self._results(errors, personal_losses, len(trial_losses), global_losses, shared, kept)

    def _go_on_with(self, devices: int) -> None:
        """Let the coming steps be those of the first so many devices."""
        self._model.use(devices)
        self._samples.use(devices)

    def _train_personal(self, together: bool) -> list[torch.Tensor]:
        spec, model, samples = self._spec, self._model, self._samples
        steps = spec.global_steps if together else spec.personal_steps
        epochs = spec.global_epochs if together else spec.personal_epochs
        model.train_only(personal=True)
        samples.cache_features(0, steps, epochs)
        personal = optimizer(model.personal, spec.personal_learning_rate, spec)
        losses = []
        for batch in samples.batches(self._streams[0], steps, epochs):
            losses.append(model.backward(*batch, skip=samples.skip))
            personal.step()
        samples.forget_features()
        return losses

    def _rank(self, steps: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the importance (D, N_u) of the weights from trial steps on u, eq. (20), and the losses."""
        spec, model, start = self._spec, self._model, self._start
        if spec.importance == "random":
            streams = self._streams[1][: len(model.shared)]
            draws = [torch.rand(start.shape, generator=stream) for stream in streams]
            return torch.stack(draws).to(start.device), []
        displacement: torch.Tensor | None = None
        losses = []
        for batch in self._samples.batches(self._streams[1], steps, None):
            if displacement is not None:
                torch.add(start, displacement, out=model.shared)
                model.read_shared_from(None)
            losses.append(model.backward(*batch, skip=self._samples.skip))
            assert model.shared.grad is not None
            if displacement is None:
                displacement = model.shared.grad.mul(-spec.global_learning_rate)
            else:
                displacement.sub_(model.shared.grad, alpha=spec.global_learning_rate)
        if displacement is None:  # the magnitude is not a matter of gradients
            displacement = torch.zeros_like(start)
        return RANKINGS[spec.importance](displacement, start).expand_as(model.shared), losses

    def _select(self, importance: torch.Tensor) -> torch.Tensor:
        """Return the masks, bool (D, N_u); what a diverged device gets has no meaning."""
        on_processor = self._start.device.type == "cpu"
        return self._select_each(importance) if on_processor else self._select_at_once(importance)

    def _select_each(self, importance: torch.Tensor) -> torch.Tensor:
        masks = np.zeros(importance.shape, dtype=np.bool_)
        weights = self._start.numpy()
        finite = torch.isfinite(importance.sum(1)).tolist()
        ranked = self._devices[: len(importance)]
        for mask, row, one, well in zip(masks, importance.numpy(), ranked, finite, strict=True):
            if well:
                mask[:] = select_mask(row, weights, one.num_pruned, protected=self._protected)
        return torch.from_numpy(masks)

    def _select_at_once(self, importance: torch.Tensor) -> torch.Tensor:
        where, protected = self._start.device, self._protected
        return select_masks(
            importance,
            self._start,
            torch.tensor([one.num_pruned for one in self._devices[: len(importance)]]).to(where),
            protected=None if protected is None else torch.from_numpy(protected).to(where),
        )

    def _given(self, first: int, end: int) -> torch.Tensor:
        masks = [one.mask for one in self._devices[first:end] if one.mask is not None]
        return torch.from_numpy(np.stack(masks)).to(self._start.device)

    def _train_shared(self, mask: torch.Tensor | None) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Take masked steps on u from the masked broadcast, eqs. (21), (22); simultaneous: on v, too.

        Args:
            mask: of the first devices; the others prune nothing. None: nobody does.

        Returns:
            The losses and the masked weights, (D, N_u).
        """
        spec, model, samples = self._spec, self._model, self._samples
        both = spec.algorithm == "simultaneous" and self._split.personal.size > 0
        model.train_only(shared=True, personal=both)
        # From bytes, the conversion is seven times as fast as from bool.
        kept = None if mask is None else mask.view(torch.uint8).to(torch.float32)
        number = 0 if kept is None else len(kept)
        masked = model.shared[:number]
        if kept is not None:
            torch.mul(self._start, kept, out=masked)
        model.shared[number:].copy_(self._start)
        model.read_shared_from(None)
        optimizers = [optimizer(model.shared, spec.global_learning_rate, spec)]
        if both:
            optimizers.append(optimizer(model.personal, spec.personal_learning_rate, spec))
        losses: list[torch.Tensor] = []
        for batch in samples.batches(self._streams[2], spec.global_steps, spec.global_epochs):
            losses.append(model.backward(*batch, skip=samples.skip))
            for one in optimizers:
                one.step()
            if kept is not None:
                masked.mul_(kept)
        return losses, model.shared

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

    def _results(
        self,
        errors: Sequence[DivergedError | None],
        personal_losses: list[torch.Tensor],
        trials: int,
        global_losses: list[torch.Tensor],
        shared: torch.Tensor | None,
        kept: torch.Tensor | None,
    ) -> list[LocalResult | Exception]:
        count, size = len(self._devices), self._split.shared.size
        sharing, ranked = 0 if shared is None else len(shared), self._number["ranked"]
        personal = self._model.hand_over()[0].cpu().numpy()
        weights = np.zeros((0, size), np.float32) if shared is None else shared.cpu().numpy()
        masks = [] if kept is None else [*kept.cpu().numpy()]
        masks += [np.ones(size, np.bool_)] * (sharing - len(masks))
        no_weights, no_mask = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        of_personal, of_global = _by_device(personal_losses, count), _by_device(global_losses, sharing)
        results: list[LocalResult | Exception] = []
        for device, error in enumerate(errors):
            shares = device < sharing
            results.append(
                error
                or LocalResult(
                    personal=personal[device],
                    shared=weights[device] if shares else no_weights,
                    mask=masks[device] if shares else no_mask,
                    personal_loss=mean_loss(of_personal[device]),
                    global_loss=mean_loss(of_global[device] if shares else []),
                    personal_steps=len(personal_losses),
                    importance_steps=trials if device < ranked else 0,
                    global_steps=len(global_losses) if shares else 0,
                )
            )
        return results


class _Samples:
    """The mini-batches of a chunk: images and labels, or what the frozen first layers make of the images.

    Attributes:
        whole: every batch of every device is all that it has, in order.
        skip: layers that are computed already in the inputs.
    """

    def __init__(
        self,
        model: StackedModel,
        spec: TrainingSpec,
        data: ImageData,
        devices: Sequence[DeviceRound],
        where: torch.device,
    ) -> None:
        self._model, self._spec, self._data = model, spec, data
        self._sizes = [len(one.samples) for one in devices]
        self._devices = len(devices)
        self.whole = max(self._sizes) <= spec.batch_size
        self.skip = 0
        self._features = torch.empty(0)
        # A shorter row is filled up with samples of its own, which have no weight or are in no batch.
        width = max(self._sizes)
        if self.whole:
            width = _filled(width, spec.batch_size)
        rows = np.empty((len(devices), width), np.int64)
        for row, one in zip(rows, devices, strict=True):
            row[: len(one.samples)], row[len(one.samples) :] = one.samples, one.samples[0]
        self._table = torch.from_numpy(rows).to(where)
        self._rows = torch.arange(len(devices), device=where).unsqueeze(1)
        self._labels = data.train_labels[self._table]
        self._all: torch.Tensor | None = None
        if self.whole:
            self._all = self._images(self._table)
            sizes = torch.tensor(self._sizes, device=where).unsqueeze(1)
            self._shares = (torch.arange(width, device=where) < sizes) / sizes

    def use(self, devices: int) -> None:
        """Let batches be of the first so many devices."""
        self._devices = devices

    def cache_features(self, trial_steps: int, steps: int, epochs: int | None) -> None:
        """Run the frozen first layers once over all samples if the coming steps would do it more often."""
        spec, table = self._spec, self._table[: self._devices]
        width = table.shape[1]
        batch = width if self.whole else spec.batch_size
        visits = trial_steps * batch + (epochs * width if epochs else steps * batch)
        frozen = self._model.frozen_layers()
        if not frozen or visits <= width:
            return
        features = []
        slices = torch.split(table, max(spec.batch_size, 64), dim=1)
        for some in slices:
            images = self._images(some) if self._all is None else self._all[: self._devices]
            features.append(self._model.features(images, frozen))
            if features[0][:, 0].numel() * features[0].element_size() * width > self._cache_bytes():
                return
        self._features, self.skip = torch.cat(features, 1) if len(slices) > 1 else features[0], frozen

    def forget_features(self) -> None:
        """Let batches be of images again."""
        self._features, self.skip = torch.empty(0), 0

    def batches(
        self, streams: Sequence[torch.Generator], steps: int, epochs: int | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield the mini-batches of a phase: inputs (D, B, ...), labels and shares in the loss (D, B)."""
        devices = slice(self._devices)
        if self.whole:
            inputs = self._features if self.skip else self._all
            assert inputs is not None
            for _ in range(epochs or steps):
                yield inputs[devices], self._labels[devices], self._shares[devices]
            return
        one_by_one = [
            mini_batches(size, self._spec.batch_size, stream, steps=steps, epochs=epochs)
            for size, stream in zip(self._sizes[devices], streams[devices], strict=True)
        ]
        for batches in zip(*one_by_one, strict=True):
            picked = torch.stack([batch for batch in batches if isinstance(batch, torch.Tensor)])
            places = self._rows[devices], picked.to(self._rows.device)
            labels = self._labels[places]
            inputs = self._features[places] if self.skip else self._images(self._table[places])
            yield inputs, labels, torch.full(labels.shape, 1.0 / labels.shape[1], device=labels.device)

    def _images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return normalised images with the operations of `ImageData.train`, hence the same numbers."""
        # Three times as fast as indexing.
        images = self._data.train_images.index_select(0, indices.flatten())
        pixels = images.view(*indices.shape, *images.shape[1:]).to(torch.float32)
        return pixels.mul_(1.0 / (255.0 * self._data.std)).sub_(self._data.mean / self._data.std)

    def _cache_bytes(self) -> int:
        # On a GPU, 16 times as much: there, a chunk holds many devices, and the memory is meant for them.
        return FEATURE_CACHE_BYTES * (1 if self._rows.device.type == "cpu" else 16)


def _filled(number: int, most: int) -> int:
    """Return the width of the batches of a device whose `number` samples make one batch each."""
    return min(-(-number // _FILL_TO) * _FILL_TO, most)


def _stack(vectors: Sequence[Vector]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors]))


def _by_device(losses: Sequence[torch.Tensor], devices: int) -> list[list[float]]:
    """Turn one (D,) tensor for each step into one list for each device, with one copy."""
    if not losses:
        return [[]] * devices
    found: list[list[float]] = torch.stack(list(losses), 1).tolist()
    return found


def _on_device(data: ImageData, device: torch.device) -> ImageData:
    if device.type == "cpu":
        return data
    return ImageData(
        train_images=data.train_images.to(device),
        train_labels=data.train_labels.to(device),
        test_images=data.test_images[:0],
        test_labels=data.test_labels[:0],
        num_classes=data.num_classes,
        mean=data.mean,
        std=data.std,
    )


def _exact_products(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which convolutions neither round float32 to 10 bits nor vary from run to run."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
