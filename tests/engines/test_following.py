"""Following a run costs next to nothing: Flower is asked about it only while its log is silent."""

import json
from types import SimpleNamespace

import pytest

from engines import superlink
from records.ownership import SUMMARY
from server_app.run import LOG_FILE, RunFailedError


class Flower(superlink.Flwr):
    """Says how a run stands, and when it was asked."""

    def __init__(self, clock, ends_at=None):
        self.clock, self.ends_at, self.asked = clock, ends_at, []

    def status(self, run_id):
        assert run_id == "7"
        self.asked.append(self.clock.now)
        ended = self.ends_at is not None and self.clock.now >= self.ends_at
        return ("finished:failed", "out of memory") if ended else ("running", "")

    def log(self, run_id):
        return "the end of its log"


class Clock:
    """Time that passes as it is slept, and what happens meanwhile."""

    def __init__(self, folder, line_every, ends_at=None):
        self.now, self.folder, self.line_every, self.ends_at = 0.0, folder, line_every, ends_at
        self.lines = 0

    def sleep(self, seconds):
        self.now += seconds
        if self.line_every and self.now > (self.lines + 1) * self.line_every:
            self.lines += 1
            with (self.folder / LOG_FILE).open("a") as log:
                log.write(f"round {self.lines}\n")
        if self.ends_at is not None and self.now >= self.ends_at:
            (self.folder / SUMMARY).write_text(json.dumps({"status": "completed"}))


def followed(folder, monkeypatch, *, line_every=None, completes_at=None, fails_at=None):
    clock = Clock(folder, line_every, completes_at)
    monkeypatch.setattr(superlink, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    flower = Flower(clock, fails_at)
    return clock, flower, lambda: superlink.follow(flower, "7", None, folder)


def test_of_a_run_that_tells_of_itself_nobody_asks(tmp_path, monkeypatch):
    _, flower, follow = followed(tmp_path, monkeypatch, line_every=3.0, completes_at=1000.0)
    assert follow()["status"] == "completed"
    assert flower.asked == []


def test_of_a_silent_one_it_is_asked_ever_more_seldom(tmp_path, monkeypatch):
    _, flower, follow = followed(tmp_path, monkeypatch, completes_at=1000.0)
    follow()
    assert flower.asked[0] == pytest.approx(5.0, abs=0.5)
    assert 5 <= len(flower.asked) <= 25
    assert max(b - a for a, b in zip(flower.asked, flower.asked[1:], strict=False)) <= 61


@pytest.mark.parametrize(
    ("line_every", "fails_at", "limit"), [(None, 0.0, 6.0), (None, 600.0, 662.0), (20.0, 400.0, 662.0)]
)
def test_an_app_that_has_gone_without_a_word_is_noticed(tmp_path, monkeypatch, line_every, fails_at, limit):
    clock, _, follow = followed(tmp_path, monkeypatch, line_every=line_every, fails_at=fails_at)
    with pytest.raises(RunFailedError, match=r"out of memory.*\n.*the end of its log"):
        follow()
    assert clock.now <= limit
