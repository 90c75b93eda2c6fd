"""One batch of one device, forwards and backwards, before anything is trained.

What a user's own network, data, loss and metrics do together shows only when they are run; here it costs
milliseconds, and the error names the key that is to be changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from task.build import Task, TaskError
from task.randomness import seeded


def check_task(task: Task, *, batch_size: int, model_name: str, device: int = 0) -> None:
    """Run the network once on a batch of training samples and once on one of test samples.

    The network's state and the global random states are as before afterwards.

    Args:
        task: what is to be trained.
        batch_size: samples of a batch, at most.
        model_name: for messages.
        device: whose samples are taken.

    Raises:
        TaskError: if something fails, shapes do not fit, or a number is not finite.
    """
    part = task.parts[device]
    model, before = task.model, copy.deepcopy(task.model.state_dict())
    was = model.training
    try:
        with seeded(0):
            inputs, targets = _samples(task, part.train[:batch_size], train=True)
            model.train()
            if len(inputs) == 1:
                model.eval()  # as a batch of one is trained where there are running statistics
            with _said(f"model.name = {model_name}: the network fails on a batch {_shape(inputs)}"):
                outputs = model(inputs)
            _check_outputs(task, outputs, targets, model_name)
            with _said(
                f"task.loss = {task.loss.name} fails on outputs {_shape(outputs)} and targets "
                f"{_shape(targets)}"
            ):
                loss = task.loss.mean(outputs.to(torch.float32), targets)
            _check_loss(task, loss, inputs, outputs, model_name)
            with _said(f"task.loss = {task.loss.name}: no gradient"):
                loss.backward()  # type: ignore[no-untyped-call]
            _check_gradients(task, model_name)
            inputs, targets = _samples(task, part.test[:batch_size], train=False)
            model.eval()
            with torch.no_grad():
                with _said(f"model.name = {model_name}: the network fails on a test batch {_shape(inputs)}"):
                    outputs = model(inputs).to(torch.float32)
                for metric in task.metrics:
                    with _said(f"task.metrics = {metric.name} fails on outputs {_shape(outputs)}"):
                        metric.of(outputs, targets)
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(before)
        model.train(was)


def _samples(task: Task, indices: object, *, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    with _said("dataset.transform fails"):
        inputs, targets = task.train(indices) if train else task.test(indices)  # type: ignore[arg-type]
    if not isinstance(inputs, torch.Tensor) or len(inputs) != len(targets):
        raise TaskError(
            f"dataset.transform returned {_shape(inputs)} for {len(targets)} samples; a tensor with "
            "the samples in front is expected"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise TaskError(
            "dataset.name: samples of the first device hold numbers that are not finite (after "
            "dataset.transform); replace them, or choose another transform"
        )
    if train and task.augment is not None:
        with _said("dataset.augment fails"):
            augmented = task.augment(inputs, torch.Generator().manual_seed(0))
        if not isinstance(augmented, torch.Tensor) or augmented.shape != inputs.shape:
            raise TaskError(
                f"dataset.augment returned {_shape(augmented)} for a batch {_shape(inputs)}; the same "
                "shape is expected"
            )
        inputs = augmented
    return inputs, targets


def _check_outputs(task: Task, outputs: object, targets: torch.Tensor, name: str) -> None:
    if not isinstance(outputs, torch.Tensor):
        raise TaskError(
            f"model.name = {name}: the network returns a {type(outputs).__name__}; a tensor (batch, ...) is "
            "expected"
        )
    if outputs.ndim == 0 or len(outputs) != len(targets):
        raise TaskError(
            f"model.name = {name}: the network returns {_shape(outputs)} for {len(targets)} samples; "
            "the samples are to be in front (batch first)"
        )
    classes = task.data.num_classes
    labels = task.loss.name == "cross_entropy" and targets.ndim == 1 and classes is not None
    if labels and (outputs.ndim != 2 or outputs.shape[1] != classes):
        raise TaskError(
            f"model.name = {name}: the network returns {_shape(outputs)}; for labels of {classes} classes "
            f"({len(targets)}, {classes}) is expected; its constructor is given num_classes = {classes}"
        )


def _check_loss(task: Task, loss: object, inputs: torch.Tensor, outputs: torch.Tensor, name: str) -> None:
    if not isinstance(loss, torch.Tensor) or loss.ndim != 0:
        raise TaskError(
            f"task.loss = {task.loss.name} returns {_shape(loss)}; a number for each sample is expected"
        )
    if not math.isfinite(float(loss.detach())):
        culprit = (
            "outputs are not finite" if not bool(torch.isfinite(outputs).all()) else "outputs are finite"
        )
        raise TaskError(
            f"task.loss = {task.loss.name}: the loss of the first batch is {float(loss.detach())} "
            f"(model.name = {name}, its {culprit}); check the loss, the initial weights and the "
            f"scale of the samples ({float(inputs.min()):g} to {float(inputs.max()):g})"
        )


def _check_gradients(task: Task, name: str) -> None:
    named = dict(task.model.named_parameters())
    moved = [one for one in task.split.global_part.names if named[one].grad is not None]
    if not moved:
        raise TaskError(
            f"model.name = {name}: no parameter of the global part gets a gradient; model.personal is to "
            "leave "
            "some that training moves"
        )
    for one, parameter in named.items():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise TaskError(
                f"model.name = {name}: the gradient of {one} on the first batch is not finite; check the "
                "loss, "
                "the initial weights and the scale of the samples"
            )


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except TaskError:
        raise
    except Exception as error:  # code of a user's own fails in every way
        raise TaskError(f"{what}: {type(error).__name__}: {error}") from error
