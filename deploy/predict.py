"""``airflower-supernode predict``: what a node's own, personalised model says of pictures.

Everything it needs lies in the node's ``state-dir``: no server, no run, no data set. A network of the user's
own has to be installed, as for training. Pictures are read as the node's own images are (``data-dir``);
samples of any other kind come as a .npy file (n, ...), as the data set stores them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from client_app.own_model import StateError, WeightsError, own_model
from protocol.own_files import find_own_modules
from task.pictures import PictureError, read_picture
from task.trained import TrainedModel


class PredictError(ValueError):
    """A file cannot be put to the model; the text says why."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="airflower-supernode predict",
        description="Ask this node's personalised model: one line per sample, label and probability.",
    )
    parser.add_argument("samples", nargs="+", type=Path, metavar="FILE", help="picture, or .npy (n, ...)")
    parser.add_argument("--state-dir", type=Path, required=True, help="as in the node's node-config")
    parser.add_argument("--run", metavar="NAME", help="folder of a run in it (default: the latest)")
    parser.add_argument("--device", type=int, metavar="K", help="index, if several devices share the folder")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="labels per sample (default: 1)")
    options = parser.parse_args(arguments)
    find_own_modules()  # the network may be the user's own
    try:
        if options.top < 1:
            raise PredictError(f"--top {options.top}; it must be at least 1")
        model = own_model(options.state_dir, run=options.run, device=options.device)
        print(model.origin, file=sys.stderr)
        for path in options.samples:
            for line in answers(model, path, options.top):
                print(line)
    except (PredictError, StateError, WeightsError, ValueError, OSError) as error:
        print(f"airflower-supernode predict: {error}", file=sys.stderr)
        return 1
    return 0


def answers(model: TrainedModel, path: Path, top: int = 1) -> Iterator[str]:
    """Yield a line for each sample of a file: the likeliest labels with their probabilities.

    Of a regression, the numbers that are predicted.

    Raises:
        PredictError: if the file is not what the model takes.
    """
    samples = read_samples(model, path)
    with torch.inference_mode():
        outputs = model(samples)
    names = [str(path)] if len(samples) == 1 else [f"{path}[{row}]" for row in range(len(samples))]
    for name, output in zip(names, outputs, strict=True):
        if not model.facts.num_classes:
            yield f"{name}  {' '.join(f'{value:.6g}' for value in output.flatten().tolist())}"
            continue
        if output.ndim > 1:  # a label for each position
            yield f"{name}  {' '.join(_label(model, one) for one in output.argmax(0).flatten().tolist())}"
            continue
        chances = output.softmax(0)
        likeliest = chances.argsort(descending=True)[:top].tolist()
        yield f"{name}  " + "  ".join(f"{_label(model, one)} {chances[one]:.4f}" for one in likeliest)


def read_samples(model: TrainedModel, path: Path) -> torch.Tensor:
    """Return the samples of a file as the model takes them, (n, ...).

    Raises:
        PredictError: if there are none that fit.
    """
    facts = model.facts
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PredictError(f"{path} cannot be read: {error}") from error
        samples = torch.from_numpy(np.ascontiguousarray(array))
        if tuple(samples.shape) == facts.sample_shape:
            samples = samples[None]
        wanted = getattr(torch, facts.sample_dtype)
        if samples.shape[1:] != facts.sample_shape or samples.is_floating_point() != wanted.is_floating_point:
            raise PredictError(
                f"{path} holds {array.dtype} {array.shape}; the model takes {facts.sample_dtype} "
                f"(n, {', '.join(map(str, facts.sample_shape))})"
            )
        return samples.to(wanted)
    if len(facts.sample_shape) != 3 or facts.sample_shape[0] not in (1, 3) or facts.sample_dtype != "uint8":
        raise PredictError(
            f"{path}: the model takes samples {facts.sample_dtype} {facts.sample_shape}, no pictures; give a "
            ".npy file of such samples"
        )
    try:
        picture = read_picture(path)
    except PictureError as error:
        raise PredictError(f"{path}: {error}") from error
    channels, height, width = facts.sample_shape
    return torch.from_numpy(np.array(picture.resized(height, width, channels)))[None]


def _label(model: TrainedModel, index: int) -> str:
    return model.label_names[index] if model.label_names else str(index)
