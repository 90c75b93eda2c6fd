"""The way of the settings to a device's order is short enough to be followed in a debugger."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from flwr.app import Message

from engines.inprocess import open_grid
from protocol.messages import DeviceSpec, TrainOrder
from server_app.job import Job
from server_app.run import run
from server_app.settings import Settings, compose_settings

ROOT = Path(__file__).resolve().parents[2]
CARRIERS = (Settings, Job, DeviceSpec, TrainOrder)


class _OrdersAreOut(Exception):
    """Ends the run when the first orders for training would be sent."""


class _Grid:
    """Stands before a grid: what happens behind it is the devices' matter, and is not counted."""

    def __init__(self, grid: Any, profile: Callable[..., None]) -> None:
        self._grid = grid
        self._profile = profile
        self.immediate = True

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._grid, name)

        def unseen(*arguments: Any, **options: Any) -> Any:
            sys.setprofile(None)
            try:
                found = value(*arguments, **options)
                return list(found) if isinstance(found, Iterable) else found
            finally:
                sys.setprofile(self._profile)

        return unseen if callable(value) else value

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> Any:
        assert all(order.metadata.message_type == "train" for order in messages)
        raise _OrdersAreOut


@pytest.mark.parametrize("scheme", ["proposed", "over_the_air", "aircomp_pruned"])
def test_settings_reach_an_order_in_few_frames(tmp_path, scheme):
    """Counted are the functions that are given the settings, or what they become on the way to an order."""
    settings = compose_settings(
        [f"scheme={scheme}", "model=mlp", "fleet.num_devices=2", "engine.workers=1"]
        + (["air.num_selected=2"] if scheme != "proposed" else [])
    )
    stops: dict[tuple[str, str], bool] = {}  # file and function -> whether it has an order

    def profile(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / "tests"):
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names]
        if any(isinstance(value, CARRIERS) for value in given):
            has_order = any(isinstance(value, TrainOrder) for value in given)
            stops[str(path.relative_to(ROOT)), code.co_qualname] = has_order

    with open_grid(settings) as grid:
        guarded: Any = _Grid(grid, profile)
        sys.setprofile(profile)
        try:
            with pytest.raises(_OrdersAreOut):
                run(settings, guarded, tmp_path)
        finally:
            sys.setprofile(None)
    shown = "\n".join(f"{file}: {name}" for file, name in stops)
    assert any(stops.values()), shown
    assert len(stops) <= 25, f"{len(stops)}\n{shown}"
    assert len({file for file, _ in stops}) <= 12, shown
