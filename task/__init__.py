"""What is learned: data, partition, network, loss and metrics; a user's own files need `Dataset` only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from task.dataset import Dataset

__all__ = ["Dataset"]


def __getattr__(name: str) -> Any:
    if name == "Dataset":  # torch takes seconds, and the settings of a command need none of it
        from task.dataset import Dataset

        return Dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
