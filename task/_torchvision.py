"""Import torchvision also where its compiled operators do not fit the installed torch.

torchvision registers detection operators when it is imported; with a CPU-only torch and a wheel built for
another one this fails with "operator torchvision::nms does not exist". Declaring the two operators without an
implementation is enough for everything but detection, and nothing here detects.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

import torch

_declared: list[torch.library.Library] = []  # a Library takes its operators away when it is collected


@cache
def torchvision_datasets() -> Any:
    """Return the module `torchvision.datasets`."""
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)
    return importlib.import_module("torchvision.datasets")
