"""`channel=measured` on real processes: the ratio follows a node whose link or processor slows down.

Judged by what the server measured and planned in each round, so that a busy machine delays a test and does
not fail it.
"""

import itertools
from functools import partial
from pathlib import Path
from statistics import mean, median

import pytest

from deploy.local_fleet import LocalFleet
from engines.superlink import free_ports
from tests.deployment.fleets import SMALL, rounds, rows, wait
from tests.deployment.links import NamespaceLink, ProxyLink
from tests.deployment.processors import processor_group

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

THRESHOLD = 1.0  # s; a dense upload takes 0.16 s at the full rate and 1.6 s at a tenth of it
FULL_RATE = 4e6
PROBE_BYTES = 65536
SLOW = 0.4  # s of computing that do not fit beside a dense upload of 0.63 s


def _at_least(out, number) -> bool:
    return rounds(out) >= number


def _column(out: Path, table: str, name: str, device: int) -> list[float]:
    return [float(row[name] or "nan") for row in rows(out, device, table)]


def _namespace():
    if reason := NamespaceLink.why_not():
        pytest.skip(reason)
    return NamespaceLink(FULL_RATE)


@pytest.mark.parametrize("kind", ["namespace", "proxy"])
def test_a_link_at_a_tenth_raises_the_ratio_of_its_node_and_given_back_lowers_it(tmp_path, kind):
    link = _namespace() if kind == "namespace" else ProxyLink(FULL_RATE)
    probe_port, out = free_ports(1)[0], tmp_path / "out"
    overrides = [
        *SMALL, "rounds=1000", "channel=measured", f"radio.latency_threshold_ms={1e3 * THRESHOLD:g}",
        f"measured.probe_host={link.host}", f"measured.probe_port={probe_port}",
        f"measured.probe_bytes={PROBE_BYTES}", "evaluate_every=1000",
    ]  # fmt: skip
    counted: list[int] = []
    try:
        with LocalFleet(tmp_path / "fleet", 2, tmp_path / "logs", host=link.host) as fleet:
            fleet.start_node(0)
            link.start_node(fleet, 1, probe_port)
            run = fleet.submit(overrides, out)

            def after(number: int, what: str) -> int:
                goal = rounds(out) + number

                def there() -> bool:
                    while len(counted) < rounds(out):
                        counted.append(link.bytes_up)
                    return len(counted) >= goal

                wait(there, what, out)
                return rounds(out)

            slowed = after(4, "four rounds at the full rate")
            link.set_rate(FULL_RATE / 10)
            restored = after(6, "six rounds at a tenth")
            link.set_rate(FULL_RATE)
            after(5, "five rounds at the full rate again")
            fleet.flwr.stop(run)
    finally:
        link.close()
    rate = _column(out, "device_timing.csv", "measured_uplink_bps", 1)
    total = _column(out, "device_timing.csv", "measured_total_seconds", 1)
    ratio = _column(out, "devices.csv", "pruning_ratio", 1)
    print("rate", [round(x) for x in rate], "total", total, "ratio", ratio, sep="\n")
    usual = median(rate[:slowed])
    assert usual == pytest.approx(FULL_RATE, rel=0.5)
    first_slow = next(i for i in range(slowed, restored) if rate[i] < usual / 2)
    assert first_slow <= slowed + 1
    before = ratio[slowed - 1]
    assert total[first_slow] > THRESHOLD
    # Two of the last three samples are slow after the second slow round; the third is planned with them.
    assert min(ratio[first_slow + 2 : restored]) > before + 0.2
    assert median(total[first_slow + 2 : restored]) <= THRESHOLD
    first_fast = next(i for i in range(restored, len(rate)) if rate[i] > usual / 2)
    assert first_fast <= restored + 1
    assert min(ratio[first_fast + 2 : first_fast + 4]) < before + 0.1
    assert median(_column(out, "devices.csv", "pruning_ratio", 0)) < 0.1
    # On the wire, of a round. In the namespace the timed transfers count too, and do not change.
    sent = [after - before for before, after in itertools.pairwise(counted)]
    probes = PROBE_BYTES if kind == "namespace" else 0
    dense, pruned = mean(sent[: slowed - 1]) - probes, mean(sent[first_slow + 1 : restored - 1]) - probes
    print("bytes of a round", dense, pruned)
    assert pruned < 0.8 * dense


def test_a_processor_at_a_fraction_raises_the_ratio_of_its_node_and_given_back_lowers_it(tmp_path):
    """Its uplink rate is stated by the operator: only the compute time changes."""
    group = processor_group()
    out, uplink = tmp_path / "out", 1e6  # a dense upload takes 0.63 s of the 0.9 s that are planned with
    overrides = [
        *SMALL, "rounds=1000", "channel=measured", f"radio.latency_threshold_ms={1e3 * THRESHOLD:g}",
        "evaluate_every=1000", "training.personal_steps=200", "training.global_steps=200",
    ]  # fmt: skip
    try:
        with LocalFleet(tmp_path / "fleet", 2, tmp_path / "logs") as fleet:
            fleet.start_node(0, {"uplink-bps": uplink})
            node = fleet.start_node(1, {"uplink-bps": uplink}, inside=("env",))
            group.add(node.pid)
            run = fleet.submit(overrides, out)
            wait(lambda: rounds(out) >= 4, "four rounds at full speed", out)
            usual = _column(out, "device_timing.csv", "measured_compute_seconds", 1)
            slowed = rounds(out)
            share = min(0.8, max(0.06, min(usual) / 0.6))  # the kernel takes no less than a twentieth here

            def slow() -> bool:
                return _column(out, "device_timing.csv", "measured_compute_seconds", 1)[-1] > SLOW

            for _ in range(6):  # on a busy machine a limit only tells below the share that it leaves
                group.limit(share)
                tried = rounds(out)
                wait(partial(_at_least, out, tried + 2), "two rounds with a limit", out)
                if slow():
                    break
                share = max(0.06, share / 2)
            limited = rounds(out)
            wait(lambda: rounds(out) >= limited + 4, "four more slow rounds", out)
            restored = rounds(out)
            group.limit(None)
            wait(lambda: rounds(out) >= restored + 5, "five rounds at full speed again", out)
            fleet.flwr.stop(run)
    finally:
        group.close()
    times = _column(out, "device_timing.csv", "measured_compute_seconds", 1)
    total = _column(out, "device_timing.csv", "measured_total_seconds", 1)
    ratio = _column(out, "devices.csv", "pruning_ratio", 1)
    print("compute", times, "total", total, "ratio", ratio, sep="\n")
    first_slow = next(i for i in range(slowed, restored) if times[i] > SLOW)
    before = ratio[slowed - 1]
    assert median(ratio[first_slow + 2 : restored]) > before + 0.1
    assert total[first_slow] > 0.9 * THRESHOLD  # the share that is planned with
    assert median(total[first_slow + 2 : restored]) <= THRESHOLD
    assert min(ratio[restored + 2 : restored + 5]) < before + 0.1
