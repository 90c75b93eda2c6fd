"""``airflower --help``: every key with its unit, default and meaning, from the declarations themselves.

Words after ``--help`` narrow it to the keys that hold them; overrides change what the values are shown for:
``airflower --help radio scheme=aircomp_pruned``.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from registry import suggest
from schema import ConfigError, Declaration, declarations
from server_app.settings import Settings, compose_config
from server_app.settings.overrides import override

_USAGE = """\
airflower: federated learning over wireless links.

  airflower [KEY=VALUE ...] [GROUP=CHOICE ...]              one run
  airflower --multirun KEY=VALUE,VALUE ... experiment=NAME  a sweep: every combination
  airflower --help [WORD ...] [KEY=VALUE ...]               the keys whose names hold a word
  airflower --cfg job [...]                                 the composed values
  airflower --hydra-help                                    flags of Hydra, which composes them
"""
_WIDTH = 100


def help_text(arguments: Sequence[str] = ()) -> str:
    """Return the help for these words and overrides.

    Raises:
        ConfigError: for a word that is in no key, or an override that is wrong.
    """
    words = [word for word in arguments if "=" not in word]
    config = compose_config([word for word in arguments if "=" in word])
    found = declarations(Settings)
    shown = {
        name: declared
        for name, declared in found.items()
        if not words or any(word in f"{name}." for word in words)
    }
    for word in words:
        if not any(word in f"{name}." for name in shown):
            groups = sorted({name.partition(".")[0] for name in found})
            raise ConfigError(f"--help {word}: no key has this in its name; {suggest(word, groups)}")
    parts = [] if words else [_USAGE, *_choices()]
    group = None
    for name, declared in shown.items():
        top = name.partition(".")[0] if "." in name else ""
        if top != group:
            parts += ["", *_heading(top)]
            group = top
        parts += _entry(name, declared, OmegaConf.select(config, name))
    return "\n".join(parts).lstrip("\n")


def _choices() -> Iterator[str]:
    """Yield the choices of every group, those of the user's own ``conf/`` among them."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    yield "Groups and their choices:"
    with initialize_config_module(version_base="1.3", config_module="conf"):
        loader = GlobalHydra.instance().config_loader()
        for group in loader.list_groups(""):
            if group != "hydra" and (options := loader.get_group_options(group)):
                yield from _wrapped(f"{group}: {', '.join(options)}", 2)


def _heading(group: str) -> list[str]:
    if not group:
        return ["The run"]
    hint: Any = get_type_hints(Settings)[group]
    if not dataclasses.is_dataclass(hint):
        return [group]
    return [f"{group}: {(hint.__doc__ or '').strip().splitlines()[0]}"]


def _entry(name: str, declared: Declaration, value: Any) -> list[str]:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    default = override(name, plain).partition("=")[2]
    line = f"  {name} = {default}{f' {declared.unit_name}' if declared.unit and value is not None else ''}"
    return [line, *_wrapped("; ".join([declared.meaning, *_limits(declared), *_conditions(declared)]), 6)]


def _limits(declared: Declaration) -> Iterator[str]:
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    if declared.limits:
        yield ", ".join(f"{words[kind]} {limit:g}" for kind, limit in declared.limits.items())


def _conditions(declared: Declaration) -> Iterator[str]:
    if declared.used is not None:
        yield f"used only {declared.used.text}"
    if not declared.decides:
        yield "decides nothing of the records"


def _wrapped(text: str, indent: int) -> list[str]:
    first = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=first + ("  " if indent == 2 else ""),
        break_on_hyphens=False,
    )
