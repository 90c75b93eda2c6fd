"""Fixtures of the whole suite."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from engines.processors import usable_processors

# A machine that is busy with other work fails no test.
settings.register_profile("airflower", deadline=None)
settings.load_profile("airflower")

# Below `nohup` it is ignored, and whatever the tests start would inherit that.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be absent
def pytest_xdist_auto_num_workers() -> int:
    """Return the processes of ``-n auto``: one more than processors, since many tests wait for others."""
    return usable_processors() + 1


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A folder with real MNIST and Fashion-MNIST files in torchvision's layout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("AIRFLOWER_DATA_ROOT") or beside)
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(
            f"no image files: {root}/MNIST/raw is missing; set AIRFLOWER_DATA_ROOT to a folder that has it"
        )
    return root
