"""Interchangeable parts (models, partitioners) by name; errors list the valid names and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Mapping[str, F], Generic[F]):
    """A read-only mapping from name to builder that is filled with `@registry.register("name")`.

    The keyword-only parameters of a builder are its options: a user's options are checked against them.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._builders: dict[str, F] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that files a builder under `name`.

        Raises:
            ValueError: if the name is taken.
        """

        def add(builder: F) -> F:
            if name in self._builders:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            self._builders[name] = builder
            return builder

        return add

    def __getitem__(self, name: str) -> F:
        return self._builders[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)

    def select(self, name: str, options: Mapping[str, Any]) -> F:
        """Return the builder called `name` after checking that it takes these options.

        Raises:
            ValueError: if the name or an option is unknown; the text lists the valid ones.
        """
        if name not in self._builders:
            raise ValueError(f"unknown {self._kind} {name!r}; valid: {', '.join(sorted(self._builders))}")
        builder = self._builders[name]
        valid = self.options(name)
        unknown = sorted(set(options) - set(valid))
        if unknown:
            raise ValueError(
                f"{self._kind} {name!r} has no option {', '.join(map(repr, unknown))}; "
                f"valid: {', '.join(valid) or '(none)'}"
            )
        return builder

    def options(self, name: str) -> tuple[str, ...]:
        """Return the option names (keyword-only parameters) of the builder called `name`."""
        parameters = inspect.signature(self._builders[name]).parameters.values()
        return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
