"""What the tests of a device have in common."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As devices compute; on tiny tensors more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
