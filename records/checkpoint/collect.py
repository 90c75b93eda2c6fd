"""Has every connected device that is not at work store its personal part for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from protocol.fields import MessageError
from protocol.messages import SAVE, UNKNOWN_ROUND, SaveOrder, SaveReport
from protocol.untrusted import last_line, safe_text
from records.checkpoint.manifest import DevicePart, file_name
from strategies.base import NOT_CONNECTED, WirelessStrategy
from strategies.exchange import exchange
from strategies.wall_clock import AT_WORK


def collect(
    folder: Path,
    server_round: int,
    keep: tuple[int, ...],
    discard: Mapping[int, tuple[str, ...]],
    grid: Grid,
    strategy: WirelessStrategy,
    timeout: float,
) -> dict[int, DevicePart]:
    """Ask every connected device; return what is known of the part of each device of the fleet.

    One that is still at work on an earlier order is not asked, as its answer would wait for that.

    Args:
        folder: for the files of devices without a folder of their own.
        server_round: the round that the checkpoint is of.
        keep: rounds whose parts a device is to keep in a folder of its own.
        discard: runs whose folders a device does not need once its part is stored, by device.
        grid, strategy: of the run.
        timeout: s to wait for answers.
    """
    fleet = strategy.fleet

    def order(device: int, node: int) -> Message:
        what = SaveOrder(
            directory=str(folder.resolve()),
            round=server_round,
            spec=strategy.spec,
            keep=keep,
            discard=discard.get(device, ()),
            run=strategy.run,
            **strategy.continued.for_device(device),
        )
        group = f"{server_round}/{device}"
        return Message(what.to_records(), dst_node_id=node, message_type=SAVE, group_id=group)

    busy = strategy.at_work
    nodes = {
        device: node
        for device in fleet.connected
        if device not in busy and (node := fleet.node_of(device)) is not None
    }
    parts = {
        device: DevicePart(UNKNOWN_ROUND, stored=False, reason="no answer before the time was up")
        for device in nodes
    } | {device: DevicePart(UNKNOWN_ROUND, stored=False, reason=AT_WORK) for device in busy}
    messages = [order(device, node) for device, node in nodes.items()]
    for reply in exchange(grid, messages, timeout):
        device = fleet.device_of(reply.metadata.src_node_id)
        if device is None and reply.has_error():  # by the SuperLink, of a node that is dead
            group = reply.metadata.group_id.rpartition("/")[2]
            device = int(group) if group.isdecimal() else None
        if device is not None and device in nodes:
            parts[device] = _stored(device, reply, server_round, folder)
    absent = DevicePart(UNKNOWN_ROUND, stored=False, reason=NOT_CONNECTED)
    return {
        device: replace(parts.get(device, absent), run=strategy.run) for device in range(fleet.num_devices)
    }


def _stored(device: int, reply: Message, server_round: int, folder: Path) -> DevicePart:
    """Return what a device's answer says of its part."""
    if reply.has_error():
        reason = last_line(reply.error.reason or f"error {reply.error.code}")
        return DevicePart(UNKNOWN_ROUND, stored=False, reason=reason)
    try:
        report = SaveReport.from_records(reply.content, server_round)
    except MessageError as error:
        return DevicePart(UNKNOWN_ROUND, stored=False, reason=safe_text(error))
    part = DevicePart(report.round, True, report.own, report.sha256, report.size)
    if report.round and not report.own:
        try:
            there = (folder / file_name(device, report.round)).stat().st_size == report.size
        except OSError:
            there = False
        if not there:
            reason = "its file is not on the server; a device on another machine needs a state-dir"
            return DevicePart(UNKNOWN_ROUND, stored=False, reason=reason)
    return part
