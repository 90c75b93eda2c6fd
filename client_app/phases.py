"""The phases of a local round, which an algorithm puts together, for the devices of one chunk at once.

Every tensor has a leading device dimension; one device is a chunk of one. The devices that rank their weights
come first, then the others that share some, last those that share nothing, so that each phase is one of the
first so many devices.

One file, long as it is: the protocol of algorithms, and the one class that carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from client_app.masks import Mask
from client_app.network import Arrays, Network, Vector
from client_app.optimizers import clip, optimizer
from client_app.pruning import rank, select, trial_steps
from client_app.results import DivergedError, LocalResult, by_device, errors_of, mean_loss
from client_app.samples import SamplePool, Samples, noise_seeds, spawn
from protocol.training import TrainingSpec

Phase = Literal["", "personal", "copy", "global"]


class Member(Protocol):
    """What a phase needs to know of a device; see `client_app.local_round.DeviceRound`."""

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """Its samples."""
        ...

    @property
    def personal(self) -> Vector:
        """Its personal part."""
        ...

    @property
    def num_pruned(self) -> int:
        """Global weights to prune."""
        ...

    @property
    def generator(self) -> Callable[[], torch.Generator]:
        """Makes the generator of its mini-batches."""
        ...

    @property
    def mask(self) -> Mask | None:
        """A mask from outside."""
        ...

    @property
    def buffers(self) -> Arrays:
        """Running statistics to start from."""
        ...

    @property
    def state(self) -> Mapping[str, Vector]:
        """What the algorithm kept."""
        ...


class Algorithm(Protocol):
    """A local algorithm: which phases a round has; see `client_app.algorithms.LocalAlgorithm`."""

    silent_apart: ClassVar[bool]
    keeps: ClassVar[tuple[str, ...]]
    sends: ClassVar[tuple[str, ...]]

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        ...

    def correct(self, work: LocalWork) -> None:
        """Change the gradients of a step before it is taken."""
        ...

    def on_batch(self, work: LocalWork, step: Callable[[], None]) -> None:
        """Take the steps of a mini-batch."""
        ...

    def personalised(self, global_part: Vector, state: Mapping[str, Vector]) -> Vector:
        """Return the global part that a device tests and uses."""
        ...

    def personal_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on v of a round; an epoch has `batches` batches."""
        ...

    def global_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on u of a round; an epoch has `batches` batches."""
        ...

    def copy_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps of a round on a dense copy of u that stays on the device."""
        ...


_COPY = "copy."  # what the names of its running statistics begin with in the algorithm's state


def statistics(buffers: Arrays, state: Mapping[str, Any]) -> Arrays:
    """Return the running statistics of what a device tests and uses: of its own copy, where it trains one.

    Args:
        buffers: those of the global part, by name.
        state: what the algorithm kept, by its own names.
    """
    own = {name.removeprefix(_COPY): values for name, values in state.items() if name.startswith(_COPY)}
    return {**buffers, **own}


class LocalWork:
    """A round of the devices of one chunk.

    Attributes:
        network: the devices' copies; `.grad` of its parts is what `Algorithm.correct` may change.
        training: steps and step sizes.
        start: float32 (N_u,), the broadcast.
        uploading: how many of the devices, the first ones, share something.
        phase: which steps are being taken: "personal" (on v), "copy" (on v and a dense copy of u) or
            "global" (on u).
        kept: float32 (P, N_u), 1 where the first P devices keep a weight; None where none prunes.
        scratch: what an algorithm remembers within a round.
    """

    def __init__(
        self,
        network: Network,
        pool: SamplePool,
        algorithm: Algorithm,
        training: TrainingSpec,
        devices: Sequence[Member],
        *,
        ranked: int,
        pruned: int,
        uploading: int,
        start: torch.Tensor,
        received: Mapping[str, torch.Tensor],
        protected: Mask | None,
    ) -> None:
        """Load the devices; the first `ranked` make masks, the first `pruned` have one."""
        self.network, self.training, self.start = network, training, start
        self.uploading = uploading
        self.phase: Phase = ""
        self.kept: torch.Tensor | None = None
        self.scratch: dict[str, Any] = {}
        self._algorithm, self._devices, self._protected = algorithm, devices, protected
        self._ranked, self._pruned, self._received = ranked, pruned, received
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
        self._state: dict[str, torch.Tensor] = {}
        self._sent: dict[str, torch.Tensor] = {}
        self._of_copies: Sequence[Arrays] = ()  # running statistics
        self._importance: torch.Tensor | None = None
        self._personal_losses: list[torch.Tensor] = []
        self._trial_losses: list[torch.Tensor] = []
        self._global_losses: list[torch.Tensor] = []
        network.use(len(devices))
        network.read_global_from(start)
        network.personal.copy_(_stack([one.personal for one in devices]))
        if network.buffer_names:
            network.load_buffers([one.buffers for one in devices])

    @property
    def trains_global(self) -> bool:
        """Whether the present steps are those on u."""
        return self.phase == "global"

    # The algorithm's own arrays ----------------------------------------------------------------

    def recall(self, name: str, default: torch.Tensor) -> torch.Tensor:
        """Return what the devices kept under a name, (D, N_u); of who kept nothing `default` (N_u,)."""
        rows = [one.state.get(name) for one in self._devices]
        found = [default if row is None else torch.as_tensor(np.asarray(row)) for row in rows]
        return torch.stack([row.to(default.device) for row in found])

    def keep(self, name: str, rows: torch.Tensor) -> None:
        """Have the first devices keep rows (k, N_u) under a name that the algorithm `keeps`."""
        self._state[name] = rows

    def received(self, name: str) -> torch.Tensor:
        """Return the server's vector (N_u,) of a name that the algorithm `sends`: zeros in the beginning."""
        return self._received[name] if name in self._received else torch.zeros_like(self.start)

    def send(self, name: str, rows: torch.Tensor) -> None:
        """Send rows (uploading, N_u) under a name that the algorithm `sends`, where the weight is kept.

        The server adds their mean over all devices of the run to its vector of that name.
        """
        rows = rows.clone()
        if self.kept is not None:
            rows[: len(self.kept)].mul_(self.kept)
        self._sent[name] = rows

    # Phases ------------------------------------------------------------------------------------

    def train_personal(self, *, steps: int, epochs: int | None) -> None:
        """Take steps on v, u frozen (Liu et al. 2024, eq. (6)); none where there is no personal part."""
        if not self.network.split.personal.size:
            return
        with self._during("personal"):
            self.network.train_only(personal=True)
            self._samples.cache_features(0, steps, epochs)
            optimizers = [
                optimizer(self.network.personal, self.training.personal_learning_rate, self.training)
            ]
            self._personal_losses += self._steps(self._streams[0], steps, epochs, optimizers)
            self._samples.forget_features()

    def train_copy(self, copies: torch.Tensor, *, steps: int, epochs: int | None) -> torch.Tensor:
        """Take steps on v and on each device's own dense copy of u, both at once; return the copies.

        A copy has running statistics of its own, which the device keeps; they begin as those of u.

        Args:
            copies: (D, N_u); not changed.
            steps, epochs: how many steps, or passes over the data instead.
        """
        network, training = self.network, self.training
        of_broadcast = network.copy_buffers() if network.buffer_names else []
        with self._during("copy"):
            if of_broadcast:
                found = zip(of_broadcast, self._devices, strict=False)
                network.load_buffers([statistics(held, one.state) for held, one in found])
            network.global_part.copy_(copies)
            network.read_global_from(None)
            both = network.split.personal.size > 0
            network.train_only(global_part=True, personal=both)
            vectors = (network.global_part, network.personal) if both else (network.global_part,)
            optimizers = [optimizer(vector, training.personal_learning_rate, training) for vector in vectors]
            self._personal_losses += self._steps(self._streams[0], steps, epochs, optimizers)
            trained = network.global_part.clone()
            network.read_global_from(self.start)
            if of_broadcast:
                self._of_copies = network.copy_buffers()
                network.load_buffers(of_broadcast)
        return trained

    def train_global(self, *, steps: int, epochs: int | None, personal: bool = False) -> None:
        """Prune as ordered, eq. (20), and take masked steps on u from the masked broadcast, eqs. (21), (22).

        Equations of Liu et al. 2024.

        The last phase of a round. Only of the devices that share something.

        Args:
            steps, epochs: how many steps, or passes over the data instead.
            personal: whether v moves with every step, too.
        """
        if not self.uploading:
            return
        trials = trial_steps(self.training) if self._ranked else 0
        with self._during("global"):
            self.network.train_only(global_part=True)
            self._go_on_with(self.uploading)
            if not personal:
                self._samples.cache_features(trials, steps, epochs)
            self._prune()
            self._train_masked(steps, epochs, both=personal and self.network.split.personal.size > 0)

    @contextmanager
    def _during(self, phase: Phase) -> Iterator[None]:
        if self._global_losses:
            raise RuntimeError("train_global has to be the last phase of a round: its weights are uploaded")
        self.phase = phase
        yield
        self.phase = ""

    def _go_on_with(self, devices: int) -> None:
        """Let the coming steps be those of the first so many devices."""
        self.network.use(devices)
        self._samples.use(devices)

    def _steps(
        self, streams: Sequence[torch.Generator], steps: int, epochs: int | None, optimizers: Sequence[Any]
    ) -> list[torch.Tensor]:
        network, limit = self.network, self.training.clip_norm
        kept = self.kept if self.phase == "global" else None
        losses: list[torch.Tensor] = []
        batch: Sequence[Any] = ()

        def step() -> None:
            losses.append(network.backward(*batch, skip=self._samples.skip))
            self._algorithm.correct(self)
            if limit is not None:
                clip([one.gradient for one in optimizers], limit, kept)
            for one in optimizers:
                one.step()
            if kept is not None:
                # Optimisers work entry by entry, so zeroing after the step equals masking the gradient, and
                # holds whatever the optimiser adds to it.
                network.global_part[: len(kept)].mul_(kept)

        with network.drawing_from(noise_seeds(streams, "network")):
            for batch in self._samples.batches(streams, steps, epochs):  # noqa: B007  (`step` reads it)
                self._algorithm.on_batch(self, step)
        return losses

    def _prune(self) -> None:
        """Find the masks of the devices that prune: ranked by themselves, or given."""
        masks = []
        if self._ranked:
            self._go_on_with(self._ranked)

            def batches(steps: int) -> Iterable[Sequence[Any]]:
                return self._samples.batches(self._streams[1], steps, None)

            self._importance, self._trial_losses = rank(
                self.network,
                self.start,
                self.training,
                batches,
                self._streams[1],
                self._samples.skip,
            )
            numbers = [one.num_pruned for one in self._devices[: self._ranked]]
            masks.append(select(self._importance, self.start, numbers, self._protected))
            self._go_on_with(self.uploading)
        if self._pruned > self._ranked:
            given = [one.mask for one in self._devices[self._ranked : self._pruned] if one.mask is not None]
            masks.append(torch.from_numpy(np.stack(given)).to(self.start.device))
        if masks:
            mask = torch.cat(masks) if len(masks) > 1 else masks[0]
            # From bytes, the conversion is seven times as fast as from bool.
            self.kept = mask.view(torch.uint8).to(torch.float32)

    def _train_masked(self, steps: int, epochs: int | None, *, both: bool) -> None:
        network, training, kept = self.network, self.training, self.kept
        network.train_only(global_part=True, personal=both)
        number = 0 if kept is None else len(kept)
        if kept is not None:
            torch.mul(self.start, kept, out=network.global_part[:number])
        network.global_part[number:].copy_(self.start)
        network.read_global_from(None)
        optimizers = [optimizer(network.global_part, training.global_learning_rate, training)]
        if both:
            optimizers.append(optimizer(network.personal, training.personal_learning_rate, training))
        self._global_losses += self._steps(self._streams[2], steps, epochs, optimizers)
        if both:
            self._personal_losses = self._global_losses

    # Results -----------------------------------------------------------------------------------

    def results(self) -> list[LocalResult | DivergedError]:
        """Return each device's result, or why it has none."""
        count, size, uploading = len(self._devices), self.network.split.global_part.size, self.uploading
        self.network.use(count)
        buffers: Sequence[Arrays] = [{}] * count
        if self.network.buffer_names:
            buffers = self.network.copy_buffers()
        personal, global_part = self.network.hand_over()
        phases = [(personal, self._personal_losses)]
        if uploading:
            phases.append((global_part[:uploading], self._global_losses))
        if self._importance is not None:
            phases.insert(0, (self._importance, self._trial_losses))
        phases += [(rows, []) for rows in (*self._state.values(), *self._sent.values())]
        errors = errors_of(phases, count)
        for device, held in [*enumerate(buffers), *enumerate(self._of_copies)]:
            if errors[device] is None and not all(np.isfinite(values).all() for values in held.values()):
                errors[device] = DivergedError("training diverged: running statistics are not finite")
        of_device, weights = personal.cpu().numpy(), global_part[:uploading].cpu().numpy()
        masks: list[Mask] = [] if self.kept is None else [*self.kept.cpu().numpy().astype(np.bool_)]
        masks += [np.ones(size, np.bool_)] * (uploading - len(masks))
        no_weights, no_mask = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        of_personal = by_device(self._personal_losses, count)
        of_global = by_device(self._global_losses, uploading)
        state = {name: rows.cpu().numpy() for name, rows in self._state.items()}
        sent = {name: rows.cpu().numpy() for name, rows in self._sent.items()}
        results: list[LocalResult | DivergedError] = []
        for device, error in enumerate(errors):
            if error is not None:
                results.append(error)
                continue
            uploads = device < uploading
            results.append(
                LocalResult(
                    personal=of_device[device],
                    global_part=weights[device] if uploads else no_weights,
                    mask=masks[device] if uploads else no_mask,
                    personal_loss=mean_loss(of_personal[device]),
                    global_loss=mean_loss(of_global[device] if uploads else []),
                    personal_steps=len(self._personal_losses),
                    importance_steps=len(self._trial_losses) if device < self._ranked else 0,
                    global_steps=len(self._global_losses) if uploads else 0,
                    buffers=buffers[device],
                    state=self._kept_by(device, state),
                    sent={name: rows[device] for name, rows in sent.items()} if uploads else {},
                )
            )
        return results

    def _kept_by(self, device: int, new: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Any]:
        """Return what a device keeps for the algorithm: what is new, and else what it had."""
        before = self._devices[device].state
        kept: dict[str, Any] = {name: np.asarray(row) for name, row in before.items()} if before else {}
        for name, rows in new.items():
            if device < len(rows):
                kept[name] = rows[device]
        if self._of_copies:
            kept |= {f"{_COPY}{name}": values for name, values in self._of_copies[device].items()}
        return kept


def _stack(vectors: Sequence[Vector]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors]))
