"""What a folder says of its run, in a terminal, over HTTP, to Prometheus."""

import http.client
import io
import json
import os
import re
import threading
import time
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.sweep import job_line
from experiments.watch import state
from experiments.watch.cli import main
from experiments.watch.serve import PAGE, metrics, server
from experiments.watch.state import Node, Snapshot, look, newest
from experiments.watch.terminal import duration, render, size, sparkline
from records.live import LIVE, Live
from records.ownership import owned
from schema import ConfigError


def write_run(folder, *, rounds=3, status="completed", reason="", **config):
    folder.mkdir(parents=True)
    tree = {"scheme": {"name": "proposed"}, "rounds": 10, "seed": 4, "fleet": {"num_devices": 2}, **config}
    (folder / "config.yaml").write_text(json.dumps(tree))
    (folder / "summary.json").write_text(json.dumps({"status": status, "reason": reason}))
    rows = [f"{i},{0.1 * i},{0.05 * i},1.5,0.02,0;1" for i in range(1, rounds + 1)]
    (folder / "rounds.csv").write_text(
        "\n".join(["round,accuracy_mean,accuracy_worst,loss_mean,latency_s,failed", *rows]) + "\n"
    )
    timing = [f"{i},9,2,0.5,0.5" for i in range(1, rounds + 1)]
    head = ",".join(
        ["round", *(f"measured_{part}_seconds" for part in ("plan", "train", "aggregate", "evaluate"))]
    )
    (folder / "timing.csv").write_text("\n".join([head, *timing]) + "\n")
    rude = "\x1b[31mno [b]reply"
    devices = [
        f"{i},{row}" for i in range(1, rounds + 1) for row in ("0,ok,,1000,0.2", f"1,failed,{rude},1000,")
    ]
    (folder / "devices.csv").write_text(
        "\n".join(["round,device,status,reason,wire_bytes,test_accuracy", *devices]) + "\n"
    )
    (folder / "device_timing.csv").write_text(
        "round,device,measured_train_seconds,measured_energy_j,measured_download_seconds,"
        "measured_upload_seconds,measured_transfer_seconds\n3,0,1.25,7.5,2.75,3.5,0.125\n"
    )
    return folder


def test_a_snapshot_holds_what_the_folder_says(tmp_path):
    found = look(write_run(tmp_path / "run"))
    assert (found.status, found.round, found.rounds, found.over) == ("completed", 3, 10, True)
    assert [number for number, _ in found.accuracy] == [1, 2, 3]
    assert found.accuracy[-1][1] == pytest.approx(0.3)
    assert found.round_s == 3.0  # training, averaging, evaluation; planning is part of the first
    assert dict(found.figures)["failed devices"] == 2
    ok, failed = found.nodes
    assert (ok.train_s, ok.energy_j, ok.sent_bytes, ok.accuracy) == (1.25, 7.5, 1000, 0.2)
    assert (ok.download_s, ok.upload_s, ok.transfer_s) == (2.75, 3.5, 0.125)
    assert (failed.status, failed.accuracy) == ("failed", None)
    assert "\x1b" not in failed.reason


def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    folder = write_run(tmp_path / "run", status="running")
    assert look(folder).status == "killed"
    with owned(folder):
        found = look(folder)
        assert (found.status, found.over) == ("running", False)
        assert found.left_s == 21.0  # seven rounds of three seconds


def test_half_written_rows_do_not_count(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in ("rounds.csv", "devices.csv", "timing.csv"):
        with (folder / name).open("a") as file:
            file.write("4,0")
    found = look(folder)
    assert found.round == 3
    assert len(found.nodes) == 2


def test_of_a_long_table_the_end_is_read(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", rounds=200)
    monkeypatch.setattr(state, "_TAIL_BYTES", 150)
    assert [node.device for node in look(folder).nodes] == [0, 1]


def test_orders_and_answers_are_seen_while_a_round_goes_on(tmp_path):
    folder = write_run(tmp_path / "run", status="running")
    live = Live(folder, 10)
    live.notice("train", 0, 4)
    live.notice("train", 1, 4)
    live._next = 0.0
    live.notice("replied", 0, 4)
    with owned(folder):
        found = look(folder)
    assert found.phase == "training"
    assert [node.phase for node in found.nodes] == ["replied", "training"]
    assert found.nodes[0].seen_s is not None
    assert found.nodes[0].seen_s < 60
    assert found.nodes[1].seen_s is None
    assert found.nodes[0].exchange_s is None  # its download and its upload are told apart
    live._next_phase = 0.0
    live.notice("evaluate", 1, 4)
    assert json.loads((folder / LIVE).read_text())["phase"] == "evaluating"
    assert json.loads((folder / LIVE).read_text())["devices"]["0"]["took"] >= 0


def test_answers_are_written_no_more_often_than_anyone_looks(tmp_path):
    live = Live(tmp_path, 10)
    live.notice("train", 0, 1)
    stamp = (tmp_path / LIVE).stat().st_mtime_ns
    for _ in range(50):
        live.notice("replied", 0, 1)
    assert (tmp_path / LIVE).stat().st_mtime_ns == stamp
    live.close()
    assert json.loads((tmp_path / LIVE).read_text())["phase"] == "ended"


def test_phases_of_small_rounds_are_not_all_written(tmp_path, monkeypatch):
    """A round of fifty milliseconds would spend a thirtieth of its time on it."""
    now = 1e9
    monkeypatch.setattr("records.live.time.time", lambda: now)
    live, written = Live(tmp_path, 100), 0
    for server_round in range(1, 101):
        (tmp_path / LIVE).unlink(missing_ok=True)
        live.notice("train", 0, server_round)
        written += (tmp_path / LIVE).exists()
        now += 0.05
    assert 0 < written <= 12
    now += 60.0
    live.notice("train", 0, 101)
    assert json.loads((tmp_path / LIVE).read_text())["round"] == 101


def test_a_folder_that_takes_no_file_costs_the_run_nothing(tmp_path, caplog):
    live = Live(tmp_path / "nowhere", 10)
    live.notice("train", 0, 1)
    live.close()
    assert caplog.text.count("cannot be written") == 1


def test_a_real_run_says_what_it_does(tmp_path):
    from tests.experiments.small_sweeps import run_tiny

    run_tiny(tmp_path / "run", "rounds=2")
    found = look(tmp_path / "run")
    assert (found.status, found.round, found.rounds) == ("completed", 2, 2)
    assert [node.device for node in found.nodes] == list(range(10))
    assert all(node.seen_s is not None and node.train_s is not None for node in found.nodes)
    log = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert log[-1].startswith("completed, accuracy ")
    assert log[-1].endswith(str(tmp_path / "run"))


def test_a_sweep_counts_its_jobs(tmp_path):
    for name, status in (("a", "completed"), ("b", "failed"), ("c", "completed"), ("old", "completed")):
        write_run(tmp_path / name, status=status)
        os.utime(tmp_path / name / "config.yaml", (time.time() - 30,) * 2)
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": 5, "folders": list("abcde")}))
    found = look(tmp_path).sweep
    assert found is not None
    assert (found.jobs, found.done, found.failed) == (5, 3, 1)
    assert found.left_s == pytest.approx(60, abs=10)
    assert not look(tmp_path).over


def test_no_run_is_said_to_be_none(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no run in"):
        newest(tmp_path)


def test_the_newest_run_is_found(tmp_path):
    old = write_run(tmp_path / "outputs" / "2026-01-01" / "a")
    new = write_run(tmp_path / "outputs" / "2026-01-02" / "b")
    for path in old.iterdir():
        os.utime(path, (1, 1))
    assert newest(tmp_path) == new


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
def test_once_shows_and_leaves(tmp_path, capsys, monkeypatch, status, code):
    monkeypatch.setenv("COLUMNS", "110")
    assert main([str(write_run(tmp_path / "run", status=status, reason="[red]why")), "--once"]) == code
    out = capsys.readouterr().out
    assert "round 3 of 10" in out
    assert "accuracy 0.3000" in out
    assert ("[red]why" in out) == (status == "failed")
    assert "no [b]reply" in out
    head = next(line for line in out.splitlines() if "device " in line).split()
    row = next(line for line in out.splitlines() if "2.8 s" in line)
    assert head.index("download") < head.index("training") < head.index("upload") < head.index("sent")
    assert re.search(r"2\.8 s +1\.2 s +3\.5 s +1 kB +7\.5 J +0\.2000", row)
    assert "exchange" not in head


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_leaves_out_what_matters_least(width):
    nodes = [Node(0, "training", 12.0, 2.5, 1.5, 3.5, None, None, 81445.0, 7.5, 0.25, "failed", "disk full")]
    console = Console(file=(printed := io.StringIO()), width=width)
    console.print(render(Snapshot("x", nodes=tuple(nodes)), console))
    text = printed.getvalue()
    for word in ("0.2500", "failed", "2.5 s", "1.5 s", "3.5 s"):
        assert word in text
    assert "…" not in text
    assert ("81.4 kB" in text, "7.5 J" in text) == (width >= 100, width >= 100)


def test_a_terminal_without_letters_gets_other_bars():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100)
    console.print(render(Snapshot("x", accuracy=((1, 0.1), (2, 0.9))), console))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 80))
def test_a_sparkline_fits_and_ends_with_the_last_value(values, width):
    line = sparkline(values, width, "0123456789")
    assert len(line) == min(width, len(values))
    shown = values if len(values) <= width else None
    if shown and max(shown) > min(shown):
        assert line[shown.index(max(shown))] == "9"
        assert line[shown.index(min(shown))] == "0"
    if len(values) > width > 1:
        doubled = sparkline([*values[:-1], max(values) + 1e6], width, "0123456789")
        assert doubled[-1] == "9"


def test_durations_and_sizes_are_said_as_people_do():
    assert [duration(s) for s in (None, 0.25, 59.4, 250, 7500)] == [
        "-",
        "0.25 s",
        "59 s",
        "4 min 10 s",
        "2 h 5 min",
    ]
    assert [size(n) for n in (None, 999, 1500, 2.5e6, 3e9)] == ["-", "999 B", "1.5 kB", "2.5 MB", "3 GB"]


def test_a_job_of_a_sweep_says_which_it_is_and_how_long_the_others_take():
    assert job_line(1, 4, "a=1", []) == "job 1 of 4: a=1"
    assert job_line(3, 4, "a=3", [90.0, 150.0]) == "job 3 of 4, about 4 min left: a=3"


SNAPSHOT = Snapshot(
    'out/a"b\nc',
    status="running",
    round=2,
    rounds=5,
    accuracy=((1, 0.5), (2, 0.75)),
    nodes=(
        Node(0, sent_bytes=10, status="ok", energy_j=2.5, download_s=3.5, train_s=1.5, upload_s=0.5),
        Node(7, phase="training"),
    ),
)


def test_prometheus_can_read_every_line():
    """The text format: a name, labels with escapes, a number; each name typed once, before its first line."""
    typed: list[str] = []
    for line in metrics(SNAPSHOT):
        assert "\n" not in line
        if line.startswith("# TYPE "):
            typed.append(line.split()[2])
        elif not line.startswith("#"):
            label = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
            found = re.fullmatch(rf"([a-z_]+)\{{{label}(?:,{label})*\}} (\S+)", line)
            assert found, line
            assert found[1] == typed[-1]
            float(found[2])
    assert len(typed) == len(set(typed))
    text = "\n".join(metrics(SNAPSHOT))
    assert 'airflower_accuracy{run="a\\"b\\nc"} 0.75' in text
    assert 'device="7"} 0' in text
    assert [
        line.split()[-1] for line in text.splitlines() if re.match(r"airflower_node_(down|up|tra).*\{", line)
    ] == ["3.5", "1.5", "0.5"]


@contextmanager
def served(snapshot):
    found = server(0, snapshot)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield found.server_address[1]
    finally:
        found.shutdown()
        found.server_close()


def ask(port, path, host="127.0.0.1"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_the_server_answers_on_loopback_to_its_own_names_only():
    with served(lambda: SNAPSHOT) as port:
        status, headers, body = ask(port, "/state.json")
        assert status == 200
        assert json.loads(body)["nodes"][1]["phase"] == "training"
        assert ask(port, "/metrics")[2].startswith("# HELP airflower_round ")
        status, headers, body = ask(port, "/?x=1", host="localhost")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert ask(port, "/", host="evil.example")[0] == 403
        assert ask(port, "/../../etc/passwd")[0] == 404


def test_a_folder_that_is_gone_is_an_answer_too():
    def gone():
        raise ConfigError("x is no run folder")

    with served(gone) as port:
        assert ask(port, "/state.json")[0] == 503


def test_the_page_of_a_run_that_has_ended_stays_until_somebody_ends_it(tmp_path, capsys, monkeypatch):
    read = []

    def somebody():
        address, *_ = capsys.readouterr().out.split()
        with urllib.request.urlopen(f"{address}state.json") as answer:
            read.append(json.load(answer)["status"])

    monkeypatch.setattr("experiments.watch.cli._stay", somebody)
    assert main([str(write_run(tmp_path / "run")), "--serve", "0"]) == 0
    assert read == ["completed"]


def test_a_port_that_is_taken_is_named(tmp_path, capsys):
    with served(lambda: SNAPSHOT) as port:
        assert main([str(write_run(tmp_path / "run")), "--serve", str(port)]) == 2
    assert f"--serve {port}" in capsys.readouterr().err


def test_the_page_asks_nobody_else():
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            for name, value in attrs:
                if name in ("src", "href"):
                    assert value.startswith(("data:", "/state.json")), value

    text = PAGE.read_text()
    Tags().feed(text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, no address
    assert re.findall(r"fetch\(\"([^\"]+)", text) == ["state.json"]
    assert "innerHTML" not in text
