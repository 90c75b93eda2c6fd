"""Messages that hold an order or a report itself, for engines that do not leave the machine.

Making Flower's records, checking and reading them takes as long as a small network's training. Where server
and devices are processes of one machine, an order or a report travels as it is, and becomes records only if
somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from flwr.app import ArrayRecord, Message, RecordDict

_NOTHING = RecordDict()


class Body(Protocol):
    """What a message says: `TrainOrder`, `EvaluateOrder`, `TrainReport`."""

    def to_records(self) -> RecordDict:
        """Return it as the content of a message."""
        ...

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read it from the content of a message.

        Raises:
            MessageError: if the content is no such thing.
        """
        ...


_Body = TypeVar("_Body", bound=Body)
_Item = TypeVar("_Item")


class TypedMessage(Message):
    """A message with a body; once its content was asked for, a message like any other.

    Args:
        body: what it says.
        addressing: arguments of `Message`, other than its content.
    """

    def __init__(self, body: Body, **addressing: Any) -> None:
        super().__init__(_NOTHING, **addressing)
        self.__dict__["_body"] = body

    @property
    def body(self) -> Body | None:
        """What it says, or None if that is now in the content, where it may have been changed."""
        body: Body | None = self.__dict__["_body"]
        return body

    @property
    def content(self) -> RecordDict:
        """The content, made when it is first asked for."""
        if self.body is not None:
            self.content = self.body.to_records()
        return super().content

    @content.setter
    def content(self, content: RecordDict) -> None:
        self.__dict__.update(_content=content, _body=None)


class LazyMessages(Generic[_Item]):
    """Messages, an iterable with a length, that are made as they are asked for.

    Args:
        make: makes a message of an item.
        items: one for each message.
    """

    def __init__(self, make: Callable[[_Item], Message], items: Sequence[_Item]) -> None:
        self._make, self._items = make, items

    def __iter__(self) -> Iterator[Message]:
        """Make the messages, one after the other."""
        return map(self._make, self._items)

    def __len__(self) -> int:
        """Return their number, for which none is made."""
        return len(self._items)


def array_records(message: Message) -> Sequence[ArrayRecord]:
    """Return the array records of a message, without making its content."""
    body = message.body if isinstance(message, TypedMessage) else None
    values = message.content.values() if body is None else vars(body).values()
    return [value for value in values if isinstance(value, ArrayRecord)]


def read(message: Message, kind: type[_Body]) -> _Body:
    """Return what a message says.

    Raises:
        MessageError: if it is not a `kind`.
    """
    body = message.body if isinstance(message, TypedMessage) else None
    return body if isinstance(body, kind) else kind.from_records(message.content)


def reply(message: Message, body: Body) -> Message:
    """Return a reply to a message: a typed one to a typed one."""
    if isinstance(message, TypedMessage):
        return TypedMessage(body, reply_to=message)
    return Message(body.to_records(), reply_to=message)
