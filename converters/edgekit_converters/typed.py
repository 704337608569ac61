"""Typed: what was given on a command line, in pieces that can be pasted to build the same again.

Only what decides the bundle is kept: where it goes, who signs it and how progress is told are left
out. It is for people who read a report and enters nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

Typed = tuple[tuple[str, ...], ...]
"""Pieces of a command line: an argument, or an option with its value."""

_ASIDE = frozenset({"as_json", "key", "no_cache", "out"})


def typed(context: click.Context) -> Typed:
    """What was given to a command that is running, arguments first; without defaults."""
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name not in _ASIDE
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    given.sort(key=lambda parameter: isinstance(parameter, click.Option))
    return tuple(
        piece for parameter in given for piece in _pieces(parameter, context.params[parameter.name])
    )


def _pieces(parameter: click.Parameter, value: Any) -> Iterator[tuple[str, ...]]:
    if not isinstance(parameter, click.Option):
        yield (str(value),)
    elif parameter.is_flag:
        yield (parameter.opts[0],)
    else:
        for each in value if parameter.multiple else (value,):
            yield parameter.opts[0], _text(each)


def _text(value: Any) -> str:
    """A value as it is typed; a shape comes with the name of its input."""
    if isinstance(value, tuple):
        name, sizes = value
        return f"{name}={shape_text(sizes)}"
    return str(value)


def shape_text(sizes: tuple[int, ...]) -> str:
    """A shape as `--input` takes it."""
    return "x".join("?" if size == -1 else str(size) for size in sizes)
