"""What is learned: data, partition, network, loss and metrics; a user's own files need `Dataset` only."""

from task.dataset import Dataset

__all__ = ["Dataset"]
