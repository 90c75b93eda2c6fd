"""What is left in a mailbox is there for the forks of its process."""

import os
import pickle

import pytest

from engines import mailbox
from engines.mailbox import Mailbox


def test_a_fork_finds_what_was_left_and_leaves_its_answer():
    mine, yours = Mailbox(shared=True), Mailbox(shared=True)
    reading, writing = os.pipe()
    question = {"weights": b"w" * 300_000}
    size = mine.put(question)
    child = os.fork()
    if child == 0:
        answer = yours.put(mine.take(size)["weights"] * 2)
        os.write(writing, answer.to_bytes(8, "little"))
        os._exit(0)
    answer = int.from_bytes(os.read(reading, 8), "little")
    os.waitpid(child, 0)
    assert yours.take(answer) == b"w" * 600_000


def test_what_was_taken_outlives_the_next_object():
    mail = Mailbox(shared=True)
    taken = mail.take(mail.put([b"first" * 10_000]))
    assert mail.take(mail.put([b"other" * 10_000])) == [b"other" * 10_000]
    assert taken == [b"first" * 10_000]


def test_what_has_no_room_is_refused_and_the_next_has_room_again(monkeypatch):
    monkeypatch.setattr(mailbox, "_CAPACITY", 1 << 14)
    mail = Mailbox(shared=True)
    assert mail.put(b"x" * (1 << 14)) is None
    assert mail.take(mail.put(b"small")) == b"small"
    assert Mailbox(shared=False).put(b"small") is None
    assert pickle.loads(pickle.dumps(Mailbox(shared=False))).put(1) is None  # for a process that is no fork
    with pytest.raises(TypeError):
        pickle.dumps(mail)
