"""Everything that can be exchanged, by name or by `package.module:object`: one class for all of it.

A joint (allocation policy, scheduler, beamformer, model, data set, partition, algorithm, aggregation,
channel, study ...) is a `Registry`. Built-in parts are filed under a name; a user's own part is named by
where it is and needs no line of ours. The parameters that only a keyword can set are a part's options, and
what a user sets is checked against them: of a function, or of a class, a dataclass included.

This package imports nothing but the standard library, so that every other one may use it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T", bound=Callable[..., Any])
R = TypeVar("R", bound=Callable[..., Any])


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from name to part: a function or a class.

    Iterating gives the names of the built-in parts, in the order in which they were filed.
    """

    def __init__(self, kind: str, *, key: str = "", given: Collection[str] = ()) -> None:
        """Create an empty registry.

        Args:
            kind: what its parts are, for messages: "model".
            key: the configuration key that names one ("model.name"), for messages.
            given: keyword parameters that the program fills in, which are therefore no options.
        """
        self.kind = kind
        self._label = key or kind
        self._given = frozenset(given)
        self._parts: dict[str, T | str] = {}

    def register(self, name: str) -> Callable[[R], R]:
        """Return a decorator that files a part under `name`.

        Raises:
            ValueError: if the name is taken.
        """

        def add(part: R) -> R:
            self._file(name, cast(T, part))
            return part

        return add

    def register_at(self, **places: str) -> None:
        """File parts as `name="package.module:object"`; each is imported when it is first asked for.

        Raises:
            ValueError: if a name is taken.
        """
        for name, place in places.items():
            self._file(name, place)

    def remove(self, name: str) -> None:
        """Take a name out again, as tests do."""
        del self._parts[name]

    def _file(self, name: str, part: T | str) -> None:
        if name in self._parts:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._parts[name] = part

    def __getitem__(self, name: str) -> T:
        """Return the built-in part of that name."""
        part = self._parts[name]
        if isinstance(part, str):
            module, _, attribute = part.partition(":")
            part = self._parts[name] = cast(T, getattr(import_module(module), attribute))
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts  # without importing it

    def find(self, name: str) -> T:
        """Return the part that a name or a `package.module:object` stands for.

        Raises:
            ValueError: if there is none; the text names the valid ones and what went wrong.
        """
        if name in self._parts:
            return self[name]
        module, colon, attribute = name.partition(":")
        if not colon:
            raise ValueError(
                f"{self._label} = {name!r} is unknown; {suggest(name, self)}, or 'package.module:object'"
            )
        try:
            part: Any = import_module(module)
            for step in attribute.split("."):
                part = getattr(part, step)
        except Exception as error:  # a module of the user's own may fail in any way as it is imported
            raise ValueError(
                f"{self._label} = {name!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not callable(part):
            raise ValueError(
                f"{self._label} = {name!r} is a {type(part).__name__}; it must be a function or a class"
            )
        return cast(T, part)

    def options(self, name: str) -> tuple[str, ...]:
        """Return the names of a part's options, in the order of its signature.

        Raises:
            ValueError: if there is no such part.
        """
        return tuple(p.name for p in self._parameters(name) if p.kind is inspect.Parameter.KEYWORD_ONLY)

    def select(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """Return the part that `name` stands for, after checking that it takes these options.

        Raises:
            ValueError: if there is no such part, an option is unknown, or one without default is not set.
        """
        part = self.find(name)
        options = options or {}
        parameters = self._parameters(name)
        named = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        unknown = [option for option in options if option not in named]
        if unknown and (not takes_any or self._given & set(unknown)):
            raise ValueError(
                f"{self._label} = {name!r} has no option {', '.join(map(repr, unknown))}; "
                f"{suggest(unknown[0], named)}"
            )
        missing = [
            p.name for p in named.values() if p.default is inspect.Parameter.empty and p.name not in options
        ]
        if missing:
            raise ValueError(f"{self._label} = {name!r} needs the option {', '.join(map(repr, missing))}")
        return part

    def _parameters(self, name: str) -> list[inspect.Parameter]:
        """Return the parameters of a part that the program does not fill in."""
        return [p for p in parameters_of(self.find(name)) if p.name not in self._given]


@lru_cache(maxsize=256)
def parameters_of(part: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a function or a class; of one written in C perhaps none.

    Looked up once: that of a class takes longer than a tiny network's step, and devices ask in every round.
    """
    try:
        return tuple(inspect.signature(part).parameters.values())
    except (TypeError, ValueError):
        return ()


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a phrase that proposes the closest of the valid names, then lists them all."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(names) or '(none)'}"
