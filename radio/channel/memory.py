"""Processes that go on from round to round, at any round and in any order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

S = TypeVar("S")


class Process(Generic[S]):
    """A state for each round g = 1, 2, ..., each made from the one before.

    What a step draws comes from a stream of its round, so that a round's state is the same whichever rounds
    were asked for before, and in whichever process. The last few states are kept; an older round is
    generated again from the first.

    Args:
        start: returns the state of round 1.
        step: returns the state of a round g > 1, from that of round g - 1 and g.
        keep: how many of the latest states are kept.
    """

    def __init__(self, start: Callable[[], S], step: Callable[[S, int], S], keep: int = 2) -> None:
        self._start, self._step, self._keep = start, step, max(keep, 1)
        self._states: OrderedDict[int, S] = OrderedDict()

    def at(self, server_round: int) -> S:
        """Return the state of a round.

        Raises:
            ValueError: if the round is below 1.
        """
        if server_round < 1:
            raise ValueError(f"round = {server_round}; rounds count from 1")
        if server_round in self._states:
            return self._states[server_round]
        number = max((g for g in self._states if g < server_round), default=0)
        state = self._states[number] if number else self._start()
        for g in range(max(number, 1) + 1, server_round + 1):
            state = self._step(state, g)
            self._remember(g, state)
        self._remember(server_round, state)
        return state

    def _remember(self, server_round: int, state: S) -> None:
        self._states[server_round] = state
        while len(self._states) > self._keep:
            self._states.popitem(last=False)
