"""`airflower-export`: take a trained model out of a run folder.

| ending | what it is | read with |
|---|---|---|
| `.safetensors` | the network's weights, by its own names, with metadata | safetensors |
| `.pt2` | the whole program, normalisation included (`torch.export`) | `torch.export.load` |
| `.onnx` | the same as ONNX | any ONNX runtime |

The programs take samples as they are stored, pictures as bytes (n, channels, height, width), any number at
once, and return the network's outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from protocol.own_files import find_own_modules
from server_app.results import ResultsError, load_run
from task.trained import TrainedModel

_EXTRA = "pip install 'airflower[export]'"


class ExportError(RuntimeError):
    """The model cannot be written; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="airflower-export", description="Take a trained model out of a run folder."
    )
    parser.add_argument("run", type=Path, help="run folder, with a checkpoint")
    parser.add_argument("--device", type=int, help="whose personalised model; none: the global model")
    parser.add_argument(
        "--to", type=Path, action="append", required=True, metavar="FILE",
        help=f"file to write: {', '.join(WRITERS)}; may be given several times",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    find_own_modules()  # the network may be the user's own
    try:
        for path in options.to:
            if path.suffix not in WRITERS:
                raise ExportError(f"--to {path}: the ending decides the format; valid: {', '.join(WRITERS)}")
        model = load_run(options.run).model(options.device)
        for path in options.to:
            export(model, path)
            print(f"{path}  {model.origin}")
    except (ResultsError, ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def export(model: TrainedModel, path: Path) -> None:
    """Write a model in the format that the ending of `path` says; an older file is replaced.

    Raises:
        ExportError: for an unknown ending, a missing package, or a network that the format cannot express.
    """
    if path.suffix not in WRITERS:
        raise ExportError(f"{path}: the ending decides the format; valid: {', '.join(WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        WRITERS[path.suffix](model, partial)
        partial.replace(path)
    except ImportError as error:
        raise ExportError(f"{path}: {error}; install it: {_EXTRA}") from error
    except (ExportError, OSError):
        raise
    except Exception as error:  # of torch's tracing and of the formats' own libraries
        raise ExportError(
            f"{path}: the network cannot be written as {path.suffix}: {type(error).__name__}: {error}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _safetensors(model: TrainedModel, path: Path) -> None:
    from safetensors.torch import save_model

    facts = json.loads(model.facts.to_json())
    metadata = {"airflower": json.dumps(facts), "origin": model.origin}
    save_model(model.network, str(path), metadata=metadata)


def _program(model: TrainedModel) -> torch.export.ExportedProgram:
    return torch.export.export(
        model, (model.example(),), dynamic_shapes={"samples": {0: torch.export.Dim("samples", min=1)}}
    )


def _torch_export(model: TrainedModel, path: Path) -> None:
    torch.export.save(_program(model), path)


def _onnx(model: TrainedModel, path: Path) -> None:
    import onnxscript  # noqa: F401 - what torch.onnx needs, named here when it is missing

    torch.onnx.export(
        model,
        (model.example(),),
        str(path),
        input_names=["samples"],
        output_names=["outputs"],
        dynamic_shapes={"samples": {0: torch.export.Dim("samples", min=1)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


WRITERS: dict[str, Callable[[TrainedModel, Path], None]] = {
    ".safetensors": _safetensors,
    ".pt2": _torch_export,
    ".onnx": _onnx,
}
